"""The pictures that samples were made from, and what another preprocess spec makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.common.errors import Conflict, InvalidInput
from services.common.manifest import PreprocessSpec
from services.common.pixels import transform
from services.trainer.data.files import PictureFile, read_file
from services.trainer.data.pictures import MAX_IMAGE_BYTES, read_picture

SET_CHANGED = "SET_CHANGED"
"""Reason of the error that a picture is no longer the one that a sample was made from."""


@dataclass(frozen=True, eq=False)
class Originals:
    """The pictures of n samples, in their order.

    To load a set once more with another spec would not do: which samples are left out as equal, and which part each
    belongs to, follows from their pixels, so that the parts of the two would hold different pictures.

    Attributes:
        images: Pixels of the samples, uint8 (n, height, width, 3), RGB.
        spec: How they were made from the pictures.
        files: The file of each; None, or no file at all, where the pixels are themselves the picture.
    """

    images: NDArray[np.uint8]
    spec: PreprocessSpec
    files: Sequence[PictureFile | None] = ()

    def __len__(self) -> int:
        return len(self.images)

    def file(self, row: int) -> PictureFile | None:
        """Return the file of one picture; None where its pixels are all there is of it."""
        return self.files[row] if self.files else None

    def pixels(self, rows: slice, spec: PreprocessSpec) -> NDArray[Any]:
        """Return what serving would send of the pictures in *rows*, of the spec's datatype, (rows, *spec.shape).

        Raises:
            Conflict: With reason `SET_CHANGED`: a file is gone, or gives other pixels than those of its sample.
        """
        if spec == self.spec:
            return self.images[rows]
        made = [self._made(row, spec) for row in range(len(self))[rows]]
        return np.stack(made) if made else np.empty((0, *spec.shape), np.uint8)

    def _made(self, row: int, spec: PreprocessSpec) -> NDArray[Any]:
        file = self.file(row)
        if file is None:
            return transform(Image.fromarray(self.images[row]), spec, 1)
        try:
            picture = read_picture(read_file(file.path, MAX_IMAGE_BYTES + 1), file.orientation)
        except InvalidInput as error:
            raise _changed(file, error.message) from error
        if not np.array_equal(picture.pixels(self.spec), self.images[row]):
            raise _changed(file, "it shows something else")
        return picture.pixels(spec)


def _changed(file: PictureFile, why: str) -> Conflict:
    return Conflict(
        f"{file.name} is not as it was when its set was read: {why}; bring it back, or read the set again",
        reason=SET_CHANGED,
    )
