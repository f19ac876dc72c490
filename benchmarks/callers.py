"""Callers that keep a service busy."""

import asyncio
import time

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub


async def rate(
    stub: GRPCInferenceServiceStub, request: pb.ModelInferRequest, samples: int, callers: int, seconds: float
) -> float:
    """Return the samples per second that *callers* get, of whom each sends *request* again and again.

    Args:
        stub: Of the service.
        request: What each sends, one after the other is answered.
        samples: In one request.
        callers: At the same time.
        seconds: After which nobody begins a further request.
    """
    answered, begin = 0, time.perf_counter()

    async def call() -> None:
        nonlocal answered
        while time.perf_counter() - begin < seconds:
            await stub.ModelInfer(request)
            answered += samples

    await asyncio.gather(*(call() for _ in range(callers)))
    return answered / (time.perf_counter() - begin)
