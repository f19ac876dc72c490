"""Small real things: samples of the slice, and options for a network that trains in a second."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.manifest import PreprocessSpec
from services.trainer.data import slices
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.datasets import Dataset
from services.trainer.data.samples import Samples
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.storage.database import Database
from tests.trainer.splits import split


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'trainer.db'}")
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def slice_samples() -> tuple[Samples, Samples]:
    return slices.read_slice()


@pytest.fixture(scope="session")
def small_dataset(slice_samples: tuple[Samples, Samples]) -> Dataset:
    public, test = slice_samples
    train, validation = split(public.first_per_class(110), 10 / 110, seed=0)
    spec = PreprocessSpec(input="image", width=32, height=32)
    return Dataset("cifar10-slice", LABELS, spec, train, validation, test.first_per_class(10))


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
