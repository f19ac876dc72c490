"""Real samples, a network that has learnt a little, and what it answers."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from services.trainer.data import slices
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.samples import Samples
from services.trainer.evaluation.figures import Evaluation, evaluate_predictions
from services.trainer.evaluation.robustness import Predict
from services.trainer.networks.classifier import Classifier
from services.trainer.networks.residual import ResidualNetwork


@pytest.fixture(scope="session")
def seen() -> Samples:
    """Training images."""
    return slices.read_slice()[0].first_per_class(150)


@pytest.fixture(scope="session")
def unseen() -> Samples:
    """Test images."""
    return slices.read_slice()[1].first_per_class(20)


@pytest.fixture(scope="session")
def model(seen: Samples) -> Classifier:
    """A classifier after four epochs; nearly half of the test images right."""
    torch.manual_seed(0)
    network = ResidualNetwork(10, widths=(16, 24, 32), depths=(0, 0, 1))
    classifier = Classifier(network, torch.tensor([125.3, 123.0, 113.9]), torch.tensor([63.0, 62.1, 66.7]))
    images, labels = torch.from_numpy(seen.images), torch.from_numpy(seen.labels)
    network.initialise_from(classifier.normalise(images))
    learnt = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(4):
        for batch in torch.randperm(len(seen)).split(25):
            loss = functional.cross_entropy(classifier.logits(images[batch]), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return classifier.eval()


@pytest.fixture(scope="session")
def predict(model: Classifier) -> Predict:
    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return predict


@pytest.fixture(scope="session")
def evaluation(predict: Predict, unseen: Samples) -> Evaluation:
    return evaluate_predictions(predict(unseen.images), unseen.labels, LABELS)
