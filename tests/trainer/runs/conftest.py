"""A database, supervisors on it, and runs whose jobs are real processes that only count."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.trainer.clock import now
from services.trainer.options import RefitOptions
from services.trainer.recipes import make_options
from services.trainer.runs import supervisor as supervision
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.launcher import LocalLauncher
from services.trainer.runs.progress import Progress
from services.trainer.runs.record import Options, Request, RunKind, RunState
from services.trainer.runs.store import Run, RunStore
from services.trainer.runs.supervisor import Supervisor
from services.trainer.runs.watching import watch_run
from services.trainer.storage.database import Database

JOB = Path(__file__).with_name("job.py")
QUEUE = "service"


class CountingLauncher(LocalLauncher):
    """Starts jobs that only count."""

    def command(self, folder: RunFolder, options: Options) -> list[str]:
        return [sys.executable, str(JOB), str(folder.path)]


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'trainer.db'}")
    database.migrate()
    return database


@pytest.fixture
def store(database: Database) -> RunStore:
    return RunStore(database)


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def make_request(run_id: str, epochs: int = 3, **behaviour: Any) -> Request:
    """Return a request for a job of tests.trainer.runs.job."""
    options = make_options("quick", {"epochs": epochs, "network_options": behaviour})
    return Request(id=run_id, kind=RunKind.TRAINING, options=options, create_time=now())


Create = Callable[..., Run]


@pytest.fixture
def create(store: RunStore) -> Create:
    """A function that queues a run: `create("a", epochs=5, hold_at=3)`."""

    def create(run_id: str, epochs: int = 3, queue: str = QUEUE, **behaviour: Any) -> Run:
        return store.create(make_request(run_id, epochs, **behaviour), queue)

    return create


@pytest.fixture
def create_refit(store: RunStore) -> Callable[[str, str], Run]:
    """A function that queues a refit, whose job never ends by itself where its data set is "held"."""

    def create(run_id: str, dataset: str) -> Run:
        options = RefitOptions(source="run:a", dataset=dataset)
        return store.create(Request(id=run_id, kind=RunKind.REFIT, options=options, create_time=now()), QUEUE)

    return create


Supervise = Callable[..., Awaitable[Supervisor]]


@pytest.fixture
async def supervise(store: RunStore, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervise]:
    """A function that starts a supervisor, which is stopped in the end."""
    monkeypatch.setattr(supervision, "LOOK_SECONDS", 0.05)
    async with AsyncExitStack() as stack:

        async def start(*, queue: str = QUEUE, **settings: Any) -> Supervisor:
            supervisor = Supervisor(store, CountingLauncher({}), runs_dir, queue=queue, **settings)
            stack.push_async_callback(supervisor.stop)
            await supervisor.start()
            return supervisor

        yield start


class Follower:
    """Waits for what a run does, by following it as callers can."""

    def __init__(self, store: RunStore, runs_dir: Path) -> None:
        self._store = store
        self._runs_dir = runs_dir

    async def entry(self, run_id: str, kind: str, epoch: int = 0) -> Progress:
        """Return the first entry of *kind*, not before *epoch*."""
        async for update in watch_run(self._store, RunFolder(self._runs_dir / run_id), run_id):
            for entry in update.entries:
                if entry.kind == kind and entry.epoch >= epoch:
                    return entry
        raise AssertionError(f"run {run_id} ended without {kind} {epoch}: {self._store.get(run_id)}")

    async def state(self, run_id: str, state: RunState) -> Run:
        """Return the run once it is in *state*."""
        return await self._until(run_id, lambda run: run.state is state)

    async def attempt(self, run_id: str, number: int) -> Run:
        """Return the run once that many processes were started for it."""
        return await self._until(run_id, lambda run: run.attempts == number)

    async def reason(self, run_id: str) -> str:
        """Return why the run waits, once it says so."""
        return (await self._until(run_id, lambda run: bool(run.reason))).reason

    async def _until(self, run_id: str, holds: Callable[[Run], bool]) -> Run:
        async for update in watch_run(self._store, RunFolder(self._runs_dir / run_id), run_id):
            if update.run is not None and holds(update.run):
                return update.run
        raise AssertionError(f"run {run_id} ended: {self._store.get(run_id)}")

    async def end(self, run_id: str) -> tuple[Run, list[Progress]]:
        """Return the run once it has ended, and all of its progress."""
        run, entries = None, []
        async for update in watch_run(self._store, RunFolder(self._runs_dir / run_id), run_id):
            run = update.run or run
            entries += update.entries
        assert run is not None
        return run, entries


@pytest.fixture
def follow(store: RunStore, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Follower:
    monkeypatch.setattr("services.trainer.runs.watching.LOOK_SECONDS", 0.02)
    return Follower(store, runs_dir)
