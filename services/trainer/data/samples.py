"""Images with their labels, as two arrays of equal length."""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput


class Hasher(Protocol):
    """What `hashlib` makes."""

    def update(self, data: Any, /) -> None:
        """Take in *data*, an object that exposes a buffer."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Images, uint8 (n, height, width, 3), RGB, and the number of each one's class, int64 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise InvalidInput(f"{len(self.images)} images came with {len(self.labels)} labels; give one label each")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | NDArray[Any]) -> Self:
        """Select by slice, mask or positions."""
        return type(self)(self.images[index], self.labels[index])

    @classmethod
    def joined(cls, *parts: Self) -> Self:
        """Return the samples of all *parts*, one part after the other."""
        return cls(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))

    def first_per_class(self, count: int) -> Self:
        """Select the first *count* samples of each class, in their present order.

        Raises:
            InvalidInput: A class has fewer.
        """
        positions = [np.flatnonzero(self.labels == label)[:count] for label in np.unique(self.labels)]
        if any(len(members) < count for members in positions):
            raise InvalidInput(f"a class has fewer than {count} samples; ask for fewer per class")
        return self[np.sort(np.concatenate(positions))]

    def update(self, hasher: Hasher) -> None:
        """Feed pixels, then labels as little-endian int64, to *hasher*."""
        hasher.update(np.ascontiguousarray(self.images))
        hasher.update(self.labels.astype("<i8"))
