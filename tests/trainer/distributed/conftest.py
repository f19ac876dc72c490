import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from services.trainer.options import TrainingOptions
from services.trainer.training.loop import train
from services.trainer.training.results import EpochResult
from tests.trainer.distributed.task import plain_options, task_of


@pytest.fixture(scope="session")
def options() -> TrainingOptions:
    return plain_options({"workers": {"count": 2}})


@pytest.fixture(scope="session")
def history_alone(options: TrainingOptions) -> list[EpochResult]:
    """What one process makes of these options."""
    task = task_of(options)
    return train(task.model, task.dataset, options)


@pytest.fixture
def folder(tmp_path: Path, options: TrainingOptions) -> Path:
    (tmp_path / "options.json").write_text(options.model_dump_json())
    return tmp_path


@pytest.fixture
def events(folder: Path) -> Iterator[TextIO]:
    """Lines that the processes of the run in *folder* write as they go on."""
    os.mkfifo(folder / "events")
    # Open for writing as well: the end of one writer is not the end of the events.
    with open(os.open(folder / "events", os.O_RDWR)) as file:
        yield file
