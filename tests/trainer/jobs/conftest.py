"""Runs as real processes on pictures of the slice, and a few that are finished for all tests to look at."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from services.trainer.clock import now
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.samples import Samples
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options, overridden
from services.trainer.runs.folder import PROGRESS_FILE, RunFolder
from services.trainer.runs.progress import Progress, finished_epochs, iterate_progress, read_progress
from services.trainer.runs.record import Options, Outcome, Request, RunKind, RunState
from services.trainer.settings import TrainerSettings
from tests.trainer.forks import FORKS
from tests.trainer.jobs import process

TIMED = {"seconds", "images_per_second", "steps_per_second"}
"""Figures that are of the clock."""
LOOK_SECONDS = 0.001
SMALL: dict[str, Any] = {
    "pixels": {"width": 16, "height": 16},
    "network_options": {"widths": [16, 24, 32], "depths": [0, 0, 1]},
    "augmentation": {"translate": 1, "cutout": 0},
    "validation_fraction": 0.2,
    "epochs": 2,
    "batch_size": 16,
    "threads": 1,
    "precision": "float32",
    "log_every": 1,
}
DIVERGING: dict[str, Any] = {"weight_decay": 1.0, "warm_up": 0.0, "schedule": "constant", "epochs": 4}
"""With these, a rate of 100 makes weights 99 times as large at every step, until they are too large for a float."""
KINDS = {kind.options: kind for kind in RunKind}

Ends = Callable[[Progress], bool]


def write_pictures(folder: Path, samples: Samples, classes: Iterable[int], count: int, first: int = 0) -> None:
    """Write *count* pictures of each class as files, from the one numbered *first* on."""
    for number in classes:
        place = folder / LABELS[number]
        place.mkdir(parents=True)
        chosen = samples.images[samples.labels == number][first : first + count]
        for position, image in enumerate(chosen):
            Image.fromarray(image).save(place / f"{position:03}.png")


class Runs:
    """A folder of runs and one of data sets, as the settings of a trainer name them."""

    def __init__(self, root: Path) -> None:
        self.data = root / "data"
        self.settings = TrainerSettings(
            runs=root / "runs",
            data=self.data,
            data_roots=(str(self.data),),
            database=f"sqlite:///{root / 'trainer.db'}",
            blobs=root / "blobs",
            nice=0,
        )

    def folder(self, run_id: str) -> RunFolder:
        """Return where the files of a run lie."""
        return RunFolder(self.settings.runs / run_id)

    def create(self, run_id: str, options: Options, *, trusted: bool = False) -> RunFolder:
        """Write down what a run shall do."""
        kind = KINDS[type(options)]
        folder = self.folder(run_id)
        folder.create(Request(id=run_id, kind=kind, options=options, trusted=trusted, create_time=now()))
        return folder

    def start(
        self, folder: RunFolder, *, more_memory: int = 0, free_disk: int = 0, **variables: str
    ) -> ForkServerProcess:
        """Start the process of a run, with further *variables* in its environment."""
        arguments = (folder.path, self.settings.environment() | variables, more_memory, free_disk)
        started = FORKS.Process(target=process.run, args=arguments)
        started.start()
        return started

    def outcome(self, folder: RunFolder, **limits: int) -> Outcome:
        """Let a run come to its end."""
        started = self.start(folder, **limits)
        started.join()
        outcome = folder.outcome()
        assert outcome is not None, (folder / "log.txt").read_text()
        assert started.exitcode == 0
        return outcome

    def finish(self, run_id: str, options: Options, *, trusted: bool = False) -> RunFolder:
        """Let a run succeed."""
        folder = self.create(run_id, options, trusted=trusted)
        outcome = self.outcome(folder)
        assert outcome.state is RunState.SUCCEEDED, outcome.reason
        return folder

    def begin(self, run_id: str, options: Options) -> RunFolder:
        """Let a run finish an epoch and no more."""
        folder = self.create(run_id, options)
        assert self.signal(folder, signal.SIGKILL, at_epoch(1)) == -signal.SIGKILL
        return folder

    def refusal(self, run_id: str, options: Options, **limits: int) -> str:
        """Let a run fail before its first epoch, and return why."""
        folder = self.create(run_id, options)
        outcome = self.outcome(folder, **limits)
        assert outcome.state is RunState.FAILED
        assert told_epochs(folder) == {}
        return outcome.reason

    def signal(self, folder: RunFolder, number: int, when: Ends) -> int | None:
        """Start a run, send it a signal at the first entry of its progress that *when* holds of; return the exit code.

        Entries of an earlier process do not count.
        """
        told = Told(folder)
        started = self.start(folder)
        self.follow(started, told, when)
        assert started.pid is not None
        os.kill(started.pid, number)
        started.join()
        return started.exitcode

    def follow(self, started: ForkServerProcess, told: "Told", when: Ends) -> None:
        """Wait until *when* holds of something that the process of a run has told."""
        while not told.any(when):
            started.join(LOOK_SECONDS)
            log = told.folder / "log.txt"
            assert started.is_alive(), (told.folder.outcome(), log.read_text()[-3000:] if log.exists() else "")


class Told:
    """What the process of a run tells from now on; every line of its progress is read once."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._position = end_of(folder)
        self._entries: list[Progress] = []

    def any(self, when: Ends) -> bool:
        """Say whether *when* holds of an entry."""
        while more := read_progress(self.folder / PROGRESS_FILE, self._position):
            self._position = more[-1][0]
            self._entries += [entry for _, entry in more]
        return any(map(when, self._entries))


