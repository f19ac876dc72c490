"""How good probabilities are, given the true labels; numpy only."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from services.common.errors import InvalidInput

_Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


class ClassResult(BaseModel):
    """Figures for one label."""

    model_config = ConfigDict(frozen=True)

    label: str
    samples: int
    precision: float
    """Of what was called this label, the share that is; 0 where nothing was."""
    recall: float
    """Of what is this label, the share that was called so: the accuracy within the class."""
    f1: float


class Evaluation(BaseModel):
    """Figures for one set of samples."""

    model_config = ConfigDict(frozen=True)

    samples: int
    accuracy: float
    accuracy_low: float
    """Lower end of the 95 % Wilson interval."""
    accuracy_high: float
    top3_accuracy: float
    calibration_error: float
    """Expected difference between confidence and accuracy, over 15 bins of equal width."""
    loss: float
    """Mean cross-entropy in nats."""
    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts; row is the true label, column the predicted one."""

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the headline figures for a manifest, each name beginning with *prefix*."""
        names = ("samples", "accuracy", "accuracy_low", "accuracy_high", "top3_accuracy", "calibration_error", "loss")
        return {f"{prefix}_{name}": float(getattr(self, name)) for name in names}


def evaluate_predictions(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], names: tuple[str, ...]
) -> Evaluation:
    """Measure *probabilities* (n, classes) against the true *labels* (n,).

    Raises:
        InvalidInput: There are no samples, or the shapes do not fit each other.
    """
    if not len(labels) or probabilities.shape != (len(labels), len(names)):
        raise InvalidInput(
            f"probabilities have shape {list(probabilities.shape)}; {len(labels)} samples of {len(names)} classes "
            f"need [{len(labels)}, {len(names)}], and at least one sample"
        )
    confusion = confusion_matrix(probabilities.argmax(axis=1), labels, len(names))
    correct = int(np.trace(confusion))
    low, high = wilson_interval(correct, len(labels))
    of_truth = probabilities[np.arange(len(labels)), labels]
    return Evaluation(
        samples=len(labels),
        accuracy=correct / len(labels),
        accuracy_low=low,
        accuracy_high=high,
        top3_accuracy=top_accuracy(probabilities, labels, 3),
        calibration_error=calibration_error(probabilities, labels),
        loss=float(-np.log(np.maximum(of_truth, 1e-12)).mean()),
        classes=class_results(confusion, names),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def confusion_matrix(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count pairs: row is the true label, column the predicted one."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)


def class_results(confusion: NDArray[np.int64], names: tuple[str, ...]) -> tuple[ClassResult, ...]:
    """Return precision, recall and F1 of each class; a share of nothing is 0."""
    results = []
    for position, name in enumerate(names):
        hits, called, true = confusion[position, position], confusion[:, position].sum(), confusion[position].sum()
        results.append(
            ClassResult(
                label=name,
                samples=int(true),
                precision=_share(hits, called),
                recall=_share(hits, true),
                f1=_share(2 * hits, called + true),
            )
        )
    return tuple(results)


def wilson_interval(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Return the ends of Wilson's score interval for a share; *z* is the normal point of the wanted coverage."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def top_accuracy(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], k: int) -> float:
    """Return the share of samples whose true label is among the *k* most probable; ties go to the lower label."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def calibration_error(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], bins: int = 15) -> float:
    """Return the expected calibration error of the most probable label, over *bins* of equal width."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    chosen = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(chosen, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """Return the temperature, 0.1 to 10, that makes *labels* most likely when the logits are divided by it.

    Above 1 the probabilities were too sure, below 1 too timid; no prediction changes its label.
    """
    logits = np.log(np.maximum(probabilities, 1e-12)).astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        of_truth = scaled[np.arange(len(labels)), labels]
        return float((np.log(np.exp(scaled).sum(axis=1)) - of_truth).mean())

    low, high = math.log(0.1), math.log(10)
    while high - low > 1e-4:  # the loss has one minimum, so thirds close in on it
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return math.exp((low + high) / 2)


def _share(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else 0.0
