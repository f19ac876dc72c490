"""One request from message to arrays: resolve the version, check, unpack, run, count."""

import time
from dataclasses import dataclass

from aimass.open_inference import grpc_service_pb2 as pb
from services.inference.batching import Inference
from services.inference.requests import check_digest, requested_outputs, requested_version, unpack_inputs
from services.inference.serving import ModelServer
from services.inference.version import LoadedVersion


@dataclass(frozen=True)
class Executed:
    """An answered request."""

    number: int
    version: LoadedVersion
    outputs: list[str]
    inference: Inference


async def execute(models: ModelServer, request: pb.ModelInferRequest, deadline: float) -> Executed:
    """Run *request* before event-loop time *deadline*.

    Raises:
        ServiceError: As `ModelInfer` documents.

    """
    arrival = time.perf_counter_ns()
    number, version = models.resolve(request.model_name, requested_version(request.model_version))
    try:
        check_digest(request, version.preprocess_digest)
        inputs, samples = unpack_inputs(request, version.signature)
        outputs = requested_outputs(request, version.signature)
        inference = await version.infer(inputs, outputs, samples, deadline)
    except BaseException:
        version.statistics.record_failure(time.perf_counter_ns() - arrival)
        raise
    total = time.perf_counter_ns() - arrival
    version.statistics.record_success(samples, total, inference.queue, inference.times)
    return Executed(number, version, outputs, inference)
