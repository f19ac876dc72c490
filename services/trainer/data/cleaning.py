"""Finds what is wrong with samples by looking at their pixels and labels alone."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.trainer.data.collection import OPEN, PARTS, Collection
from services.trainer.data.problems import Problem

SIMILARITY = 0.988
"""Correlation of two small grey pictures from which on they count as nearly the same.

Of the 270 pairs that CIFAR-10 has from 0.985 on, a person takes nearly all for the same photograph."""
DIFFERENCE = 16.0
"""Largest mean difference of two such pictures in colour, of 255, brightness apart."""
MAX_COMPARED = 65_536
"""Pictures that are compared with each other for being nearly the same: all pairs of them."""

_SMALL = 8
_LEAST_CONTRAST = 6.0  # standard deviation, of 255: flat pictures are all alike and tell nothing
_ROWS = 2048


def find_problems(collection: Collection) -> list[Problem]:
    """Return unreadable samples, and those whose pixels equal another's: `duplicate`, `conflict` or `leak`."""
    problems = [
        Problem(kind="unreadable", position=position, sample=collection.names[position], detail=reason)
        for position, reason in sorted(collection.unreadable.items())
    ]
    for group in _groups(collection):
        problems += _of_group(collection, group)
    return problems


def _groups(collection: Collection) -> list[NDArray[np.int64]]:
    """Return the positions of the samples of each content that occurs more than once, in the order of the first."""
    ordered = collection.readable[np.argsort(collection.contents[collection.readable], kind="stable")]
    groups = np.split(ordered, np.flatnonzero(np.diff(collection.contents[ordered])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def _of_group(collection: Collection, group: NDArray[np.int64]) -> Iterator[Problem]:
    """Yield what is wrong with samples of equal content, rising positions."""
    classes, parts = collection.classes[group], collection.parts[group]
    if len(set(classes.tolist())) > 1:
        for position in group:
            other = group[np.flatnonzero(classes != collection.classes[position])[0]]
            detail = f"has the pixels of {collection.names[other]}, which is {_label(collection, other)}, not "
            yield _problem(collection, "conflict", position, other, detail + _label(collection, position))
        return
    # The test part keeps its samples, then the validation part, so that what is measured stays comparable.
    keeper = group[np.argmax(parts)]
    for position in group[group != keeper]:
        part, other = collection.parts[position], collection.parts[keeper]
        if part != other and OPEN not in (part, other):
            detail = f"is in {PARTS[part]} and has the pixels of {collection.names[keeper]} in {PARTS[other]}"
            yield _problem(collection, "leak", position, keeper, detail)
        else:
            yield _problem(collection, "duplicate", position, keeper, f"has the pixels of {collection.names[keeper]}")


def find_near_duplicates(collection: Collection) -> list[Problem]:
    """Return samples that show much the same as an earlier one: resized, compressed or brightened, not equal.

    Of more than `MAX_COMPARED` samples the first so many are looked at. All pairs of 50,000 take seconds.
    """
    positions = collection.readable[:MAX_COMPARED]
    colours = np.stack([_small(collection.images[each]) for each in positions]) if positions.size else np.empty(0)
    if len(colours) < 2:
        return []
    grey = colours.reshape(len(colours), -1, 3).mean(axis=2)  # (n, 64)
    grey -= grey.mean(axis=1, keepdims=True)
    least = _LEAST_CONTRAST * grey.shape[1] ** 0.5
    grey /= np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), least)
    found: dict[int, Problem] = {}
    for first, second in _similar_pairs(grey):
        one, other = positions[first], positions[second]
        if collection.contents[one] == collection.contents[other] or int(other) in found:
            continue
        if _differ(colours[first], colours[second]) <= DIFFERENCE:
            detail = f"shows nearly the same as {collection.names[one]}"
            if collection.classes[one] != collection.classes[other]:
                detail += f", which is {_label(collection, one)}, not {_label(collection, other)}"
            found[int(other)] = _problem(collection, "near-duplicate", other, one, detail)
    return [found[position] for position in sorted(found)]


def _small(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return *image* at 8 x 8 pixels, float32 (192,)."""
    shrunk = Image.fromarray(image).resize((_SMALL, _SMALL), Image.Resampling.BOX)
    return np.asarray(shrunk, np.float32).ravel()


def _similar_pairs(grey: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows, the first before the second, whose product is at least `SIMILARITY`."""
    for start in range(0, len(grey), _ROWS):
        block = grey[start : start + _ROWS]
        products = block @ grey[start:].T  # (rows, n - start)
        for row, column in np.argwhere(products >= SIMILARITY):
            if row < column:
                yield start + int(row), start + int(column)


def _differ(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs((one - one.mean()) - (other - other.mean())).mean())


def _label(collection: Collection, position: int | np.integer) -> str:
    return collection.labels[int(collection.classes[position])]


def _problem(collection: Collection, kind: str, position: int, other: int, detail: str) -> Problem:
    return Problem.model_validate(
        {
            "kind": kind,
            "position": int(position),
            "sample": collection.names[position],
            "detail": detail,
            "other": collection.names[other],
            "other_position": int(other),
        }
    )
