"""Graphs of one node, and services with models of a test's own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from aimass.inference.v1.lifecycle_pb2 import PublishVersionHeader, PublishVersionRequest
from aimass.open_inference import grpc_service_pb2 as pb
from services.common.manifest import Manifest
from services.inference.service import InferenceComponent
from services.inference.settings import InferenceSettings


@pytest.fixture(scope="session")
def one_node(save_graph):
    """A function that saves the graph `y = op(before, x, after)`, where the constants before and after are optional."""

    def save(op: str, shape, *, datatype="FLOAT", out=None, out_datatype=None, before=None, after=None, **attributes):
        constants = {name: value for name, value in (("before", before), ("after", after)) if value is not None}
        names = [name for name in ("before", "x", "after") if name == "x" or name in constants]
        element, out_element = (getattr(TensorProto, each) for each in (datatype, out_datatype or datatype))
        return save_graph(
            [helper.make_node(op, names, ["y"], **attributes)],
            [helper.make_tensor_value_info("x", element, shape)],
            [helper.make_tensor_value_info("y", out_element, shape if out is None else out)],
            constants,
        )

    return save


@pytest.fixture
def add_model(model_repository: Path):
    """A function that drops a bare graph into the repository, as an operator would."""

    def add(path: Path, model: str, version: int = 1, config: str | None = None) -> Path:
        folder = model_repository / model / str(version)
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "model.onnx")
        if config is not None:
            (folder.parent / "config.pbtxt").write_text(config)
        return folder

    return add


@pytest.fixture
def settings(model_repository: Path, device: str):
    """A function that returns the service's settings for the repository."""
    base = {"repository": model_repository, "device": device, "threads": 1, "poll_seconds": 0}
    return lambda **fields: InferenceSettings(**base | fields)


@pytest.fixture
def start_inference(serve, settings):
    """A function that starts the service on what lies in the repository by then."""

    async def start(**fields):
        return await serve(lambda stop: InferenceComponent(settings(**fields), stop))

    return start


@pytest.fixture(scope="session")
def upload():
    """A function that returns the messages of a publication."""

    def messages(model: str, manifest: Manifest | bytes, graph: bytes, chunk: int = 100) -> list[PublishVersionRequest]:
        document = manifest if isinstance(manifest, bytes) else manifest.to_json().encode()
        return [
            PublishVersionRequest(header=PublishVersionHeader(model=model, manifest=document)),
            *(PublishVersionRequest(chunk=graph[at : at + chunk]) for at in range(0, len(graph), chunk)),
        ]

    return messages


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Five pictures for the tiny classifier: red, green, blue, black and noise."""
    images = np.zeros((5, 4, 4, 3), np.uint8)
    for channel in range(3):
        images[channel, ..., channel] = 255
    images[4] = np.random.default_rng(7).integers(0, 256, (4, 4, 3), np.uint8)
    return images


@pytest.fixture(scope="session")
def infer_request():
    """A function that returns a raw request for the tiny classifier."""

    def make(images: np.ndarray, **fields) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest(**{"model_name": "tiny", "raw_input_contents": [images.tobytes()]} | fields)
        request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
        return request

    return make
