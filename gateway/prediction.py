"""Images -> labels: chooses the version, composes preprocess and inference, watches the deadline."""

import asyncio
import time
import uuid
from functools import partial

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.inference.v1 import inference_pb2
from aimass.preprocess.v1 import preprocess_pb2
from gateway.backends import Backends
from gateway.capture import Answered, Capture
from services.common.durations import duration_of
from services.common.errors import DeadlineExceeded, InvalidInput
from services.common.identity import bound_caller
from services.common.manifest import DIGEST_PARAMETER
from services.common.metrics import StageLatencies
from services.common.tracing import call_metadata
from services.common.traffic import NEW_VERSION_SECONDS, TrafficFollower, choose_version

DEFAULT_TOP = 5
"""Labels per image where the caller does not say."""


class Predictor:
    """The composition `classify(preprocess(images))`, the same over every protocol and in both deployments."""

    def __init__(
        self,
        backends: Backends,
        follower: TrafficFollower,
        stages: StageLatencies,
        capture: Capture,
        timeout_seconds: float,
        max_images: int,
    ) -> None:
        self._backends = backends
        self._capture = capture
        self._stages = stages
        self._follower = follower
        self._timeout_seconds = timeout_seconds
        self._max_images = max_images

    def deadline(self, timeout: float | None) -> "Deadline":
        """Return the deadline of a request that begins now: *timeout* seconds, or the gateway's limit where less."""
        return Deadline(min(self._timeout_seconds if timeout is None else timeout, self._timeout_seconds))

    async def predict(self, request: pb.PredictRequest, deadline: "Deadline") -> pb.PredictResponse:
        """Answer *request* before *deadline*.

        Raises:
            ServiceError: The request as a whole cannot be answered; a bad image is an error in its result instead.
        """
        begin = time.perf_counter_ns()
        self._check(request)
        await self._wait_for_version(request, deadline)
        state = self._follower.model(request.model)
        version = choose_version(state, request.version, request.routing_key or uuid.uuid4().hex)
        metadata = call_metadata()
        chosen = time.perf_counter_ns()
        prepared = await self._backends.preprocess(
            preprocess_pb2.PreprocessRequest(model=request.model, version=version, images=request.images),
            timeout=deadline.remaining(),
            metadata=metadata,
        )
        ready = time.perf_counter_ns()
        classified = inference_pb2.ClassifyResponse()
        if prepared.HasField("request"):
            classified = await self._backends.classify(
                inference_pb2.ClassifyRequest(request=prepared.request, top=request.top or DEFAULT_TOP),
                timeout=deadline.remaining(),
                metadata=metadata,
            )
        end = time.perf_counter_ns()
        total, preprocess, inference = self._stages.of(request.model, version)
        total.add(end - begin)
        preprocess.add(ready - chosen)
        inference.add(end - ready)
        return pb.PredictResponse(
            model=request.model,
            version=version,
            results=self._results(request, version, state.traffic.generation, prepared, classified),
            timings=_timings(prepared, classified.timings, end - begin),
            traffic_generation=state.traffic.generation,
        )

    def _results(
        self,
        request: pb.PredictRequest,
        version: int,
        generation: int,
        prepared: preprocess_pb2.PreprocessResponse,
        classified: inference_pb2.ClassifyResponse,
    ) -> list[pb.PredictResult]:
        """Return the result of each image; which are captured is settled here, before the answer leaves."""
        results = []
        for place, each in enumerate(prepared.results):
            if each.HasField("error"):
                error = pb.Error(code="INVALID_ARGUMENT", reason=each.error.reason, message=each.error.message)
                results.append(pb.PredictResult(error=error))
                continue
            labels = _labels(classified.classifications[each.index])
            best = labels[0]
            size = partial(_size, request, place)
            decision = self._capture.decide(request.model, version, best.label, best.probability, size)
            prediction = pb.Prediction(prediction_id=uuid.uuid4().hex, labels=labels)
            if decision.captured:
                caller = bound_caller()
                answered = Answered(
                    prediction_id=prediction.prediction_id,
                    model=request.model,
                    version=version,
                    traffic_generation=generation,
                    preprocess_digest=prepared.request.parameters[DIGEST_PARAMETER].string_param,
                    image=request.images[place],
                    labels=tuple((label.label, label.probability) for label in labels),
                    contributor=caller.contributor if caller is not None else "",
                )
                prediction.captured = self._capture.offer(answered, decision)
            results.append(pb.PredictResult(prediction=prediction))
        return results

    async def _wait_for_version(self, request: pb.PredictRequest, deadline: "Deadline") -> None:
        def newest() -> int:
            return max((each.version for each in self._follower.model(request.model).versions), default=0)

        if request.version == newest() + 1:  # any other is not on its way, and need not wait to be refused
            await self._follower.wait_for(
                lambda: newest() >= request.version, min(NEW_VERSION_SECONDS, deadline.remaining())
            )

    def _check(self, request: pb.PredictRequest) -> None:
        if not 1 <= len(request.images) <= self._max_images:
            raise InvalidInput(
                f"the request holds {len(request.images)} images; send 1 to {self._max_images}", field="images"
            )
        if request.top < 0:
            raise InvalidInput(f"top is {request.top}; ask for 1 or more labels", field="top")
        if request.version < 0:
            raise InvalidInput(
                f"version is {request.version}; give an integer from 1, or leave it out", field="version"
            )


class Deadline:
    """One deadline for the whole trip; what is left of it is the timeout of the next call."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = asyncio.get_running_loop().time() + seconds

    def remaining(self) -> float:
        """Return the seconds left.

        Raises:
            DeadlineExceeded: There are none.
        """
        left = self._end - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded(
                f"the deadline of {max(self._seconds, 0.0):g} s passed; allow more time or send less"
            )
        return left


def _size(request: pb.PredictRequest, place: int) -> int:
    return len(request.images[place])


def _labels(classification: inference_pb2.Classification) -> list[pb.Label]:
    classes = classification.classes
    return [pb.Label(label=each.label or str(each.index), probability=each.probability) for each in classes]


def _timings(
    prepared: preprocess_pb2.PreprocessResponse, stages: inference_pb2.StageTimings, total_ns: int
) -> pb.Timings:
    inference = sum(
        duration.ToNanoseconds() for duration in (stages.compute_input, stages.compute_infer, stages.compute_output)
    )
    return pb.Timings(
        preprocess=prepared.duration,
        queue=stages.queue,
        inference=duration_of(inference),
        total=duration_of(total_ns),
    )
