"""Class scores -> the best classes; one code for `Classify` and for the protocol's classification extension."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGE_SCORES = 10_000
"""More scores than this are sorted in a thread, away from the event loop."""


@dataclass(frozen=True)
class ScoredClass:
    """A class with its score."""

    index: int
    label: str
    """Empty where the model has no labels."""
    score: float


def best_classes(scores: np.ndarray, labels: Sequence[str], top: int) -> list[ScoredClass]:
    """Return the *top* classes of one sample, best first; 0 means all.

    Equal scores are ordered by index, so that the answer never depends on the sort.

    Args:
        scores: Shape (classes,), any real datatype.
        labels: One per class, or none.
        top: How many to return.
    """
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    chosen = order[:top] if top else order
    return [
        ScoredClass(index, labels[index] if index < len(labels) else "", float(scores[index]))
        for index in chosen.tolist()
    ]


def classification_strings(scores: np.ndarray, labels: Sequence[str], top: int) -> np.ndarray:
    """Return the classification extension's form of a batch: `<score>:<index>[:<label>]`.

    Args:
        scores: Shape (batch, classes).
        labels: One per class, or none.
        top: How many per sample, at least 1.

    Returns:
        Objects of type bytes, shape (batch, min(top, classes)).
    """
    rows = [[_string(each) for each in best_classes(row, labels, top)] for row in scores]
    strings = np.empty((len(rows), len(rows[0])), np.object_)
    strings[:] = rows
    return strings


def _string(scored: ScoredClass) -> bytes:
    text = f"{scored.score:f}:{scored.index}"
    return (f"{text}:{scored.label}" if scored.label else text).encode()
