"""Runs that are killed or stopped at moments that a random number chooses, and go on."""

import os
import random
import select
import signal
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from services.trainer.data.samples import Samples
from services.trainer.evaluation.card import ModelCard
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.launcher import INTERRUPTED
from services.trainer.runs.progress import Progress
from services.trainer.runs.record import RunState
from tests.trainer.forks import FORKS
from tests.trainer.jobs import process
from tests.trainer.jobs.conftest import (
    Make,
    Runs,
    at_epoch,
    at_stage,
    at_step,
    end_of,
    entries_of,
    read_json,
    told_epochs,
    told_steps,
)

STEPS_PER_EPOCH = 6
EPOCHS = 8


@pytest.fixture
def moments() -> random.Random:
    """Chooses moments; pytest shows the seed where a test fails, and RANDOM_SEED sets it."""
    seed = int(os.environ.get("RANDOM_SEED", random.randrange(10_000)))
    print(f"RANDOM_SEED={seed}")
    return random.Random(seed)


def check_whole(folder: RunFolder) -> None:
    """Read every file that is not written aside."""
    readers = {
        ".json": read_json,
        ".pt": lambda path: torch.load(path, weights_only=True),
        ".onnx": lambda path: onnx.checker.check_model(onnx.load(path), full_check=True),
    }
    for path in folder.path.iterdir():
        if path.suffix in readers:
            readers[path.suffix](path)
    if (folder / "card.json").exists():
        ModelCard.model_validate_json((folder / "card.json").read_bytes())
    entries_of(folder)


def assert_equal_ends(folder: RunFolder, finished: RunFolder, images: np.ndarray) -> None:
    outcome = folder.outcome()
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED, outcome.reason
    assert told_epochs(folder) == told_epochs(finished)
    graphs = [onnxruntime.InferenceSession(each / "model.onnx") for each in (folder, finished)]
    found, expected = (graph.run(None, {"image": images})[0] for graph in graphs)
    assert np.array_equal(found, expected)
    assert not list(folder.path.glob("*.pt.part"))
    assert {path.name for path in folder.path.glob("*.pt")} == {"weights.pt"}


@pytest.fixture
def images(slice_samples: tuple[Samples, Samples]) -> np.ndarray:
    return slice_samples[1].images[:500, 8:24, 8:24].copy()


def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened(
    runs: Runs, make: Make, finished: RunFolder, images: np.ndarray, moments: random.Random
) -> None:
    folder = runs.create("killed", make({"epochs": EPOCHS, "keep": "best"}))
    writing = moments.randint(2, 4)

    def at_checkpoint(entry: Progress) -> bool:
        return at_epoch(writing)(entry) and (folder / "checkpoint.pt.part").exists()

    for moment in (
        at_step(moments.randint(1, STEPS_PER_EPOCH)),
        at_checkpoint,
        at_step(moments.randint(STEPS_PER_EPOCH * (EPOCHS - 2), STEPS_PER_EPOCH * EPOCHS - 1)),
        at_stage("export"),
        at_stage("evaluate"),
    ):
        before, position = told_epochs(folder), end_of(folder)
        assert runs.signal(folder, signal.SIGKILL, moment) == -signal.SIGKILL
        check_whole(folder)
        again = [entry.epoch for entry in entries_of(folder, position) if entry.kind != "stage"]
        assert not again or min(again) > max(before, default=0)  # no finished epoch is done again
        assert folder.outcome() is None
    runs.outcome(folder)

    assert_equal_ends(folder, finished, images)


def test_a_stopped_run_goes_on_at_the_next_step(
    runs: Runs, make: Make, finished: RunFolder, images: np.ndarray, moments: random.Random
) -> None:
    folder = runs.create("stopped", make({"epochs": EPOCHS, "keep": "best"}))

    assert runs.signal(folder, signal.SIGTERM, at_step(moments.randint(1, 40))) == INTERRUPTED
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert len(saved["history"]) * STEPS_PER_EPOCH + saved["batch"] == told_steps(folder)[-1]
    assert runs.signal(folder, signal.SIGTERM, at_stage("export")) == INTERRUPTED  # at once: nothing is lost by it
    assert entries_of(folder)[-1].fraction < 1
    runs.outcome(folder)

    assert told_steps(folder) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))  # none is done twice
    assert_equal_ends(folder, finished, images)


def test_a_run_refuses_to_go_on_with_other_samples(runs: Runs, make: Make, copied: Path) -> None:
    folder = runs.begin("changed", make(dataset=copied.name))
    (copied / "train" / "bird" / "000.png").unlink()

    outcome = runs.outcome(folder)

    assert outcome.state is RunState.FAILED
    assert outcome.reason == (
        f"run 'changed' was begun with other samples of {copied}; bring them back, or begin a new run"
    )
    assert list(told_epochs(folder)) == [1]


def test_an_epoch_is_told_once_however_long_the_progress_is(runs: Runs, make: Make) -> None:
    folder = runs.begin("long", make({"epochs": 3}))
    line = Progress(time=0, kind="step", stage="train", fraction=0.5, epoch=1, step=6).model_dump_json() + "\n"
    with (folder / "progress.jsonl").open("r+") as file:
        told = file.read()
        file.seek(0)
        file.write(line * (2**21 // len(line)) + told)
    runs.signal(folder, signal.SIGKILL, at_epoch(2))

    epochs = [each for each in (folder / "progress.jsonl").read_text().splitlines() if '"kind":"epoch"' in each]
    assert ['"epoch":1,' in each for each in epochs].count(True) == 1


def test_workers_end_with_torchrun_also_where_it_is_killed() -> None:
    ours, theirs = FORKS.Pipe()
    agent = FORKS.Process(target=process.leave_a_worker, args=(theirs,))
    agent.start()
    worker = os.pidfd_open(ours.recv())

    agent.kill()
    ended, _, _ = select.select([worker], [], [], 20)
    os.close(worker)

    assert ended, "a worker outlives torchrun"
