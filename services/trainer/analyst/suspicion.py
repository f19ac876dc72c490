"""Which labels are likely wrong, and whether somebody's samples do harm: by heads fitted to features. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.trainer.analyst.stopping import GoOn
from services.trainer.statistics.betting import Counts, evidence
from services.trainer.statistics.heads import Head, fit_head, head_probabilities

FOLDS = 4
ROUNDS = 100
"""Of a fit: from the present head on, a judgement of single samples gets no better with more."""
SMOOTHING = 0.05
LEAST_SURE = 0.8
"""Probability of another label from which on the given one may be wrong, however unsure the model is of that class."""
MOST_DOUBTED = 0.05
"""Probability of the given label above which it is let be: pictures that are hard for the model teach the most."""
LEAST_BLOCK = 20
"""Samples of a contributor whose effect is measured."""
_LEAST_MEMBERS = 5
"""Of a class, below which its own mean says too little."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features with labels."""

    features: NDArray[np.floating[Any]]
    """(n, f)."""
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[Any]) -> "Labelled":
        return Labelled(self.features[index], self.labels[index])

    def joined(self, other: "Labelled") -> "Labelled":
        """Return these and then *other*."""
        return Labelled(np.concatenate([self.features, other.features]), np.concatenate([self.labels, other.labels]))


def fit(start: Head, samples: Labelled) -> Head:
    """Return a head that is fitted to *samples*, or *start* where there are none."""
    if not len(samples):
        return start
    return fit_head(samples.features, samples.labels, start, smoothing=SMOOTHING, rounds=ROUNDS)


def out_of_fold(
    start: Head, base: Labelled, samples: Labelled, folds: NDArray[np.int64], go_on: GoOn
) -> NDArray[np.float32]:
    """Return for each of *samples* the probabilities of a head that was not fitted to it, (n, classes).

    Args:
        start: To fit from.
        base: What all heads are fitted to.
        samples: Those that are doubted.
        folds: Which one each of *samples* belongs to, 0 to `FOLDS` - 1.
        go_on: As it says.
    """
    probabilities = np.empty((len(samples), len(start.weight)), np.float32)
    for fold in range(FOLDS):
        held_out = folds == fold
        if held_out.any():
            go_on()
            head = fit(start, base.joined(samples[~held_out]))
            probabilities[held_out] = head_probabilities(head, samples.features[held_out])
    return probabilities


def class_thresholds(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how sure a model is of each class where that is the label, (classes,): the mean over its samples.

    Args:
        labels: (n,).
        probabilities: Out of fold, (n, classes).
    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    members = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=own, minlength=classes)
    overall = float(own.mean()) if len(own) else 1.0
    return np.where(members >= _LEAST_MEMBERS, sums / np.maximum(members, 1), overall)


def likely_wrong(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], thresholds: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which labels are likely wrong, (n,).

    Those for which a model that has not seen them is as sure of another class as it is of that class's own samples:
    confident learning, Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels"
    (2021). Beyond that, the other class must have `LEAST_SURE` and the label at most `MOST_DOUBTED`, as what users
    correct is by its nature what the model gets wrong.
    """
    given = probabilities[np.arange(len(labels)), labels]
    best = probabilities.argmax(axis=1)
    highest = probabilities.max(axis=1)
    sure = highest >= np.maximum(thresholds[best], LEAST_SURE)
    return np.asarray((best != labels) & sure & (given <= MOST_DOUBTED))


def log_harm(without: Head, with_them: Head, judges: Labelled) -> float:
    """Return the log e-value against: a head is no worse with somebody's samples than without them.

    Args:
        without: Fitted to the others' samples.
        with_them: Fitted to all.
        judges: What neither was fitted to.
    """
    right, changed = (
        head_probabilities(head, judges.features).argmax(axis=1) == judges.labels for head in (without, with_them)
    )
    wins, losses = int((changed & ~right).sum()), int((right & ~changed).sum())
    return evidence(Counts(wins, len(judges) - wins - losses, losses)).worse


def find_harm(
    start: Head,
    base: Labelled,
    samples: Labelled,
    blocks: Mapping[str, NDArray[np.bool_]],
    judges: Labelled,
    go_on: GoOn,
) -> dict[str, float]:
    """Return the contributors with whom a head gets worse, with the log e-value of that.

    Args:
        start: To fit from.
        base: What all heads are fitted to.
        samples: Of users, those that judge left out.
        blocks: By contributor: which of *samples* are his, (n,).
        judges: What no head is fitted to.
        go_on: As it says.
    """
    if not blocks or not len(judges):
        return {}
    go_on()
    with_them = fit(start, base.joined(samples))
    level = harm_level(len(blocks))
    found = {}
    for name, block in blocks.items():
        if block.sum() >= LEAST_BLOCK:
            go_on()
            harm = log_harm(fit(start, base.joined(samples[~block])), with_them, judges)
            if harm >= level:
                found[name] = harm
    return found


def harm_level(contributors: int) -> float:
    """Return the log e-value from which on one of these is said to do harm: 1 in 20 for all of them at one look."""
    return math.log(20 * max(1, contributors))
