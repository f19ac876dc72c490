"""Folders in the layouts of CIFAR-10 and CIFAR-100, binary or pickled, of any classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput, NotFound
from services.trainer.data.files import read_file
from services.trainer.data.pickles import read_pickle
from services.trainer.data.samples import Samples

_SIDE = 32
_ROW = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class Layout:
    """Names of the files of one layout, and what is in them."""

    train: str
    """With `{}` for the numbers from 1 up, where there are several."""
    test: str
    labels: str
    label_bytes: int = 0
    """Of a binary row, before its pixels; the last is the class. 0 means that the files are pickles."""
    classes: str = "labels"
    names: str = "label_names"
    """Keys of the pickles for the numbers and the names of the classes."""

    def train_files(self, folder: Path) -> list[Path]:
        """Return the training batches in *folder*, in order."""
        if "{}" not in self.train:
            return [folder / self.train]
        files: list[Path] = []
        for number in count(1):
            if not (path := folder / self.train.format(number)).is_file():
                break
            files.append(path)
        return files or [folder / self.train.format(1)]

    def files(self, folder: Path) -> list[Path]:
        """Return all files of the layout in *folder*: those for training, the one for the test, the labels."""
        return [*self.train_files(folder), folder / self.test, folder / self.labels]


BINARY = Layout("data_batch_{}.bin", "test_batch.bin", "batches.meta.txt", 1)
PICKLED = Layout("data_batch_{}", "test_batch", "batches.meta")
LAYOUTS = (
    BINARY,
    PICKLED,
    Layout("train.bin", "test.bin", "fine_label_names.txt", 2),
    Layout("train", "test", "meta", classes="fine_labels", names="fine_label_names"),
)


@dataclass(frozen=True, eq=False)
class Batches:
    """A set in one of the layouts."""

    labels: tuple[str, ...]
    train: Samples
    test: Samples
    names: tuple[str, ...]
    """File and row of each sample, those for training first."""


def find_layout(folder: Path) -> Layout | None:
    """Return the layout whose first training batch and labels lie in *folder*; None where there is none."""
    return next(
        (each for each in LAYOUTS if each.train_files(folder)[0].is_file() and (folder / each.labels).is_file()), None
    )


def read_batches(folder: Path, layout: Layout) -> Batches:
    """Read all of *folder*.

    Raises:
        NotFound: The test batch is missing.
        InvalidInput: A file is damaged, or a label is outside the range.
    """
    labels = _labels(folder / layout.labels, layout)
    paths = [*layout.train_files(folder), folder / layout.test]
    parts = [_read(path, layout, len(labels)) for path in paths]
    train = Samples(
        np.concatenate([each.images for each in parts[:-1]]), np.concatenate([each.labels for each in parts[:-1]])
    )
    names = tuple(f"{path.name}[{row}]" for path, part in zip(paths, parts, strict=True) for row in range(len(part)))
    return Batches(labels, train, parts[-1], names)


def _read(path: Path, layout: Layout, class_count: int) -> Samples:
    if not path.exists():
        raise NotFound(f"{path} is missing beside the other batches; add it")
    data = _content(path)
    read = _binary(data, path, layout.label_bytes) if layout.label_bytes else _pickled(data, path, layout)
    classes, pixels = read
    wrong = np.flatnonzero((classes < 0) | (classes >= class_count))
    if wrong.size:
        raise InvalidInput(
            f"{path.name} gives row {wrong[0]} the label {classes[wrong[0]]}; {layout.labels} names {class_count} "
            f"classes, so labels go from 0 to {class_count - 1}: correct the row or add the names",
            reason="LABEL_OUT_OF_RANGE",
        )
    images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)  # planes -> (n, 32, 32, 3)
    return Samples(np.ascontiguousarray(images), classes)


def _content(path: Path) -> bytes:
    try:
        return read_file(path)
    except InvalidInput as error:
        raise InvalidInput(f"{path.name}: {error.message}", reason="NOT_A_BATCH", field="dataset") from error


def _binary(data: bytes, path: Path, label_bytes: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    row = label_bytes + _ROW
    if not data or len(data) % row:
        raise InvalidInput(
            f"{path.name} holds {len(data)} bytes; it must be whole rows of {row} bytes: copy it again",
            reason="NOT_A_BATCH",
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, row)
    return rows[:, label_bytes - 1].astype(np.int64), rows[:, label_bytes:]


def _pickled(data: bytes, path: Path, layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    content = read_pickle(data, path.name)
    pixels, classes = content.get("data"), content.get(layout.classes)
    if isinstance(classes, np.ndarray):
        classes = classes.tolist()
    whole = isinstance(classes, list) and classes and all(type(each) is int for each in classes)
    if not whole or not isinstance(pixels, np.ndarray) or pixels.shape != (len(classes or ()), _ROW):
        raise InvalidInput(
            f"{path.name} must hold `data`, uint8 of shape (n, {_ROW}), and `{layout.classes}`, n whole numbers; "
            "correct it",
            reason="NOT_A_BATCH",
        )
    return np.array(classes, np.int64), pixels


def _labels(path: Path, layout: Layout) -> tuple[str, ...]:
    data = _content(path)
    if layout.label_bytes:
        names = [line.strip() for line in data.decode(errors="replace").splitlines()]
    else:
        names = list(_texts(read_pickle(data, path.name).get(layout.names)))
    names = [name for name in names if name]
    if not names or len(set(names)) != len(names):
        raise InvalidInput(
            f"{path.name} must name each class once and names {names[:20]}; correct it", reason="NOT_A_BATCH"
        )
    return tuple(names)


def _texts(values: Any) -> Iterator[str]:
    for value in values if isinstance(values, list | tuple) else ():
        if isinstance(value, bytes):
            yield value.decode(errors="replace")
        elif isinstance(value, str):
            yield value
