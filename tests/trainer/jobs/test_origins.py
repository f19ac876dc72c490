"""Runs that start from a conversion, which has no weights of its own."""

import shutil

import pytest

from services.trainer.options import ConversionOptions
from services.trainer.runs.folder import RunFolder
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
