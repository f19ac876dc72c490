"""Parts samples in two with the same mix of classes, and never the same picture in both.

Which part a picture belongs to is drawn by its content. So a set that has grown is parted as it was before, save for a
few pictures where the shares meet, and what was learnt from is not judged on later.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput


def choose(
    classes: NDArray[np.int64],
    contents: NDArray[np.uint64],
    fraction: float,
    seed: int,
    *,
    labels: Sequence[str] = (),
    option: str = "validation_fraction",
) -> NDArray[np.bool_]:
    """Return the mask of the second part: *fraction* of each class, rounded, with samples of equal content together.

    Args:
        classes: Number of each sample's class, int64 (n,).
        contents: Digest of each sample's content, uint64 (n,).
        fraction: Of each class, from 0 to 1.
        seed: The same one always gives the same parts.
        labels: Names of the classes, for errors.
        option: Which option *fraction* is, for errors.

    Raises:
        InvalidInput: A part of some class would be empty.
    """
    chosen = np.zeros(len(classes), dtype=bool)
    # A content stands where it first occurs; the class there is the class of all its samples.
    different, firsts, numbers, counts = np.unique(contents, return_index=True, return_inverse=True, return_counts=True)
    draws = np.array([_draw(content, seed) for content in different], np.uint64)
    for label in np.unique(classes):
        members = np.flatnonzero(classes[firsts] == label)  # positions in different
        total = int(counts[members].sum())
        wanted = round(fraction * total)
        drawn = members[np.argsort(draws[members])]
        # Contents are taken until enough samples are there; without duplicates that is the first `wanted` ones.
        taken = drawn[: np.searchsorted(np.cumsum(counts[drawn]), wanted) + 1] if wanted else drawn[:0]
        size = int(counts[taken].sum())
        if not 0 < size < total:
            name = repr(labels[label]) if labels else label
            raise InvalidInput(
                f"{option} {fraction} takes {size} of the {total} samples of class {name}; both parts need at least "
                f"one: change {option} or add samples",
                field=option,
            )
        chosen[np.isin(numbers, taken)] = True
    return chosen


def _draw(content: np.uint64, seed: int) -> int:
    """Return a number that is random, but always the same for a content and a seed."""
    key = seed.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(content.astype("<u8").tobytes(), digest_size=8, key=key).digest(), "little")
