"""One request from message to arrays: resolve the version, check, unpack, run, count."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aimass.open_inference import grpc_service_pb2 as pb
from services.common.errors import REFUSED_BY_GRAPH, DeadlineExceeded, NotReady, Overloaded, ServiceError
from services.common.tracing import is_traced, record_span
from services.inference.batching.batcher import Inference, merge_inferences
from services.inference.contracts.requests import (
    RequestOptions,
    check_batch_size,
    check_digest,
    read_inputs,
    request_options,
    requested_outputs,
    requested_version,
)
from services.inference.engine import Arrays
from services.inference.models.serving import ModelServer
from services.inference.models.version import LoadedVersion

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

PARTS_AT_ONCE = 2
"""Of a large request: one runs and one waits, so that it neither idles nor fills the queue before others."""


@dataclass(frozen=True)
class Executed:
    """An answered request."""

    number: int
    version: LoadedVersion
    generation: int
    """Of the traffic that chose the version."""
    outputs: list[str]
    inference: Inference


def deadline_of(context: Context) -> float:
    """Return the event-loop time at which the call's deadline passes; infinity where it has none."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else asyncio.get_running_loop().time() + remaining


async def execute(
    models: ModelServer, request: pb.ModelInferRequest, deadline: float, *, split: bool = False
) -> Executed:
    """Run *request* before event-loop time *deadline*.

    Args:
        models: Where the version is found.
        request: As it came.
        deadline: Of the call.
        split: Whether a request that is larger than a batch is run in parts; otherwise it is refused.

    Raises:
        ServiceError: As `ModelInfer` documents.
    """
    arrival = time.perf_counter_ns()
    options = request_options(request)
    routing_key = options.routing_key or uuid.uuid4().hex
    resolved = models.resolve(request.model_name, requested_version(request.model_version), routing_key)
    version = resolved.version
    try:
        with version.in_use():
            check_digest(request, version.preprocess_digest)
            inputs, samples = await read_inputs(request, version.signature, split=split)
            outputs = requested_outputs(request, version.signature)
            if not split:
                check_batch_size(samples, version.signature)
            inference = await _infer(version, inputs, outputs, samples, deadline, options)
    except BaseException as error:
        version.statistics.record_failure(time.perf_counter_ns() - arrival, _failure_reason(error))
        raise
    total = time.perf_counter_ns() - arrival
    if is_traced():
        _record_spans(request.model_name, resolved.number, arrival, inference)
    version.statistics.record_success(samples, total, inference.queue, inference.times)
    if samples <= (version.signature.samples_per_run or samples):  # a shadow runs nothing in parts
        models.answered(request.model_name, resolved, inputs, outputs, samples, inference)
    return Executed(*resolved, outputs, inference)


def _failure_reason(error: BaseException) -> str:
    """Return what Triton's metrics call it."""
    if isinstance(error, asyncio.CancelledError):
        return "CANCELED"
    if isinstance(error, Overloaded | DeadlineExceeded | NotReady):
        return "REJECTED"
    refused = isinstance(error, ServiceError) and error.reason != REFUSED_BY_GRAPH
    return "OTHER" if refused else "BACKEND"


def _record_spans(name: str, number: int, arrival: int, inference: Inference) -> None:
    """Add the stages of a request to its trace; of one that ran in parts, the sums."""
    times, begin = inference.times, arrival
    for stage, took in (
        ("queue", inference.queue),
        ("compute_input", times.compute_input),
        ("compute_infer", times.compute_infer),
        ("compute_output", times.compute_output),
    ):
        facts: dict[str, str | int] = {"model": name, "version": number, "batch.samples": inference.batch_size}
        record_span(stage, begin, begin + took, facts)
        begin += took


async def _infer(
    version: LoadedVersion,
    inputs: Arrays,
    outputs: Sequence[str],
    samples: int,
    deadline: float,
    options: RequestOptions,
) -> Inference:
    async def infer(inputs: Arrays, samples: int) -> Inference:
        return await version.batcher.infer(
            inputs,
            outputs,
            samples,
            deadline,
            priority=options.priority,
            timeout_seconds=options.timeout_seconds,
        )

    largest = version.signature.samples_per_run or samples
    if samples <= largest:
        return await infer(inputs, samples)

    room = asyncio.Semaphore(PARTS_AT_ONCE)

    async def infer_part(start: int) -> Inference:
        stop = min(start + largest, samples)
        async with room:
            return await infer({name: array[start:stop] for name, array in inputs.items()}, stop - start)

    parts = [asyncio.ensure_future(infer_part(start)) for start in range(0, samples, largest)]
    try:
        return merge_inferences(await asyncio.gather(*parts))
    finally:
        for part in parts:  # where one failed, the others are of no use
            part.cancel()
