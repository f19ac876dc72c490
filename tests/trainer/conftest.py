"""Small real things: samples of the slice, a network that trains in a second, and a run that has succeeded."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from services.trainer.data import slices
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.datasets import Dataset, split
from services.trainer.data.samples import Samples
from services.trainer.jobs.train import Report, run_training
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.runs.record import Run, open_run, started_run


class Reports(list[tuple[str, float, dict[str, float]]]):
    """Keeps every report."""

    def __call__(self, stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        self.append((stage, fraction, dict(metrics)))


def run_in(folder: Path, options: TrainingOptions, dataset: Dataset, report: Report) -> Run:
    """Do a whole run, as `aimass train` does."""
    with started_run(folder, open_run(folder, options)) as run:
        return run_training(run, dataset, folder, report)


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


@pytest.fixture(scope="session")
def run_options(small_options: TrainingOptions) -> TrainingOptions:
    return small_options.model_copy(update={"epochs": 2, "batch_size": 256})


@pytest.fixture(scope="session")
def reports() -> Reports:
    """What the finished run reported."""
    return Reports()


@pytest.fixture(scope="session")
def finished(
    run_options: TrainingOptions, small_dataset: Dataset, reports: Reports, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a run that succeeded."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run_in(folder, run_options, small_dataset, reports)
    return folder
