"""Whatever a busy model refuses, walked over a real server: full queues, waits that are too long, late answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.inference import batching
from tests.error_texts import Expected, not_walked

MODULES = list(Path(batching.__path__[0]).glob("*.py"))
WAITING, MAX_WAITING = 190, 200
"""Requests that wait for the busy model, and how many may."""
ANSWERED = 5
"""Runs of which the model learns how long one takes."""
CONFIG = """
    max_batch_size: 1
    dynamic_batching {
        priority_levels: 2
        default_priority_level: 1
        default_queue_policy { allow_timeout_override: true }
        priority_queue_policy { key: 2 value { max_queue_size: 1 } }
    }
"""


@dataclass(frozen=True)
class Busy:
    """A model for which many requests wait."""

    stub: GRPCInferenceServiceStub

    def ask(self, seconds: float | None = None, **parameters: int) -> Awaitable[pb.ModelInferResponse]:
        request = pb.ModelInferRequest(model_name="busy", raw_input_contents=[bytes(4)])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        for name, value in parameters.items():
            request.parameters[name].int64_param = value
        return self.stub.ModelInfer(request, timeout=seconds)

    async def crowd(self, count: int, **parameters: int) -> None:
        """Send several requests, and raise the first refusal; none of them is answered before it."""
        async with sent(self, count, **parameters) as tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            await asyncio.gather(*done)


@asynccontextmanager
async def sent(busy: Busy, count: int, **parameters: int) -> AsyncIterator[list[asyncio.Future]]:
    """Send requests, and give up those that are not answered by the end of the block."""
    tasks = [asyncio.ensure_future(busy.ask(**parameters)) for _ in range(count)]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


Ask = Callable[[Busy], Awaitable[object]]
TABLE: dict[str, tuple[Ask, Expected]] = {
    name: (ask, Expected(*expected))
    for name, ask, *expected in [
        (
            "a full queue",
            lambda s: s.crowd(MAX_WAITING),
            *("RESOURCE_EXHAUSTED", "200 samples wait", "at most 200 may", "send fewer at once or try again"),
        ),
        (
            "a full queue of a priority",
            lambda s: s.crowd(2, priority=2),
            *("RESOURCE_EXHAUSTED", "1 requests of priority 2", "at most 1 wait", "send fewer at once or try again"),
        ),
        (
            "a deadline that cannot be met",
            lambda s: s.ask(seconds=0.5),
            *("RESOURCE_EXHAUSTED", "the answer would take about", "the deadline leaves", "send fewer at once, allow"),
        ),
        (
            "the longest wait",
            lambda s: s.ask(timeout=1),
            *("DEADLINE_EXCEEDED", "waited 1e-06 s", "the longest that it may", "try again or allow more"),
        ),
    ]
}
"""By name: what is asked of a busy model, and what the answer must say."""

ELSEWHERE = {
    "the version was unloaded meanwhile": "nowhere: between the choice of a version and its queue nothing is awaited",
    "the deadline had passed when the request arrived": "test_batcher: over gRPC the client's own deadline comes first",
    "the deadline passed while the request waited": "test_batcher: over gRPC the client's own deadline comes first",
}
"""Errors that no row walks, by a part of their text, and where they are walked instead."""


@pytest.fixture
async def busy(start_inference, add_model, save_graph) -> AsyncIterator[Busy]:
    """A model that takes its time for each of the many of requests that wait for it.

    Many short runs, of which those that wait can be given up, and not a long one, which nobody can end.
    """
    go, state = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("go", TensorProto.BOOL, []), ("state", TensorProto.FLOAT, ["n", 512]))
    )
    body = helper.make_graph(
        [helper.make_node("MatMul", ["state", "matrix"], ["next"]), helper.make_node("Identity", ["go"], ["on"])],
        "round",
        [helper.make_tensor_value_info("round", TensorProto.INT64, []), go, state],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 512]),
        ],
    )
    graph = save_graph(
        [
            helper.make_node("MatMul", ["x", "row"], ["first"]),
            helper.make_node("Loop", ["rounds", "", "first"], ["last"], body=body),
            helper.make_node("ReduceMean", ["last", "side"], ["y"], keepdims=1),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        {
            "row": np.ones((1, 512), np.float32),
            "matrix": np.eye(512, dtype=np.float32),
            "rounds": np.array(1000),
            "side": np.array([1]),
        },
    )
    add_model(graph, "busy", config=CONFIG)
    served = await start_inference(max_queue_samples=MAX_WAITING)
    busy = Busy(GRPCInferenceServiceStub(served.channel))
    async with sent(busy, WAITING) as tasks:
        for first in islice(asyncio.as_completed(tasks), ANSWERED):  # in whatever order they arrived
            await first
        yield busy


async def answer_to(ask: Ask, busy: Busy) -> tuple[str, str]:
    """Return the status with which the server answers, and its text."""
    try:
        await ask(busy)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


async def test_every_error_of_a_busy_model_is_walked_and_says_what_to_change(busy):
    answers = {name: await answer_to(ask, busy) for name, (ask, _) in TABLE.items()}
    found = [f"{name}: {fault}" for name, (_, row) in TABLE.items() if (fault := row.missing_in(*answers[name]))]

    assert not found, "\n".join(["", *found])
    left = not_walked(MODULES, [text for _, text in answers.values()], ELSEWHERE)
    assert left == [], "\n".join(["", *left])
