"""Runs that start from a conversion, which has no weights of its own."""

import asyncio
import shutil
from collections.abc import Iterator

import grpc
import pytest

from services.common.manifest import PreprocessSpec
from services.trainer.data.models import create_model
from services.trainer.data.tables import SnapshotRow
from services.trainer.jobs.origins import find_champion
from services.trainer.options import ConversionOptions
from services.trainer.publishing import publish_version
from services.trainer.runs.folder import RunFolder
from services.trainer.storage.database import Database
from tests.conftest import Served
from tests.trainer.jobs.conftest import Make, Runs, read_json


@pytest.fixture(scope="module")
def converted(runs: Runs, finished: RunFolder) -> RunFolder:
    return runs.finish("origins-converted", ConversionOptions(source="run:finished", threads=1))


def test_a_conversion_is_converted_from_what_it_was_made_from(runs: Runs, converted: RunFolder) -> None:
    again = runs.finish("origins-again", ConversionOptions(source="run:origins-converted", threads=1))

    assert read_json(again / "card.json")["parent"] == read_json(converted / "card.json")["parent"]
    assert (again / "model.onnx").read_bytes() == (converted / "model.onnx").read_bytes()


def test_a_run_starts_from_the_weights_that_were_converted_and_learns_from_the_graph(
    runs: Runs, make: Make, converted: RunFolder
) -> None:
    source = "run:origins-converted"
    options = make({"start_from": source, "distillation": {"teacher": source}, "epochs": 1})

    further = runs.finish("origins-further", options)

    assert read_json(further / "model.json")["training"]["options"]["start_from"] == source


def test_weights_that_are_gone_are_named(runs: Runs, make: Make, converted: RunFolder) -> None:
    folder = runs.create("origins-orphan", ConversionOptions(source="run:deleted"))
    for name in ("model.json", "model.onnx", "card.json", "learnt.npy"):
        shutil.copy(converted / name, folder / name)

    reason = runs.refusal("origins-none", make({"start_from": "run:origins-orphan"}))

    assert reason.startswith(
        "run:origins-orphan was converted, and its weights are those of run:deleted, which is gone (run 'deleted' is "
    )
    assert reason.endswith("bring that run back, or name a model that was trained here")


@pytest.fixture
def snapshot(runs: Runs) -> Iterator[str]:
    """Of the samples of model `vehicles`."""
    spec = PreprocessSpec(input="image", width=16, height=16)
    database = Database(runs.settings.database.get_secret_value())
    database.migrate()
    create_model(database, "vehicles", ("airplane", "automobile", "bird"), spec.canonical_json())
    digest = "5" * 64
    with database.begin() as session:
        row = SnapshotRow(
            digest=digest, model="vehicles", base="", base_digest="", base_drawn=[], counts={}, create_time="2026-01-01"
        )
        session.add(row)
    yield f"snapshot:{digest}"
    database.close()


async def test_what_learns_from_a_snapshot_is_compared_with_what_serves_its_model(
    runs: Runs, finished: RunFolder, snapshot: str, inference: Served
) -> None:
    settings = runs.settings.model_copy(update={"inference_address": inference.address})
    away = runs.settings.model_copy(update={"inference_address": "127.0.0.1:9"})

    def publish() -> None:
        with grpc.insecure_channel(inference.address) as channel:
            publish_version(channel, "vehicles", finished.path)

    assert await asyncio.to_thread(find_champion, snapshot, settings) is None
    await asyncio.to_thread(publish)
    champion = await asyncio.to_thread(find_champion, snapshot, settings)

    assert champion is not None
    assert champion.path == finished.path
    assert await asyncio.to_thread(find_champion, snapshot, away) is None
    assert await asyncio.to_thread(find_champion, "pictures", settings) is None