def entries_of(folder: RunFolder, position: int = 0) -> list[Progress]:
    """Return the progress of a run behind *position*."""
    return list(iterate_progress(folder / PROGRESS_FILE, position))


def end_of(folder: RunFolder) -> int:
    """Return the position behind the last whole line of a run's progress."""
    path = folder / PROGRESS_FILE
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def told_epochs(folder: RunFolder) -> dict[int, dict[str, float]]:
    """Return the figures of each finished epoch, without those of the clock."""
    finished = finished_epochs(entries_of(folder))
    return {
        epoch: {name: value for name, value in entry.figures.items() if name not in TIMED}
        for epoch, entry in finished.items()
    }


def told_steps(folder: RunFolder) -> list[int]:
    """Return the numbers of the steps in the order in which they were told."""
    return [entry.step for entry in entries_of(folder) if entry.kind == "step"]


def read_json(path: Path) -> Any:
    """Return the document in a file."""
    return json.loads(path.read_text())


def at_epoch(number: int) -> Ends:
    """An entry that tells of this epoch or a later one."""
    return lambda entry: entry.kind == "epoch" and entry.epoch >= number


def at_step(number: int) -> Ends:
    """An entry that tells of this step or a later one."""
    return lambda entry: entry.kind == "step" and entry.step >= number


def at_stage(name: str) -> Ends:
    """An entry that tells that a stage has begun."""
    return lambda entry: entry.kind == "stage" and entry.stage == name and entry.fraction == 0


Make = Callable[..., TrainingOptions]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, slice_samples: tuple[Samples, Samples]) -> Runs:
    """Runs, and data sets: `pictures` of airplanes, automobiles and birds, and others."""
    runs = Runs(tmp_path_factory.mktemp("trainer"))
    train, test = slice_samples
    for part, samples, count in (("train", train, 40), ("test", test, 20)):
        write_pictures(runs.data / "pictures" / part, samples, (0, 1, 2), count)
        write_pictures(runs.data / "newer" / part, samples, (0, 1, 2), 10, first=50)
        write_pictures(runs.data / "others" / part, samples, (3, 4, 5), 10)
    return runs


@pytest.fixture(scope="session")
def make(runs: Runs) -> Make:
    """A function that makes small options: `make({"epochs": 3})`."""

    def make(overrides: dict[str, Any] | None = None, dataset: str = "pictures") -> TrainingOptions:
        return make_options("quick", overridden(SMALL | {"dataset": str(runs.data / dataset)}, overrides or {}))

    return make


@pytest.fixture(scope="session")
def finished(runs: Runs, make: Make) -> RunFolder:
    """A run that came to its end without an interruption."""
    return runs.finish("finished", make({"epochs": 8, "keep": "best"}))


@pytest.fixture
def copied(runs: Runs, tmp_path: Path) -> Path:
    """A copy of the data set `pictures` that a test may change."""
    return Path(shutil.copytree(runs.data / "pictures", runs.data / tmp_path.name))
