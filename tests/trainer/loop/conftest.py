"""A database with one task, and a clock that stands still until it is moved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.common.manifest import PreprocessSpec
from services.trainer.data.models import Model, create_model
from services.trainer.loop.log import EventLog
from services.trainer.storage.database import Database
from tests.conftest import Classifier, Serve

if TYPE_CHECKING:
    from tests.trainer.loop.home import Home

MODEL = "tiny"
LABELS = ("red", "green", "blue")
SPEC = PreprocessSpec(input="image", width=4, height=4)


class Clock:
    """Gives the time that it is set to."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_by(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def task(database: Database) -> Model:
    return create_model(database, MODEL, LABELS, SPEC.canonical_json())


@pytest.fixture
def log(database: Database, task: Model, clock: Clock) -> EventLog:
    return EventLog(database, clock)


@pytest.fixture
async def home(
    tmp_path: Path,
    serve: Serve,
    database: Database,
    task: Model,
    save_graph: Callable[..., Path],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Home]:
    """A trainer around one loop, and an inference service that serves version 1."""
    from services.inference.service import InferenceComponent
    from services.inference.settings import InferenceSettings
    from tests.trainer.loop.home import Home, numbered_classifier

    def classifier(number: int) -> Classifier:
        return numbered_classifier(save_graph, number)

    monkeypatch.setattr("services.trainer.runs.supervisor.LOOK_SECONDS", 0.02)
    classifier(0).install(tmp_path / "models", MODEL, 1)
    settings = InferenceSettings(repository=tmp_path / "models", device=device, threads=1)
    inference = await serve(lambda stop: InferenceComponent(settings, stop))
    home = Home(tmp_path, database, inference, classifier)
    await home.start()
    yield home
    await home.close()
