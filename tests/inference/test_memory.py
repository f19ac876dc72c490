"""Resident memory is flat: requests and versions that have come and gone leave nothing behind."""

import asyncio
import gc

import numpy as np
import pytest

from aimass.inference.v1 import lifecycle_pb2 as life
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.manifest import Graph, Manifest, digest_of
from services.inference.memory import give_back_memory, resident_bytes

MIB = 1024 * 1024
REQUESTS, AT_ONCE, TENSOR_BYTES = 800, 8, MIB // 16
SWAPS, VERSION_BYTES = 10, 4 * MIB
BOUND_BYTES = 20 * MIB
"""May be added by one half of the test. One tensor kept per request would add 50 MiB, one graph per swap 40 MiB; what
is added where nothing leaks, such as pieces of the heap between what lives, is a third of the bound at most."""


@pytest.fixture
async def channel(start_inference, add_model, one_node):
    """A server with a model that negates large tensors."""
    add_model(one_node("Neg", ["n", TENSOR_BYTES // 4]), "large")
    return (await start_inference()).channel


async def infer(channel) -> None:
    stub = GRPCInferenceServiceStub(channel)
    request = pb.ModelInferRequest(model_name="large", raw_input_contents=[bytes(TENSOR_BYTES)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, TENSOR_BYTES // 4])
    for _ in range(REQUESTS // AT_ONCE):
        await asyncio.gather(*(stub.ModelInfer(request) for _ in range(AT_ONCE)))


async def swap(channel, messages: list[life.PublishVersionRequest]) -> None:
    """Publish versions one after the other, let each serve, and delete the ones of which traffic knows no more."""
    stub = ModelLifecycleServiceStub(channel)
    for _ in range(SWAPS):
        number = (await stub.PublishVersion(iter(messages))).version.version
        await stub.SetTraffic(life.SetTrafficRequest(model="swapped", stable_version=number))
        if number > 2:
            await stub.DeleteVersion(life.DeleteVersionRequest(model="swapped", version=number - 2))


def settled_bytes() -> int:
    """Return what the process holds, without what it has freed and would use again."""
    gc.collect()
    give_back_memory()
    return resident_bytes()


async def test_resident_memory_is_flat_over_requests_and_swaps(channel, one_node, upload):
    weights = np.random.default_rng(0).random((1024, VERSION_BYTES // 4096), np.float32)
    graph = one_node("MatMul", ["n", 1024], out=["n", weights.shape[1]], after=weights).read_bytes()
    manifest = Manifest(graph=Graph(sha256=digest_of(graph), size_bytes=len(graph)))
    messages = upload("swapped", manifest, graph, chunk=MIB)
    sizes = []
    for _ in range(2):  # the first half fills pools and caches
        await infer(channel)
        await swap(channel, messages)
        sizes.append(settled_bytes())

    assert sizes[1] - sizes[0] < BOUND_BYTES
