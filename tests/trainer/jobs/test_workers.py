"""Runs of several workers, started as the service starts them: stopped, killed, and at their end all the same."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.trainer.runs.folder import RunFolder
from services.trainer.runs.launcher import LocalLauncher, Process
from services.trainer.runs.record import RunState
from tests.trainer.jobs.conftest import (
    DIVERGING,
    Ends,
    Make,
    Runs,
    Told,
    at_epoch,
    at_stage,
    at_step,
    entries_of,
    told_epochs,
    told_steps,
)

EPOCHS = 16
"""Long enough that no run is over when one of its workers is killed."""
STEPS_PER_EPOCH = 6
LOOK_SECONDS = 0.005


@dataclass
class Launched:
    """A run that was started as the service does it."""

    folder: RunFolder
    process: Process
    pid: int
    progress: Told

    async def told(self, when: Ends) -> None:
        """Wait for an entry of the progress since the start."""
        end = asyncio.ensure_future(self.process.wait())
        while not self.progress.any(when):
            assert not end.done(), (self.folder.outcome(), (self.folder / "log.txt").read_text()[-3000:])
            await asyncio.sleep(LOOK_SECONDS)
        end.cancel()


Launch = Callable[[RunFolder], Awaitable[Launched]]


@pytest.fixture
async def launch(runs: Runs) -> AsyncIterator[Launch]:
    """A function that starts a run; what is left of it in the end is killed."""
    launched: list[Launched] = []

    async def launch(folder: RunFolder) -> Launched:
        progress = Told(folder)
        with folder.locked() as lock:
            process = await LocalLauncher(runs.settings.environment()).start(folder, folder.request(), lock)
        pid = folder.signed()
        assert pid is not None
        launched.append(Launched(folder, process, pid, progress))
        return launched[-1]

    yield launch
    for each in launched:
        each.process.kill()
        await each.process.wait()


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


def check_end(folder: RunFolder, steps: int) -> None:
    """The run has succeeded with exactly the steps that it was to do."""
    outcome = folder.outcome()
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED, outcome.reason
    assert outcome.metrics["test_samples"] == 60
    assert list(told_epochs(folder)) == list(range(1, EPOCHS + 1))
    assert max(told_steps(folder)) == steps
    assert not list(folder.path.glob("checkpoint*"))


async def test_a_run_in_step_outlives_a_stop_and_the_death_of_a_worker(runs: Runs, make: Make, launch: Launch) -> None:
    folder = runs.create("in-step", make({"epochs": EPOCHS, "workers": {"count": 2}}))
    run = await launch(folder)
    await run.told(at_epoch(2))

    run.process.terminate()
    assert await run.process.wait() != 0  # torchrun's own code: the supervisor has asked, so it knows
    stopped = max(told_epochs(folder))
    assert (folder / "checkpoint.pt").exists()
    assert folder.outcome() is None
    assert not folder.is_held

    run = await launch(folder)
    await run.told(at_step(1))
    worker = worker_of(run.pid, "RANK=1")
    await run.told(at_epoch(stopped + 2))
    os.kill(worker, signal.SIGKILL)
    assert await run.process.wait() == 0

    check_end(folder, EPOCHS * STEPS_PER_EPOCH)
    # One for each life of the first worker, none for the others': they write nothing.
    assert len(list((folder / "tensorboard").iterdir())) == 3
    assert len([entry for entry in entries_of(folder) if at_stage("export")(entry)]) == 1


def test_the_first_worker_tells_what_all_fail_of_and_none_tries_again(
    runs: Runs, make: Make, unused_tcp_port: int
) -> None:
    folder = runs.create("in-step-diverging", make(DIVERGING | {"lr": 100, "workers": {"count": 2}}))
    torchrun = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(unused_tcp_port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RUN_ID": "a",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }

    workers = [runs.start(folder, **torchrun, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    for worker in workers:
        worker.join()
    outcome = folder.outcome()
    told = len(entries_of(folder))
    again = runs.start(folder, **torchrun, RANK="0", LOCAL_RANK="0")  # waits for no other worker
    again.join()

    assert outcome is not None
    assert outcome.reason.endswith("; lower learning_rate 100.0 or set gradient_clip")
    assert (again.exitcode, len(entries_of(folder))) == (0, told)
    assert len(list((folder / "tensorboard").iterdir())) == 1  # of the first worker


async def test_a_run_of_local_steps_outlives_the_death_of_a_worker(runs: Runs, make: Make, launch: Launch) -> None:
    workers = {"count": 2, "synchronisation": "local-steps", "local_steps": 3}
    folder = runs.create("local-steps", make({"epochs": EPOCHS, "workers": workers}))
    run = await launch(folder)
    await run.told(at_step(1))
    worker = worker_of(run.pid, "services.trainer.distributed.worker")
    await run.told(at_epoch(2))

    os.kill(worker, signal.SIGKILL)
    assert await run.process.wait() == 0

    check_end(folder, 2 * EPOCHS * STEPS_PER_EPOCH)  # of half a batch
    assert "worker died" in (folder / "log.txt").read_text()
