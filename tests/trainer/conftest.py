"""Small real things: samples of the slice, and a network that trains in a second."""

from pathlib import Path

import pytest

from services.trainer import slices
from services.trainer.cifar10 import LABELS
from services.trainer.datasets import Dataset, split
from services.trainer.recipes import TrainingOptions, make_options
from services.trainer.samples import Samples


@pytest.fixture(scope="session")
def slice_samples() -> tuple[Samples, Samples]:
    return slices.read_slice()


@pytest.fixture(scope="session")
def small_dataset(slice_samples: tuple[Samples, Samples]) -> Dataset:
    public, test = slice_samples
    train, validation = split(public.first_per_class(110), 10 / 110, seed=0)
    return Dataset("cifar10-slice", LABELS, train, validation, test.first_per_class(10))


@pytest.fixture(scope="session")
def small_options() -> TrainingOptions:
    return make_options(
        "quick",
        {
            "network_options": {"widths": [16, 24, 32], "depths": [0, 0, 1]},
            "epochs": 3,
            "batch_size": 64,
            "threads": 1,
            "precision": "float32",
        },
    )


@pytest.fixture
def empty_data_dir(tmp_path: Path) -> Path:
    return tmp_path / "no-data"
