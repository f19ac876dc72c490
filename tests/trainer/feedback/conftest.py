"""A database with one model, pictures, and what to do with them."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.manifest import PreprocessSpec
from services.trainer.data.blobs import Blobs
from services.trainer.data.models import Model, create_model
from services.trainer.data.tables import ObservationRow, VoteRow
from services.trainer.feedback.observations import CapturedItem, Intake
from services.trainer.feedback.policy import (
    CapturePolicy,
    JudgingPolicy,
    PolicyGroup,
    RetentionPolicy,
    TrustPolicy,
)
from services.trainer.feedback.sifting import Sifter
from services.trainer.storage.database import Database
from tests.trainer.data.conftest import encoded

SPEC = PreprocessSpec(input="image", width=8, height=8)


class Groups(PolicyGroup):
    """A policy under which all that can be is to learn from; nothing is asked of the disk."""

    capture: CapturePolicy = CapturePolicy(least_free_bytes=0)
    judging: JudgingPolicy = JudgingPolicy(share=1e-9)
    trust: TrustPolicy = TrustPolicy()
    retention: RetentionPolicy = RetentionPolicy()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def model(database: Database) -> Model:
    return create_model(database, "pets", ["cat", "dog", "cow"], SPEC.canonical_json())


@pytest.fixture
def policies() -> dict[str, Groups]:
    """By model; tests may put others there."""
    return {"pets": Groups()}


@pytest.fixture
def intake(database: Database, blobs: Blobs, model: Model, policies: dict[str, Groups]) -> Iterator[Intake]:
    taking = Intake(database, blobs.folder, lambda name: policies[name])
    yield taking
    taking.close()


@pytest.fixture
def sifter(database: Database, policies: dict[str, Groups]) -> Sifter:
    ticks = itertools.count(0, 100)
    return Sifter(database, lambda name: policies[name], lambda: next(ticks))


def pictures(count: int, seed: int = 0) -> list[bytes]:
    """Return small files, each of other pixels."""
    generator = np.random.default_rng(seed)
    return [encoded(Image.fromarray(generator.integers(0, 256, (9, 7, 3), np.uint8))) for _ in range(count)]


def prediction_id(number: int) -> str:
    return f"{number:032x}"


def captured(number: int, image: bytes, label: str = "cat", **changes: object) -> CapturedItem:
    """Return an answer as the gateway would tell it."""
    fields: dict[str, object] = {
        "prediction_id": prediction_id(number),
        "model": "pets",
        "version": 1,
        "generation": 3,
        "preprocess_digest": SPEC.digest,
        "image": image,
        "labels": ((label, 0.5), ("other", 0.3)),
        "contributor": "anonymous",
        "time": f"2026-01-02T03:04:{number % 60:02d}.000Z",
        "strategy": "RANDOM",
        "probability": 0.25,
    }
    return CapturedItem(**(fields | changes))  # type: ignore[arg-type]


def observation(database: Database, number: int) -> ObservationRow:
    with database.read() as session:
        return session.get_one(ObservationRow, number)


def votes(database: Database) -> list[VoteRow]:
    with database.read() as session:
        return list(session.query(VoteRow).order_by(VoteRow.number))
