"""Labelled images in memory: what a training run learns from, is tuned on and is finally measured on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput
from services.trainer.data import cifar10, slices
from services.trainer.data.samples import Samples

NAMES = ("cifar10", "cifar10-slice")


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of one labelled collection.

    Attributes:
        name: Which collection this is, `cifar10` or `cifar10-slice`.
        labels: Name of each class, in the order of the label numbers.
        train: What the weights are fitted to.
        validation: What choices are made on; drawn from the public training samples.
        test: The public test samples; measured once, when every choice is made.
    """

    name: str
    labels: tuple[str, ...]
    train: Samples
    validation: Samples
    test: Samples

    @property
    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return {name: len(samples) for name, samples in self._splits()}

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over the samples and labels of all splits, in order."""
        hasher = hashlib.sha256()
        for name, samples in self._splits():
            hasher.update(f"{name} {samples.images.shape}\n".encode())
            samples.update(hasher)
        return "sha256:" + hasher.hexdigest()

    def _splits(self) -> tuple[tuple[str, Samples], ...]:
        return (("train", self.train), ("validation", self.validation), ("test", self.test))


def load_dataset(name: str, data_dir: Path, *, validation_fraction: float, seed: int) -> Dataset:
    """Load a dataset: `cifar10` is the full set in *data_dir*, `cifar10-slice` the slice in this repository.

    Raises:
        NotFound: A file is missing; the sentence says how it is fetched.
        InvalidInput: The name is unknown, or a file on the disk is damaged.
    """
    if name not in NAMES:
        raise InvalidInput(f"dataset {name!r} is unknown; use one of {', '.join(NAMES)}", field="dataset")
    public, test = cifar10.read(data_dir / "cifar10") if name == "cifar10" else slices.read_slice()
    train, validation = split(public, validation_fraction, seed)
    return Dataset(name, cifar10.LABELS, train, validation, test)


def split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Part *samples* in two with the same mix of classes; the second holds *fraction* of each class, rounded.

    The same samples, fraction and seed always give the same parts; both keep the order of *samples*.

    Raises:
        InvalidInput: A part of some class would be empty.
    """
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(samples), dtype=bool)
    for label in np.unique(samples.labels):
        members = np.flatnonzero(samples.labels == label)
        count = round(fraction * len(members))
        if not 0 < count < len(members):
            raise InvalidInput(
                f"validation_fraction {fraction} takes {count} of the {len(members)} samples of class {label}; "
                "both parts need at least one",
                field="validation_fraction",
            )
        chosen[generator.permutation(members)[:count]] = True
    return samples[~chosen], samples[chosen]


def channel_statistics(images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of each channel of uint8 NHWC *images*, float32 (3,), in units of 0 to 255."""
    # Exact sums over a histogram: 256 values are counted instead of 150 million floats being made.
    values = np.arange(256, dtype=np.float64)
    counts = np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])
    mean = counts @ values / counts.sum(axis=1)
    variance = counts @ values**2 / counts.sum(axis=1) - mean**2
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
