"""How good probabilities are, given the true labels; numpy only."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from services.common.errors import InvalidInput
from services.trainer.evaluation.confusion import (
    Averages,
    ClassResult,
    ConfusedPair,
    class_results,
    confusion_matrix,
    macro_averages,
    micro_averages,
    most_confused,
    weighted_averages,
    wilson_interval,
)

TOP = (1, 3, 5)
BINS = 15

_FLOOR = 1e-12  # of a probability, so that its logarithm is finite


class ReliabilityBin(BaseModel):
    """Samples whose confidence lies in one interval, open at its lower end."""

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    samples: int
    confidence: float
    """Mean of the samples; 0 where there are none."""
    accuracy: float


class Evaluation(BaseModel):
    """Figures for one set of samples."""

    model_config = ConfigDict(frozen=True)

    samples: int
    accuracy: float
    accuracy_low: float
    """Lower end of the 95 % Wilson interval."""
    accuracy_high: float
    top_accuracy: dict[int, float]
    """Share of samples whose true label is among the k most probable, by k."""
    top3_accuracy: float
    macro: Averages
    """Over the classes that occur or were called, each counting the same."""
    weighted: Averages
    """Over the classes, each counting as its samples."""
    micro: Averages
    """Over all decisions."""
    calibration_error: float
    """Expected difference between confidence and accuracy, over the bins of `reliability`."""
    reliability: tuple[ReliabilityBin, ...]
    brier_score: float
    """Mean squared distance of the probabilities from the truth, summed over the classes: 0 to 2."""
    loss: float
    """Mean cross-entropy in nats."""
    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts; row is the true label, column the predicted one."""
    confused: tuple[ConfusedPair, ...]
    """The most frequent mistakes."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(each.label for each in self.classes)

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the headline figures for a manifest, each name beginning with *prefix*."""
        names = ("samples", "accuracy", "accuracy_low", "accuracy_high", "top3_accuracy", "calibration_error", "loss")
        return {f"{prefix}_{name}": float(getattr(self, name)) for name in names}


def evaluate_predictions(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    names: tuple[str, ...],
    *,
    top: Sequence[int] = TOP,
    bins: int = BINS,
    pairs: int = 10,
    examples: int = 8,
) -> Evaluation:
    """Measure *probabilities* (n, classes) against the true *labels* (n,).

    All figures are computed in float64 and are those of scikit-learn, except that a tie goes to the lower label, as in
    `argmax`, also among the k most probable.

    Args:
        probabilities: Each row sums to 1.
        labels: Numbers of classes.
        names: Of the classes, in the order of the columns.
        top: Values of k for the top-k accuracy; those above the number of classes are left out.
        bins: Intervals of equal width for the calibration.
        pairs: Kinds of mistakes that are listed.
        examples: Positions given for each kind of mistake.

    Raises:
        InvalidInput: There are no samples, the shapes do not fit each other, a label is outside the range, or a
            probability is not a number.
    """
    _check(probabilities, labels, len(names))
    probabilities = probabilities.astype(np.float64)
    confusion = confusion_matrix(probabilities.argmax(axis=1), labels, len(names))
    correct = int(np.trace(confusion))
    low, high = wilson_interval(correct, len(labels))
    classes = class_results(confusion, names)
    of_truth = probabilities[np.arange(len(labels)), labels]
    return Evaluation(
        samples=len(labels),
        accuracy=correct / len(labels),
        accuracy_low=low,
        accuracy_high=high,
        top_accuracy={k: top_accuracy(probabilities, labels, k) for k in top if k <= len(names)},
        top3_accuracy=top_accuracy(probabilities, labels, 3),
        macro=macro_averages(confusion, classes),
        weighted=weighted_averages(classes),
        micro=micro_averages(confusion),
        calibration_error=calibration_error(probabilities, labels, bins),
        reliability=reliability(probabilities, labels, bins),
        brier_score=brier_score(probabilities, labels),
        loss=float(-np.log(np.maximum(of_truth, _FLOOR)).mean()),
        classes=classes,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        confused=most_confused(probabilities, labels, names, pairs, examples),
    )


def top_accuracy(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], k: int) -> float:
    """Return the share of samples whose true label is among the *k* most probable; ties go to the lower label."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean())


def reliability(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Return how sure the most probable label was, and how often right, in *bins* of equal width."""
    edges = np.linspace(0, 1, bins + 1)
    counts, correct, confidence = _binned(probabilities, labels, edges)
    return tuple(
        ReliabilityBin(
            low=edges[each],
            high=edges[each + 1],
            samples=int(counts[each]),
            confidence=float(confidence[each] / counts[each]) if counts[each] else 0.0,
            accuracy=float(correct[each] / counts[each]) if counts[each] else 0.0,
        )
        for each in range(bins)
    )


def calibration_error(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], bins: int = BINS) -> float:
    """Return the expected calibration error of the most probable label (Guo et al. 2017), over *bins* of equal width.

    Each bin counts as its samples, with the distance of its mean confidence from its accuracy.
    """
    _, correct, confidence = _binned(probabilities, labels, np.linspace(0, 1, bins + 1))
    return float(np.abs(correct - confidence).sum() / len(labels))


def brier_score(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """Return the mean over the samples of the squared distance from the truth, summed over the classes (Brier 1950)."""
    truth = np.eye(probabilities.shape[1])[labels]
    return float(((truth - probabilities) ** 2).sum(axis=1).mean())


def fit_temperature(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """Return the temperature, 0.1 to 10, that makes *labels* most likely when the logits are divided by it.

    Above 1 the probabilities were too sure, below 1 too timid; no prediction changes its label.
    """
    logits = np.log(np.maximum(probabilities, _FLOOR)).astype(np.float64)

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


def _binned(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], edges: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return per bin: samples, right ones among them, sum of their confidence."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    chosen, bins = np.searchsorted(edges[1:-1], confidence), len(edges) - 1
    return (
        np.bincount(chosen, minlength=bins),
        np.bincount(chosen, weights=correct, minlength=bins),
        np.bincount(chosen, weights=confidence, minlength=bins),
    )


def _check(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], classes: int) -> None:
    if not len(labels) or probabilities.shape != (len(labels), classes):
        raise InvalidInput(
            f"probabilities have shape {list(probabilities.shape)}; {len(labels)} samples of {classes} classes "
            f"need [{len(labels)}, {classes}], and at least one sample"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InvalidInput(
            f"labels lie between {labels.min()} and {labels.max()}; with {classes} classes they must be 0 to "
            f"{classes - 1}"
        )
    if not np.isfinite(probabilities).all():
        wrong = int((~np.isfinite(probabilities).all(axis=1)).sum())
        raise InvalidInput(f"the model answers {wrong} of {len(labels)} samples with what is not a number; retrain it")
