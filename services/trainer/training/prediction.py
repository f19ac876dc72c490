"""What a model says of samples."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from services.trainer.data.samples import Samples
from services.trainer.networks.classifier import Classifier
from services.trainer.training.hardware import computing_in

_BATCH = 250


def evaluate(model: Classifier, samples: Samples, precision: torch.dtype = torch.float32) -> tuple[float, float]:
    """Return (mean cross-entropy in nats, accuracy) of *model* on *samples*."""
    probabilities = torch.from_numpy(predict(model, samples, precision))
    labels = torch.from_numpy(samples.labels)
    loss = functional.nll_loss(probabilities.clamp_min(1e-12).log(), labels).item()
    return loss, (probabilities.argmax(1) == labels).float().mean().item()


def predict(model: Classifier, samples: Samples, precision: torch.dtype = torch.float32) -> NDArray[np.float32]:
    """Return the probabilities (n, classes) of *samples*, with activations in *precision*; *model* is left in eval."""
    model.eval()
    device = model.mean.device
    starts = range(0, len(samples), _BATCH)
    with torch.inference_mode(), computing_in(precision, device):
        batches = (torch.from_numpy(np.array(samples.images[at : at + _BATCH])) for at in starts)
        return np.concatenate([model(batch.to(device)).float().cpu().numpy() for batch in batches])
