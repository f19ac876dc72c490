"""Users' pictures as they are stored -> pixels, as training and serving make them."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput
from services.common.manifest import PreprocessSpec
from services.trainer.data.blobs import Blobs
from services.trainer.data.files import read_file
from services.trainer.data.pictures import MAX_IMAGE_BYTES, read_picture
from services.trainer.data.tables import ObservationRow

KEPT_BYTES = 64 * 1024 * 1024
"""Of pixels that are kept in case that they are asked for again."""


class StoredPictures:
    """Decodes pictures; those that were asked for last need not be decoded again.

    Args:
        blobs: Where their files lie.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._kept: OrderedDict[tuple[str, str], NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def pixels(self, row: ObservationRow, spec: PreprocessSpec) -> NDArray[Any]:
        """Return the pixels of a picture as *spec* makes them, of its datatype, `spec.shape`.

        Raises:
            InvalidInput: The file is gone or damaged.
        """
        key = (row.content_digest, spec.digest)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        data = read_file(self._blobs.path(row.content_digest), MAX_IMAGE_BYTES + 1)
        pixels = read_picture(data, row.orientation).pixels(spec)
        self._kept[key] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > KEPT_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return pixels

    def read(
        self, rows: Sequence[ObservationRow], spec: PreprocessSpec
    ) -> tuple[list[ObservationRow], NDArray[Any], dict[int, str]]:
        """Return those of *rows* that can be read, their pixels (n, *spec.shape), and by number why others cannot."""
        readable, pixels, problems = [], [], dict[int, str]()
        for row in rows:
            try:
                pixels.append(self.pixels(row, spec))
                readable.append(row)
            except InvalidInput as error:
                problems[row.number] = error.message
        return readable, np.stack(pixels) if pixels else np.empty((0, *spec.shape), np.uint8), problems


def find_observations(session: Session, numbers: Sequence[int]) -> list[ObservationRow]:
    """Return the pictures of those *numbers* that are still there, by rising number."""
    statement = select(ObservationRow).where(ObservationRow.number.in_(numbers)).order_by(ObservationRow.number)
    return list(session.scalars(statement))
