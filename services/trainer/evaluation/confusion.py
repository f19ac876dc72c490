"""What the counts of true and predicted labels say; numpy only."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

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
    recall_low: float
    """Lower end of the 95 % Wilson interval; 0 to 1 where there are no samples."""
    recall_high: float
    f1: float


class Averages(BaseModel):
    """Precision, recall and F1 over several classes."""

    model_config = ConfigDict(frozen=True)

    precision: float
    recall: float
    f1: float


class ConfusedPair(BaseModel):
    """Samples of one label that were called another."""

    model_config = ConfigDict(frozen=True)

    true: str
    predicted: str
    count: int
    share: float
    """Of the samples of the true label."""
    examples: tuple[int, ...]
    """Positions of some of them, the surest mistakes first."""


def confusion_matrix(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count pairs: row is the true label, column the predicted one."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)


def class_results(confusion: NDArray[np.int64], names: tuple[str, ...]) -> tuple[ClassResult, ...]:
    """Return precision, recall and F1 of each class; a share of nothing is 0."""
    results = []
    for position, name in enumerate(names):
        hits, called, true = confusion[position, position], confusion[:, position].sum(), confusion[position].sum()
        low, high = wilson_interval(int(hits), int(true))
        results.append(
            ClassResult(
                label=name,
                samples=int(true),
                precision=_share(hits, called),
                recall=_share(hits, true),
                recall_low=low,
                recall_high=high,
                f1=_share(2 * hits, called + true),
            )
        )
    return tuple(results)


def macro_averages(confusion: NDArray[np.int64], classes: tuple[ClassResult, ...]) -> Averages:
    """Return the plain means over the classes; one that neither occurs nor was called is left out."""
    occurs = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return _averages(classes, occurs.astype(np.float64))


def weighted_averages(classes: tuple[ClassResult, ...]) -> Averages:
    """Return the means over the classes, each weighted by its samples."""
    return _averages(classes, np.array([each.samples for each in classes], np.float64))


def micro_averages(confusion: NDArray[np.int64]) -> Averages:
    """Return the figures of all decisions together; with one label per sample all three are the accuracy."""
    accuracy = _share(np.trace(confusion), confusion.sum())
    return Averages(precision=accuracy, recall=accuracy, f1=accuracy)


def most_confused(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    names: tuple[str, ...],
    pairs: int = 10,
    examples: int = 8,
) -> tuple[ConfusedPair, ...]:
    """Return the most frequent mistakes, the most frequent first; ties go to the lower labels.

    Args:
        probabilities: (n, classes).
        labels: The true ones, (n,).
        names: Of the labels.
        pairs: Mistakes returned at most.
        examples: Positions given with each at most.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    confusion = confusion_matrix(predicted, labels, len(names))
    mistakes = confusion * (1 - np.eye(len(names), dtype=np.int64))
    found = []
    for pair in np.argsort(-mistakes, axis=None, kind="stable")[:pairs]:
        true, called = divmod(int(pair), len(names))
        if not mistakes[true, called]:
            break
        members = np.flatnonzero((labels == true) & (predicted == called))
        surest = members[np.argsort(-confidence[members], kind="stable")][:examples]
        found.append(
            ConfusedPair(
                true=names[true],
                predicted=names[called],
                count=int(mistakes[true, called]),
                share=_share(mistakes[true, called], confusion[true].sum()),
                examples=tuple(int(position) for position in surest),
            )
        )
    return tuple(found)


def wilson_interval(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Return the ends of the score interval for a share (Wilson 1927); nothing tried leaves 0 to 1.

    Args:
        successes: Of the trials.
        trials: Independent of each other.
        z: Normal point of the wanted coverage; 95 % by default.
    """
    if not trials:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # The share itself bounds what rounding leaves at the ends, where the interval touches 0 or 1.
    return max(0.0, min(share, (centre - reach) / scale)), min(1.0, max(share, (centre + reach) / scale))


def export_confusion_csv(confusion: tuple[tuple[int, ...], ...], names: tuple[str, ...], path: Path) -> None:
    """Write the counts as a table with a line per true label and a column per predicted one, UTF-8."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["true \\ predicted", *names])
        table.writerows([name, *counts] for name, counts in zip(names, confusion, strict=True))


def _averages(classes: tuple[ClassResult, ...], weights: NDArray[np.float64]) -> Averages:
    def mean(figure: str) -> float:
        values = np.array([getattr(each, figure) for each in classes])
        return float(np.average(values[weights > 0], weights=weights[weights > 0]))

    return Averages(precision=mean("precision"), recall=mean("recall"), f1=mean("f1"))


def _share(part: np.int64, whole: np.int64) -> float:
    return float(part / whole) if whole else 0.0
