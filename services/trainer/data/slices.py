"""The slice of CIFAR-10 that comes with the repository: real pixels, losslessly compressed.

It holds the first 500 training images and the first 100 test images of each class in the official order, as sheets of
1,000 tiles (40 a row, row-major), beside `labels.json` with the labels and the digest of every file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.common.errors import InvalidInput, NotFound
from services.trainer.data.samples import Samples

FOLDER = Path(__file__).parent / "slice"
PER_CLASS = {"train": 500, "test": 100}

_INDEX = "labels.json"
_ROWS, _COLUMNS, _SIDE = 25, 40, 32
_TILES = _ROWS * _COLUMNS


def write_slice(train: Samples, test: Samples, folder: Path = FOLDER) -> None:
    """Select from the full set and write sheets and index to *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"labels": {}, "sha256": {}}
    for split, full in (("train", train), ("test", test)):
        samples = full.first_per_class(PER_CLASS[split])
        index["labels"][split] = "".join(str(label) for label in samples.labels)
        for number in range(len(samples) // _TILES):
            path = folder / f"{split}-{number}.webp"
            sheet = _to_sheet(samples.images[number * _TILES : (number + 1) * _TILES])
            Image.fromarray(sheet).save(path, lossless=True, quality=100, method=6)
            index["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n")


def read_slice(folder: Path = FOLDER) -> tuple[Samples, Samples]:
    """Read the 5,000 training and the 1,000 test samples.

    Raises:
        NotFound: A file is missing.
        InvalidInput: A sheet does not have the SHA-256 that the index says.
    """
    try:
        index = json.loads((folder / _INDEX).read_text())
        train, test = (_read_split(folder, index, split) for split in ("train", "test"))
    except FileNotFoundError as error:
        raise NotFound(
            f"{error.filename} is missing; the slice belongs to the installation, install it again"
        ) from None
    return train, test


def _read_split(folder: Path, index: dict[str, Any], split: str) -> Samples:
    names = sorted(name for name in index["sha256"] if name.startswith(split))
    images = np.concatenate([_from_sheet(_read_sheet(folder / name, index["sha256"][name])) for name in names])
    return Samples(images, np.array([int(digit) for digit in index["labels"][split]], np.int64))


def _read_sheet(path: Path, expected: str) -> NDArray[np.uint8]:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise InvalidInput(
            f"{path.name} has SHA-256 {found}; labels.json says {expected}: install the slice again",
            reason="CHECKSUM_MISMATCH",
        )
    with Image.open(path) as sheet:
        return np.asarray(sheet.convert("RGB"))


def _to_sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grid = images.reshape(_ROWS, _COLUMNS, _SIDE, _SIDE, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(_ROWS * _SIDE, _COLUMNS * _SIDE, 3)


def _from_sheet(sheet: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grid = sheet.reshape(_ROWS, _SIDE, _COLUMNS, _SIDE, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(_TILES, _SIDE, _SIDE, 3)
