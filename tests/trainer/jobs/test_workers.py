"""Runs of several workers, started as the service starts them: stopped, killed, and at their end all the same."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from services.trainer.runs.folder import RunFolder
from services.trainer.runs.launcher import LocalLauncher, Process
from services.trainer.runs.record import RunState
from tests.trainer.jobs.conftest import (
    DIVERGING,
    Ends,
    Make,
    Runs,
    at_epoch,
    end_of,
    entries_of,
    told_epochs,
    told_steps,
)

EPOCHS = 40
STEPS_PER_EPOCH = 6
LOOK_SECONDS = 0.005


async def launch(runs: Runs, folder: RunFolder) -> tuple[Process, int]:
    """Start a run, and return it with its process id."""
    with folder.locked() as lock:
        process = await LocalLauncher(runs.settings.environment()).start(folder, folder.request(), lock)
    pid = folder.signed()
    assert pid is not None
    return process, pid


async def told(folder: RunFolder, process: Process, when: Ends) -> None:
    """Wait for an entry of the progress from now on."""
    position = end_of(folder)  # of earlier lives
    end = asyncio.ensure_future(process.wait())
    while not any(map(when, entries_of(folder, position))):
        assert not end.done(), (folder.outcome(), (folder / "log.txt").read_text()[-3000:])
        await asyncio.sleep(LOOK_SECONDS)
    end.cancel()


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that *pid* has started, and theirs."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            yield child
            yield from descendants(child)


def worker_of(pid: int, word: str) -> int:
    """Return the newest process below *pid* with *word* among its arguments or its environment."""
    places = [(child, Path(f"/proc/{child}")) for child in descendants(pid)]
    found = [
        child
        for child, place in places
        if word.encode()
        in [*(place / "environ").read_bytes().split(b"\0"), *(place / "cmdline").read_bytes().split(b"\0")]
    ]
    return max(found)


def check_end(folder: RunFolder) -> None:
    """The run has succeeded with exactly the steps that it was to do."""
    outcome = folder.outcome()
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED, outcome.reason
    assert outcome.metrics["test_samples"] == 60
    assert list(told_epochs(folder)) == list(range(1, EPOCHS + 1))
    assert max(told_steps(folder)) == EPOCHS * STEPS_PER_EPOCH
    assert not list(folder.path.glob("checkpoint*"))


async def test_a_run_in_step_outlives_a_stop_and_the_death_of_a_worker(runs: Runs, make: Make) -> None:
    folder = runs.create("in-step", make({"epochs": EPOCHS, "workers": {"count": 2}}))
    process, _ = await launch(runs, folder)
    await told(folder, process, at_epoch(2))

    process.terminate()
    assert await process.wait() != 0  # torchrun's own code: the supervisor has asked, so it knows
    stopped = max(told_epochs(folder))
    assert (folder / "checkpoint.pt").exists()
    assert folder.outcome() is None
    assert not folder.is_held

    process, pid = await launch(runs, folder)
    await told(folder, process, at_epoch(stopped + 2))
    os.kill(worker_of(pid, "RANK=1"), signal.SIGKILL)
    assert await process.wait() == 0

    check_end(folder)
    # One for each life of the first worker, none for the others': they write nothing.
    assert len(list((folder / "tensorboard").iterdir())) == 3
    assert [entry.stage for entry in entries_of(folder)].count("export") == 2


async def test_a_failure_of_all_workers_is_told_in_its_sentence_and_not_tried_again(runs: Runs, make: Make) -> None:
    folder = runs.create("in-step-diverging", make(DIVERGING | {"lr": 100, "workers": {"count": 2}}))

    process, _ = await launch(runs, folder)
    assert await process.wait() == 0

    outcome = folder.outcome()
    assert outcome is not None
    assert outcome.reason.endswith("; lower learning_rate 100.0 or set gradient_clip")
    assert len(list((folder / "tensorboard").iterdir())) == 1


async def test_a_run_of_local_steps_outlives_the_death_of_a_worker(runs: Runs, make: Make) -> None:
    workers = {"count": 2, "synchronisation": "local-steps", "local_steps": 3}
    folder = runs.create("local-steps", make({"epochs": EPOCHS, "workers": workers}))
    process, pid = await launch(runs, folder)
    await told(folder, process, at_epoch(1))

    os.kill(worker_of(pid, "services.trainer.distributed.worker"), signal.SIGKILL)
    assert await process.wait() == 0

    check_end(folder)
    assert "worker died" in (folder / "log.txt").read_text()
