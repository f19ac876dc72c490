"""Finds labels that are likely wrong, by confident learning (Northcutt et al. 2021)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput, Unsupported
from services.trainer.data.collection import Collection
from services.trainer.data.problems import Problem
from services.trainer.data.samples import Samples

FitPredict = Callable[[Samples, Samples], NDArray[np.floating]]
"""Fits a model to the first samples and returns its probabilities for the second ones, (n, classes)."""


def out_of_fold_probabilities(
    samples: Samples, fit_predict: FitPredict, *, class_count: int, folds: int = 5, seed: int = 0
) -> NDArray[np.float32]:
    """Return for each sample the probabilities of a model that has not seen it, float32 (n, classes).

    The folds have the same mix of classes.

    Raises:
        InvalidInput: A class has fewer samples than there are folds.
    """
    counts = np.bincount(samples.labels, minlength=class_count)
    if counts.min() < folds or folds < 2:
        raise InvalidInput(
            f"class {int(counts.argmin())} has {counts.min()} samples, and {folds} folds want one each and at least 2 "
            "folds; add samples or change folds"
        )
    generator = np.random.default_rng(seed)
    of_sample = np.empty(len(samples), np.int64)
    for label in range(class_count):
        members = generator.permutation(np.flatnonzero(samples.labels == label))
        of_sample[members] = np.arange(len(members)) % folds
    probabilities = np.empty((len(samples), class_count), np.float32)
    for fold in range(folds):
        held_out = of_sample == fold
        probabilities[held_out] = fit_predict(samples[~held_out], samples[held_out])
    return probabilities


def find_mislabelled(
    collection: Collection, positions: NDArray[np.int64], probabilities: NDArray[np.floating]
) -> list[Problem]:
    """Return the samples whose label is likely wrong, the likeliest first.

    Args:
        collection: Where the samples are from.
        positions: Of the samples that were judged, int64 (n,).
        probabilities: Out of fold, (n, classes).

    Raises:
        InvalidInput: The probabilities are not of these samples and classes.
        Unsupported: cleanlab is not installed.
    """
    wanted = (len(positions), len(collection.labels))
    if probabilities.shape != wanted:
        raise InvalidInput(f"the probabilities have shape {probabilities.shape}; give {wanted}, a row for each sample")
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise Unsupported(
            "likely wrong labels are found by cleanlab, which is not installed; install it with "
            "pip install 'aimass[cleaning]'"
        ) from error
    classes = collection.classes[positions]
    ranked = find_label_issues(
        classes, probabilities, filter_by="both", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    return [_problem(collection, int(positions[row]), probabilities[row]) for row in ranked]


def _problem(collection: Collection, position: int, probabilities: NDArray[np.floating]) -> Problem:
    given, better = int(collection.classes[position]), int(probabilities.argmax())
    return Problem(
        kind="mislabelled",
        position=position,
        sample=collection.names[position],
        detail=f"is labelled {collection.labels[given]} ({probabilities[given]:.0%} by a model that has not seen it) "
        f"and looks like {collection.labels[better]} ({probabilities[better]:.0%})",
    )
