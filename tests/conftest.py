"""Small real things that the tests share: a graph, a repository, servers on free ports."""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import hypothesis
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import uvloop
from onnx import TensorProto, helper

from services.common.channels import open_channel
from services.common.manifest import Golden, GoldenTensor, Graph, Manifest, PreprocessSpec, digest_of
from services.common.server import Component, GrpcServer, StopSignal
from services.inference.service import InferenceComponent
from services.inference.settings import InferenceSettings
from tests.end_to_end.suite import DEVICE

# Otherwise grpc ends its poller whenever the last server or channel is collected, and waits for it in the collector.
grpc.aio.init_grpc_aio()

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads that wait for one another by turning round keep the other worker's tests from the processor.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The first text that it draws on a new machine takes seconds: it makes a table of all characters.
hypothesis.settings.register_profile("suite", suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None)
hypothesis.settings.load_profile("suite")

MAX_MESSAGE_BYTES = 4 * 1024 * 1024


@pytest.fixture(scope="session")
def device() -> str:
    """Where the services' graphs run."""
    return DEVICE


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Let tests that share something slow share a worker."""
    from tests.scheduling import SharingScheduling

    return SharingScheduling(config, log)


def pytest_asyncio_loop_factories(config, item):
    """Run every asynchronous test on the loop that the services run on."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True)
class Classifier:
    """A graph on disk, with its manifest."""

    path: Path
    manifest: Manifest

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Return what bare ONNX Runtime gives: probabilities, shape (batch, classes)."""
        return ort.InferenceSession(self.path).run(None, {"image": images})[0]

    def install(self, repository: Path, model: str, version: int) -> Path:
        """Put the version into *repository*, as an operator would, and return its folder."""
        folder = repository / model / str(version)
        folder.mkdir(parents=True)
        shutil.copy(self.path, folder / "model.onnx")
        (folder / "model.json").write_text(self.manifest.to_json())
        return folder


@pytest.fixture(scope="session")
def save_graph(tmp_path_factory):
    """A function that writes a checked graph to disk: save_graph(nodes, inputs, outputs, constants) -> path."""

    def save(
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        constants: dict[str, np.ndarray] | None = None,
    ) -> Path:
        initializers = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
        graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
        onnx.checker.check_model(model)
        path = tmp_path_factory.mktemp("graph") / "model.onnx"
        onnx.save(model, path)
        return path

    return save


@pytest.fixture(scope="session")
def tiny_classifier(save_graph: Callable[..., Path]) -> Classifier:
    """Says which of red, green and blue a 4x4 picture has most of: uint8 NHWC in, softmax probabilities out."""
    path = save_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "sides"], ["means"], keepdims=0),
            helper.make_node("Div", ["means", "warmth"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        {"sides": np.array([1, 2]), "warmth": np.float32(50)},
    )
    spec = PreprocessSpec(input="image", width=4, height=4)
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    data = path.read_bytes()
    classifier = Classifier(path, Manifest())
    manifest = Manifest(
        labels=("red", "green", "blue"),
        preprocess=spec,
        preprocess_digest=spec.digest,
        graph=Graph(sha256=digest_of(data), size_bytes=len(data)),
        create_time="2026-01-02T03:04:05Z",
        metrics={"test_accuracy": 0.875},
        golden=Golden(
            inputs=(GoldenTensor.from_array("image", "UINT8", images),),
            outputs=(GoldenTensor.from_array("probabilities", "FP32", classifier.infer(images)),),
        ),
    )
    return Classifier(path, manifest)


@pytest.fixture
def model_repository(tmp_path: Path, tiny_classifier: Classifier) -> Path:
    """A repository that holds the tiny classifier as version 1 of model `tiny`."""
    tiny_classifier.install(tmp_path / "models", "tiny", 1)
    return tmp_path / "models"


@dataclass(frozen=True)
class Served:
    """A component behind its own real server."""

    component: Component
    server: GrpcServer
    address: str
    channel: grpc.aio.Channel
    stop: StopSignal


Serve = Callable[[Callable[[StopSignal], Component]], Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """A function that starts what `make(stop)` returns on a free port: `served = await serve(make)`."""
    async with AsyncExitStack() as stack:

        async def start(make: Callable[[StopSignal], Component]) -> Served:
            stop = StopSignal()
            component = make(stop)
            server = GrpcServer("127.0.0.1:0", component.services, max_message_bytes=MAX_MESSAGE_BYTES)
            address = f"127.0.0.1:{await server.start()}"
            stack.push_async_callback(component.close)
            stack.push_async_callback(server.stop, 0)
            stack.callback(stop.set_drained)
            await component.start()
            await server.set_ready(True)
            channel = await stack.enter_async_context(open_channel(address))
            return Served(component, server, address, channel, stop)

        yield start


@pytest.fixture
async def inference(serve: Serve, model_repository: Path, device: str) -> Served:
    """The real inference service with model `tiny` in it."""
    settings = InferenceSettings(repository=model_repository, device=device, threads=1)
    return await serve(lambda stop: InferenceComponent(settings, stop))
