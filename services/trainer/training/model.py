"""The model that a run begins with."""

import numpy as np
import torch

from services.trainer.data.datasets import Dataset, channel_statistics
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier
from services.trainer.options import TrainingOptions

_WHITENING_SAMPLES = 5_000


def build_model(dataset: Dataset, options: TrainingOptions, *, allow_code: bool = False) -> Classifier:
    """Return an untrained classifier: weights from the seed, normalisation from the training images.

    Args:
        dataset: Whose labels and pixels it is for.
        options: Network and seed.
        allow_code: Whether the network may be a user's own factory.

    Raises:
        InvalidInput: There is no such network, or it refuses its options.
    """
    torch.manual_seed(options.seed)
    network = build_network(
        options.network,
        len(dataset.labels),
        options.network_options,
        image_size=dataset.spec.shape[:2],
        allow_code=allow_code,
    )
    mean, std = channel_statistics(dataset.train.images)
    model = Classifier(network, torch.from_numpy(mean), torch.from_numpy(std), views=options.views)
    first = np.array(dataset.train.images[:_WHITENING_SAMPLES])
    network.initialise_from(model.normalise(torch.from_numpy(first)))
    return model
