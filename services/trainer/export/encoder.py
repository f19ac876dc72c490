"""Asks the part of a graph that comes before its last layer for the features of images."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput
from services.trainer.export.graph import INPUT, open_graph
from services.trainer.export.tail import FEATURES

_BATCH = 100


class Encoder:
    """The layers of a classifier before its last one.

    Args:
        path: From `cut_encoder`.
        threads: For the arithmetic; 0 is one per core.

    Attributes:
        digest: As `cut_encoder` has returned it: encoders with equal ones give equal features.
        width: How many features an image has.

    Raises:
        InvalidInput: The graph at *path* has no such output.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        self._session = open_graph(path, threads)
        output = self._session.get_outputs()[0]
        if output.name != FEATURES:
            raise InvalidInput(f"{path.name} gives {output.name} and not {FEATURES}; cut the encoder off it first")
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.width = int(output.shape[1])
        self._shape = tuple(self._session.get_inputs()[0].shape[1:])

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features (n, width) of *images*, uint8 (n, H, W, 3), of which there may be none.

        Raises:
            InvalidInput: The images have another size than those that the encoder takes.
        """
        if images.shape[1:] != self._shape:
            raise InvalidInput(
                f"images of shape {images.shape[1:]} were given to an encoder of {self._shape}; "
                "give them as the model's preprocessing makes them"
            )
        features = np.empty((len(images), self.width), np.float32)
        for start in range(0, len(images), _BATCH):
            batch = slice(start, start + _BATCH)
            features[batch] = self._session.run([FEATURES], {INPUT: images[batch]})[0]
        return features
