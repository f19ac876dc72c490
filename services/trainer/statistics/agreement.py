"""Votes of several contributors fused: who is right how often, and what each item is.

The model is that of Dawid and Skene, "Maximum likelihood estimation of observer error-rates using the EM algorithm"
(1979), with one coin for each contributor: a vote is right with the contributor's accuracy, and otherwise any other
class alike. Every class is as likely before the votes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput

_RIGHT, _WRONG = 8.0, 2.0
"""Of the Beta distribution that a contributor's accuracy has before the votes: right in 8 of 10."""
_TRUSTED = 0.995
_ROUNDS = 20


@dataclass(frozen=True)
class Fused:
    """What votes come to."""

    posterior: Mapping[int, NDArray[np.float64]]
    """By item: the probability of each class, (classes,)."""
    accuracy: Mapping[int, float]
    """By contributor: the share of votes that are right, as far as is known."""


def fuse_votes(votes: Sequence[tuple[int, int, int]], classes: int, trusted: Collection[int] = ()) -> Fused:
    """Return what each item is, and how often each contributor is right, by 20 rounds of EM.

    Args:
        votes: (item, contributor, class) of each, one at most of a contributor for an item; items and contributors are
            any numbers, classes are below *classes*.
        classes: 2 or more.
        trusted: Contributors whose accuracy is 0.995 whatever the others say.

    Raises:
        InvalidInput: There are less than two classes, or a vote is for none of them.
    """
    if classes < 2:
        raise InvalidInput(f"votes cannot be fused over {classes} classes; give 2 or more")
    if not votes:
        return Fused({}, {})
    table = np.array(votes, np.int64)
    labels = table[:, 2]
    if labels.min() < 0 or labels.max() >= classes:
        raise InvalidInput(
            f"votes are for classes from {labels.min()} to {labels.max()}, and there are {classes}; leave out the rest"
        )
    items, item_of = np.unique(table[:, 0], return_inverse=True)
    contributors, contributor_of = np.unique(table[:, 1], return_inverse=True)
    pinned = np.isin(contributors, list(trusted))
    accuracy = np.where(pinned, _TRUSTED, _RIGHT / (_RIGHT + _WRONG))
    cast = np.bincount(contributor_of)
    posterior = _posterior(accuracy, item_of, contributor_of, labels, classes)
    for _ in range(_ROUNDS):
        right = np.bincount(contributor_of, weights=posterior[item_of, labels])
        accuracy = np.where(pinned, _TRUSTED, (_RIGHT + right) / (_RIGHT + _WRONG + cast))
        posterior = _posterior(accuracy, item_of, contributor_of, labels, classes)
    return Fused(
        dict(zip(items.tolist(), posterior, strict=True)),
        dict(zip(contributors.tolist(), accuracy.tolist(), strict=True)),
    )


def _posterior(
    accuracy: NDArray[np.float64],
    item_of: NDArray[np.int64],
    contributor_of: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: int,
) -> NDArray[np.float64]:
    """Return the probabilities of each item's classes, (items, classes)."""
    # A vote for a class raises its odds against every other one by this factor; the rest is common to all classes.
    odds = np.log(accuracy * (classes - 1) / (1 - accuracy))
    scores = np.zeros((item_of.max() + 1, classes))
    np.add.at(scores, (item_of, labels), odds[contributor_of])
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))
