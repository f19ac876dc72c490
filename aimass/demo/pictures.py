"""The pictures of the demonstration: real ones, of the slice of CIFAR-10 that comes with the repository."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.trainer.data.cifar10 import LABELS
from services.trainer.data.samples import Samples
from services.trainer.data.slices import read_slice

RARE = ("automobile", "truck")
"""Classes of which the first model has seen next to nothing."""
PER_CLASS = 250
"""Pictures of each other class that the first model learns from."""
PER_RARE_CLASS = 10
FOR_REFEREE = 100
"""Pictures of each class that nobody ever sends."""
SEED = 7


@dataclass(frozen=True)
class Picture:
    """One picture as a user has it."""

    png: bytes
    label: str
    """What it shows."""


@dataclass(frozen=True)
class Pictures:
    """Who has which of them; no picture is in two parts."""

    first: Samples
    """What the first model learns from."""
    judged: Samples
    """The hold-out: the slice's test images."""
    sent: tuple[Picture, ...]
    """What users send."""
    referee: tuple[Picture, ...]
    """What accuracy is measured on, from outside; the suite never gets their labels."""


def share_out(per_class: int = PER_CLASS) -> Pictures:
    """Give every picture of the slice to one part; the first model learns from *per_class* of most classes."""
    train, test = read_slice()
    generator = np.random.default_rng(SEED)
    first: list[int] = []
    sent: list[int] = []
    referee: list[int] = []
    for number, label in enumerate(LABELS):
        own = generator.permutation(np.flatnonzero(train.labels == number)).tolist()
        learnt = PER_RARE_CLASS if label in RARE else per_class
        first += own[:learnt]
        referee += own[learnt : learnt + FOR_REFEREE]
        sent += own[learnt + FOR_REFEREE :]
    generator.shuffle(sent)
    return Pictures(train[np.array(first)], test, _encoded(train, sent), _encoded(train, referee))


def write_folder(pictures: Pictures, folder: Path) -> None:
    """Write what the first model learns from and the hold-out as folders of pictures by class."""
    for part, samples in (("train", pictures.first), ("test", pictures.judged)):
        for number, (image, label) in enumerate(zip(samples.images, samples.labels, strict=True)):
            path = folder / part / LABELS[label] / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_png(image))


def _encoded(samples: Samples, chosen: Iterable[int]) -> tuple[Picture, ...]:
    return tuple(Picture(_png(samples.images[each]), LABELS[samples.labels[each]]) for each in chosen)


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
