"""Inference, as the loop needs it: what serves, what it has counted, and changes of that."""

from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import grpc

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference import grpc_service_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.channels import open_channel
from services.common.errors import NotReady, ServiceError
from services.common.statuses import CODES, status_of
from services.common.traffic import ready_versions
from services.trainer.loop.facts import TrafficFact
from services.trainer.loop.values import TrialCounts, Wanted

if TYPE_CHECKING:
    from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceAsyncStub
    from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceAsyncStub

STALE_GENERATION = "STALE_GENERATION"
"""Reason of the error about a change of a traffic that somebody else has changed meanwhile."""
LEAST_EXECUTIONS = 5
"""Of a batch size by both versions, before their times are compared."""
_CALL_SECONDS = 10.0
_MOVE_SECONDS = 120.0
"""A version may have to be loaded first."""
_SECOND_NS = 1e9

Answer = TypeVar("Answer")
_ERRORS = {code: kind for kind, code in CODES.items()}


class Served:
    """The inference service.

    Args:
        address: `host:port`.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    async def models(self) -> dict[str, pb.ModelState]:
        """Return all models by name.

        Raises:
            NotReady: Inference does not answer.
        """
        answer = await self._call(self._lifecycle.ListVersions, pb.ListVersionsRequest())
        return {state.model: state for state in answer.models}

    async def model(self, model: str) -> pb.ModelState:
        """Return one model, which has no version where inference does not know it.

        Raises:
            NotReady: Inference does not answer.
        """
        return (await self.models()).get(model) or pb.ModelState(model=model)

    async def shadow(self, model: str, version: int) -> TrialCounts | None:
        """Return what *version* has shown as shadow; None where it is none.

        Raises:
            NotReady: Inference does not answer.
            NotFound: It does not know the model.
        """
        answer = await self._call(self._lifecycle.GetTraffic, pb.GetTrafficRequest(model=model))
        report = answer.shadow
        if report.version != version:
            return None
        return TrialCounts(
            requests=report.compared + report.failed,
            failed=report.failed,
            seconds=report.shadow_time.ToNanoseconds() / _SECOND_NS,
            stable_requests=report.compared,
            stable_seconds=report.stable_time.ToNanoseconds() / _SECOND_NS,
            samples=report.samples,
            agreed=report.agreed_samples,
        )

    async def counts(self, model: str, champion: int, candidate: int) -> TrialCounts | None:
        """Return the requests of both versions since inference has loaded them; None while it has not.

        Raises:
            NotReady: Inference does not answer.
            NotFound: It does not know the model.
        """
        found = await self._statistics(model)
        if champion not in found or candidate not in found:
            return None
        theirs, ours = found[candidate].inference_stats, found[champion].inference_stats
        return TrialCounts(
            requests=theirs.success.count + theirs.fail.count,
            failed=theirs.fail.count,
            seconds=theirs.compute_infer.ns / _SECOND_NS,
            stable_requests=ours.success.count + ours.fail.count,
            stable_failed=ours.fail.count,
            stable_seconds=ours.compute_infer.ns / _SECOND_NS,
        )

    async def time_ratio(self, model: str, champion: int, candidate: int) -> float | None:
        """Return the candidate's time in the graph, of the champion's, at the batch size that both have run most.

        None before both have run one `LEAST_EXECUTIONS` times, as they do when they answer what they are judged on.

        Raises:
            NotReady: Inference does not answer.
            NotFound: It does not know the model.
        """
        found = await self._statistics(model)
        if champion not in found or candidate not in found:
            return None
        ours, theirs = (
            {each.batch_size: each.compute_infer for each in found[version].batch_stats}
            for version in (champion, candidate)
        )
        often = {size: min(ours[size].count, theirs[size].count) for size in ours.keys() & theirs.keys()}
        size = max(often, key=lambda each: (often[each], each), default=0)
        if often.get(size, 0) < LEAST_EXECUTIONS or not ours[size].ns:
            return None
        return (theirs[size].ns / theirs[size].count) / (ours[size].ns / ours[size].count)

    async def set_traffic(self, model: str, wanted: Wanted, generation: int, *, forget_previous: bool = False) -> None:
        """Change the traffic, if it still has *generation*.

        Args:
            model: Name of the model.
            wanted: The whole of the traffic.
            generation: That was seen.
            forget_previous: Whether the version that served before may be deleted.

        Raises:
            Conflict: It has another generation (reason `STALE_GENERATION`), or a version cannot be loaded.
            NotFound: A version is not there.
            NotReady: Inference does not answer.
        """
        canary = pb.Canary(version=wanted.canary, share=wanted.canary_share) if wanted.canary else None
        request = pb.SetTrafficRequest(
            model=model,
            stable_version=wanted.stable,
            expected_generation=generation,
            canary=canary,
            shadow_version=wanted.shadow,
            forget_previous=forget_previous,
        )
        await self._call(self._lifecycle.SetTraffic, request, _MOVE_SECONDS)

    async def delete(self, model: str, version: int) -> None:
        """Remove a version.

        Raises:
            NotFound: It is not there.
            Conflict: It has a part in the traffic.
            NotReady: Inference does not answer.
        """
        await self._call(self._lifecycle.DeleteVersion, pb.DeleteVersionRequest(model=model, version=version))

    async def close(self) -> None:
        """Close the connection."""
        if "_channel" in vars(self):
            await self._channel.close()

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return open_channel(self._address)  # belongs to the loop in which it is first used

    @cached_property
    def _lifecycle(self) -> "ModelLifecycleServiceAsyncStub":
        return ModelLifecycleServiceStub(self._channel)

    @cached_property
    def _open_inference(self) -> "GRPCInferenceServiceAsyncStub":
        return GRPCInferenceServiceStub(self._channel)

    async def _statistics(self, model: str) -> dict[int, grpc_service_pb2.ModelStatistics]:
        request = grpc_service_pb2.ModelStatisticsRequest(name=model)
        answer = await self._call(self._open_inference.ModelStatistics, request)
        return {int(each.version): each for each in answer.model_stats}

    async def _call(
        self, method: Callable[..., Awaitable[Answer]], request: object, seconds: float = _CALL_SECONDS
    ) -> Answer:
        try:
            return await method(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from error

    def _failure(self, error: grpc.aio.AioRpcError) -> ServiceError:
        """Return the error with its sentence and its reason; one that may pass is that inference is not ready."""
        passing = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        if error.code() in passing or error.code() not in _ERRORS:
            return NotReady(
                f"inference at {self._address} does not answer now: {error.code().name} {error.details()}; start it or "
                "wait"
            )
        return _ERRORS[error.code()](error.details() or "inference says no more", reason=status_of(error).reason)


def traffic_fact(state: pb.ModelState) -> TrafficFact:
    """Return the traffic of a model, as the loop reads it."""
    traffic = state.traffic
    return TrafficFact(
        generation=traffic.generation,
        stable=traffic.stable_version,
        previous=traffic.previous_version,
        canary=traffic.canary.version,
        canary_share=traffic.canary.share,
        shadow=traffic.shadow_version,
        ready=tuple(ready_versions(state)),
    )
