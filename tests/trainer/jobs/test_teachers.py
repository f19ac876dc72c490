import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
import torch

from services.common.errors import Conflict, InvalidInput, NotFound, NotReady
from services.trainer.data.samples import Samples
from services.trainer.jobs.teachers import graph_teacher, open_teacher, served_teacher, trained_teacher
from services.trainer.runs.folder import RunFolder
from services.trainer.settings import TrainerSettings
from tests.trainer.jobs.conftest import Runs

COLOURS = ("red", "green", "blue")
CLASSES = ("airplane", "automobile", "bird")
"""Of the finished run."""
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (150, 4, 4, 3), np.uint8))


@pytest.fixture
def ask(inference) -> Callable:
    """A function that makes a served teacher of model `tiny` and asks it."""

    async def ask(images=IMAGES, *, model="tiny", version=1, labels=COLOURS):
        def work():
            with grpc.insecure_channel(inference.address) as channel:
                return served_teacher(channel, model, version, labels)(images)

        return await asyncio.to_thread(work)

    return ask


@pytest.fixture
def graph(tiny_classifier, save_graph, tmp_path) -> Path:
    """The graph of model `tiny`, which names its labels."""
    proto = onnx.load(tiny_classifier.path)
    onnx.helper.set_model_props(proto, {"labels": json.dumps(COLOURS)})
    onnx.save(proto, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


async def test_a_served_version_teaches_what_its_graph_says(ask, tiny_classifier) -> None:
    found = await ask()

    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), tiny_classifier.infer(IMAGES.numpy()), atol=1e-6)


async def test_a_teacher_answers_batches_of_any_size_in_order(ask) -> None:
    whole = await ask()

    parts = [await ask(IMAGES[at : at + 7]) for at in range(0, 21, 7)]

    assert torch.allclose(torch.cat(parts), whole[:21], atol=1e-6)


async def test_an_unknown_version_is_not_found(ask) -> None:
    with pytest.raises(NotFound, match="inference has no tiny@7; `aimass models` lists what it serves"):
        await ask(version=7)


async def test_an_unknown_model_is_not_found(ask) -> None:
    with pytest.raises(NotFound, match=r"inference has no huge@1: .*; `aimass models` lists what it serves"):
        await ask(model="huge")


@pytest.mark.parametrize("labels", [("red", "green"), ("green", "red", "blue")])
async def test_other_labels_are_refused(ask, labels) -> None:
    with pytest.raises(Conflict, match="teacher tiny@1 tells red, green, blue apart, the student "):
        await ask(labels=labels)


async def test_images_of_another_size_are_refused(ask) -> None:
    with pytest.raises(InvalidInput, match="teacher tiny@1 does not take the student's images: "):
        await ask(torch.zeros(2, 5, 5, 3, dtype=torch.uint8))


def test_inference_that_is_away_is_not_ready(unused_tcp_port: int) -> None:
    with (
        grpc.insecure_channel(f"127.0.0.1:{unused_tcp_port}") as channel,
        pytest.raises(NotReady, match=r"teacher tiny@1 does not answer: .*; start inference and resume the run"),
    ):
        served_teacher(channel, "tiny", 1, COLOURS)


def test_a_graph_teaches_what_it_says(graph: Path, tiny_classifier) -> None:
    found = graph_teacher(graph, COLOURS, threads=1)(IMAGES)

    assert np.allclose(found.numpy(), tiny_classifier.infer(IMAGES.numpy()), atol=1e-6)


def test_a_graph_with_other_labels_is_refused(graph: Path) -> None:
    with pytest.raises(Conflict, match="tells red, green, blue apart, the student red, blue"):
        graph_teacher(graph, ("red", "blue"), threads=1)


@pytest.fixture
def pictures(slice_samples: tuple[Samples, Samples]) -> torch.Tensor:
    """Images as the finished run takes them."""
    return torch.from_numpy(slice_samples[1].images[:100, 8:24, 8:24].copy())


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_a_run_teaches_with_its_weights_what_its_graph_says(
    runs: Runs, finished: RunFolder, pictures: torch.Tensor, precision: str, tolerance: float
) -> None:
    with open_teacher("run:finished", CLASSES, runs.settings, precision=precision) as teacher:
        found = teacher(pictures)
    expected = graph_teacher(finished / "model.onnx", CLASSES)(pictures)

    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    assert not torch.equal(found, expected)  # the weights have answered
    assert torch.allclose(found, expected, atol=tolerance)


def test_a_run_without_weights_teaches_with_its_graph(runs: Runs, finished: RunFolder, pictures: torch.Tensor) -> None:
    shutil.copytree(finished.path, runs.settings.runs / "weightless", ignore=shutil.ignore_patterns("weights.pt"))

    with open_teacher("run:weightless", CLASSES, runs.settings, threads=1) as teacher:
        found = teacher(pictures)

    assert torch.equal(found, graph_teacher(finished / "model.onnx", CLASSES, threads=1)(pictures))


def test_a_run_whose_network_is_code_teaches_with_its_graph_where_no_code_may_run(
    runs: Runs, finished: RunFolder, pictures: torch.Tensor
) -> None:
    folder = Path(shutil.copytree(finished.path, runs.settings.runs / "own-code"))
    content = torch.load(folder / "weights.pt", weights_only=True)
    torch.save({**content, "network": "tests.trainer.networks.own:Own"}, folder / "weights.pt")

    with open_teacher("run:own-code", CLASSES, runs.settings, threads=1) as teacher:
        found = teacher(pictures)

    assert torch.equal(found, graph_teacher(finished / "model.onnx", CLASSES, threads=1)(pictures))


def test_weights_with_other_labels_are_refused(finished: RunFolder) -> None:
    with pytest.raises(Conflict, match="teacher finished tells airplane, automobile, bird apart, the student "):
        trained_teacher(finished / "weights.pt", COLOURS, "float32")


@pytest.mark.parametrize("source", ["tiny", "tiny@", "@1", "tiny@one", "tiny@-1"])
def test_a_source_that_names_nothing_is_refused(source: str) -> None:
    with pytest.raises(InvalidInput, match="names no model; write run:<id> or <model>@<version>"):
        open_teacher(source, COLOURS, TrainerSettings()).__enter__()


async def test_a_teacher_is_opened_by_name(inference, tiny_classifier) -> None:
    settings = TrainerSettings(inference_address=inference.address)

    def work():
        with open_teacher("tiny@1", COLOURS, settings) as teacher:
            return teacher(IMAGES)

    assert np.allclose((await asyncio.to_thread(work)).numpy(), tiny_classifier.infer(IMAGES.numpy()), atol=1e-6)
