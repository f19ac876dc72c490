"""Everything that was found under the name of a data set, before it is cleaned and split."""

import hashlib
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput, Overloaded
from services.common.manifest import PreprocessSpec
from services.trainer.data.files import PictureFile
from services.trainer.data.originals import Originals
from services.trainer.data.samples import Samples

PARTS = ("train", "validation", "test")
OPEN = -1
"""Part of a sample whose collection leaves it open."""

IN_MEMORY_BYTES = 1 << 30
"""Of one part; more stays on the disk and is mapped into memory."""
_COPIED_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Collection:
    """Labelled images with where each came from; n of them, the unreadable ones among them.

    Attributes:
        name: As the option `dataset` names it.
        labels: Name of each class, in the order of the label numbers.
        spec: How a picture becomes the pixels of these images.
        images: uint8 (n, height, width, 3), RGB; black where the file could not be read.
        classes: Number of each one's class, int64 (n,).
        parts: Position in `PARTS` of the part that the collection gives each to, or `OPEN`; int8 (n,).
        names: What people call each one: its file, its place in a batch, its id.
        sizes: Width and height before the transform, int32 (n, 2); zeros where unreadable.
        formats: Kind of each one's file.
        unreadable: By position, why a file could not be read.
        cache: Folder for what has no room in memory; None where all of it has.
        files: As `Originals` has them.
    """

    name: str
    labels: tuple[str, ...]
    spec: PreprocessSpec
    images: NDArray[np.uint8]
    classes: NDArray[np.int64]
    parts: NDArray[np.int8]
    names: Sequence[str]
    sizes: NDArray[np.int32]
    formats: Sequence[str]
    unreadable: Mapping[int, str] = field(default_factory=dict)
    cache: Path | None = None
    files: Sequence[PictureFile | None] = ()

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def draws(self) -> bool:
        """Whether a part that is judged on is left open, and has to be drawn."""
        return not {PARTS.index("validation"), PARTS.index("test")} <= set(self.parts.tolist())

    @cached_property
    def readable(self) -> NDArray[np.int64]:
        """Positions of the samples that have pixels, rising."""
        mask = np.ones(len(self), dtype=bool)
        mask[list(self.unreadable)] = False
        return np.flatnonzero(mask)

    @cached_property
    def contents(self) -> NDArray[np.uint64]:
        """Digest of each sample's pixels, uint64 (n,). Unreadable ones have 0."""
        contents = np.zeros(len(self), np.uint64)
        contents[self.readable] = digest_contents(self.images, self.readable)
        return contents

    def select(self, positions: NDArray[np.int64]) -> Samples:
        """Return the samples at *positions*, in that order.

        Raises:
            InvalidInput: They have no room in memory, and there is no folder for them.
            Overloaded: They have no room on the disk either.
        """
        labels = self.classes[positions]
        if positions.size * self.images[:1].nbytes <= IN_MEMORY_BYTES or len(positions) == 0:
            return Samples(np.ascontiguousarray(self.images[positions]), labels)
        if self.cache is None:
            raise InvalidInput(
                f"{len(positions):,} images of dataset {self.name!r} take more than {IN_MEMORY_BYTES:,} bytes; give "
                "them as a folder of pictures"
            )
        return Samples(self._on_disk(self.cache, positions), labels)

    def originals(self, positions: NDArray[np.int64], samples: Samples) -> Originals:
        """Return the pictures of *samples*, which are those at *positions*."""
        files = [self.files[position] for position in positions] if self.files else ()
        return Originals(samples.images, self.spec, files)

    def _on_disk(self, folder: Path, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        digest = hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()[:16]
        path = folder / f"part-{digest}.npy"
        if not path.is_file():
            aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
            try:
                copy = create_mapped(aside, (len(positions), *self.images.shape[1:]))
                for start in range(0, len(positions), _COPIED_AT_ONCE):
                    rows = slice(start, start + _COPIED_AT_ONCE)
                    copy[rows] = self.images[positions[rows]]
                copy.flush()
                aside.replace(path)
            except OSError as error:
                raise Overloaded(
                    f"{len(positions):,} images of dataset {self.name!r} cannot be kept in {folder}: {error}; make "
                    "room there",
                    reason="DISK_FULL",
                ) from error
            finally:
                aside.unlink(missing_ok=True)
        return open_mapped(path)


def create_mapped(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.uint8]]":
    """Create a file of zeros that is written through memory, with all of its room on the disk taken.

    Without the room, the first write that found none would end the process with SIGBUS.
    """
    array: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def open_mapped(path: Path) -> NDArray[np.uint8]:
    """Map an array into memory: read when used, and changes never reach the file."""
    array: NDArray[np.uint8] = np.load(path, mmap_mode="c")
    return array


def digest_contents(images: NDArray[np.uint8], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return what stands for the pixels of the images at *positions*, uint64, the same on every machine.

    Two of a million different pictures are alike with a chance of 3e-8.
    """
    digests = (hashlib.blake2b(np.ascontiguousarray(images[position]).data, digest_size=8) for position in positions)
    return np.frombuffer(b"".join(each.digest() for each in digests), "<u8").astype(np.uint64)
