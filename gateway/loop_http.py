"""The loop over HTTP: how it stands, what has happened, the hand on it, where answers come from, what is forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from aimass.trainer.v1 import loop_pb2 as pb
from gateway import schemas
from gateway.documents import bounded, member
from gateway.message_json import number_of
from gateway.message_schemas import answer_model
from gateway.trainer_http import TrainerCalls

if TYPE_CHECKING:
    from aimass.trainer.v1.loop_pb2_grpc import LoopServiceAsyncStub

_LOOP = "/v1/models/{model}/loop"
RequestId = Annotated[str, Query(description=schemas.REQUEST_ID)]
_REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class LoopRoutes:
    """The paths of the loop.

    Args:
        stub: Of the trainer.
        calls: How it is called.
    """

    def __init__(self, stub: LoopServiceAsyncStub, calls: TrainerCalls) -> None:
        self._stub = stub
        self._calls = calls

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter()
        router.get(_LOOP, summary="Tell how a loop stands", response_model=answer_model(pb.GetLoopResponse))(self._loop)
        router.get(
            f"{_LOOP}/events",
            summary="List what has happened in a loop",
            response_model=answer_model(pb.ListEventsResponse),
        )(self._events)
        router.get(
            "/v1/models/{model}/analysis",
            summary="Tell what is known of a model in use",
            response_model=None,
            responses={200: schemas.ANALYSIS},
        )(self._analysis)
        router.post(
            f"{_LOOP}/trigger",
            summary="Begin a cycle",
            response_model=answer_model(pb.TriggerCycleResponse),
            openapi_extra=schemas.TRIGGER,
        )(self._trigger)
        router.post(
            f"{_LOOP}/propose",
            summary="Put a version to the gate",
            response_model=answer_model(pb.ProposeVersionResponse),
            openapi_extra=schemas.PROPOSAL,
        )(self._propose)
        router.post(
            f"{_LOOP}/promote",
            summary="Let a candidate serve",
            response_model=answer_model(pb.PromoteCandidateResponse),
            openapi_extra=schemas.PROMOTION,
        )(self._promote)
        router.post(
            f"{_LOOP}/reject",
            summary="End a cycle",
            response_model=answer_model(pb.RejectCandidateResponse),
            openapi_extra=schemas.REJECTION,
        )(self._reject)
        router.post(
            f"{_LOOP}/rollback",
            summary="Let the version before serve again",
            response_model=answer_model(pb.RollBackResponse),
            openapi_extra=schemas.ROLLBACK,
        )(self._roll_back)
        router.get(
            "/v1/predictions/{prediction_id}/trace",
            summary="Follow a prediction to what was learnt",
            response_model=answer_model(pb.TracePredictionResponse),
        )(self._trace)
        router.delete(
            "/v1/observations/{number}",
            summary="Delete a picture",
            response_model=answer_model(pb.DeleteSampleResponse),
        )(self._delete_sample)
        router.delete(
            "/v1/contributors/{contributor}",
            summary="Delete all that a contributor has given",
            response_model=answer_model(pb.DeleteContributorResponse),
        )(self._delete_contributor)
        router.get(
            "/v1/deletions/{deletion_id}",
            summary="Tell how far a deletion is",
            response_model=answer_model(pb.GetDeletionResponse),
        )(self._deletion)
        return router

    async def _loop(self, request: Request, model: str) -> Response:
        """Tell whether it is on, what it does now, how accurate the model is and what the next cycle waits for."""
        return await self._calls.answer(request, self._stub.GetLoop, pb.GetLoopRequest(model=model))

    async def _events(
        self,
        request: Request,
        model: str,
        after: Annotated[int, Query(ge=0, le=2**63 - 1, description="Only events of higher numbers.")] = 0,
        page_size: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
        kind: Annotated[str, Query(description="Only of this kind.")] = "",
    ) -> Response:
        """List events in their order, with what they hold."""
        message = pb.ListEventsRequest(model=model, after=after, page_size=page_size, kind=kind)
        return await self._calls.answer(request, self._stub.ListEvents, message)

    async def _analysis(self, request: Request, model: str) -> Response:
        """Tell of accuracy, drift, quality, contributors and cost: JSON, or a page for who prefers that."""
        message = pb.GetAnalysisRequest(model=model)
        analysis = await self._calls.call(request, self._stub.GetAnalysis, message)
        if "text/html" in request.headers.get("accept", ""):
            return Response(analysis.analysis_html, headers=_REPORT_HEADERS, media_type="text/html")
        return Response(analysis.analysis_json, media_type="application/json")

    async def _trace(
        self,
        request: Request,
        prediction_id: str,
        nearest_count: Annotated[int, Query(ge=0, le=2**31 - 1, description="How many samples, 100 at most.")] = 0,
    ) -> Response:
        """List the samples that are most like its picture, of those that the version which answered had learnt."""
        message = pb.TracePredictionRequest(prediction_id=prediction_id, nearest_count=nearest_count)
        return await self._calls.answer(request, self._stub.TracePrediction, message)

    async def _trigger(self, request: Request, model: str) -> Response:
        """Begin it now, by hand; the policy decides how it trains if `strategy` is absent."""
        document = await self._calls.document(request, ("reason", "strategy", "request_id"))
        message = pb.TriggerCycleRequest(
            model=model,
            reason=_text(document, "reason"),
            strategy=_text(document, "strategy"),
            request_id=_text(document, "request_id"),
        )
        return await self._calls.answer(request, self._stub.TriggerCycle, message)

    async def _propose(self, request: Request, model: str) -> Response:
        """Let a published version be judged; it must be better if `goal` is absent."""
        document = await self._calls.document(request, ("version", "goal", "request_id"))
        goal = member(document, "goal", str, "the request", "better")
        message = pb.ProposeVersionRequest(
            model=model,
            version=_version(document, least=1),
            goal=number_of(pb.Cycle.Goal.DESCRIPTOR, goal),
            request_id=_text(document, "request_id"),
        )
        return await self._calls.answer(request, self._stub.ProposeVersion, message)

    async def _promote(self, request: Request, model: str) -> Response:
        """Let a candidate serve at once, past the gate and the trial."""
        message = pb.PromoteCandidateRequest(model=model, **await self._choice(request, least=1))
        return await self._calls.answer(request, self._stub.PromoteCandidate, message)

    async def _reject(self, request: Request, model: str) -> Response:
        """End the cycle of a version or, with version 0, the one that is under way."""
        message = pb.RejectCandidateRequest(model=model, **await self._choice(request, least=0))
        return await self._calls.answer(request, self._stub.RejectCandidate, message)

    async def _roll_back(self, request: Request, model: str) -> Response:
        """Let the version serve again that did before the last promotion."""
        document = await self._calls.document(request, ("reason", "request_id"))
        message = pb.RollBackRequest(
            model=model, reason=_text(document, "reason"), request_id=_text(document, "request_id")
        )
        return await self._calls.answer(request, self._stub.RollBack, message)

    async def _delete_sample(self, request: Request, number: schemas.NumberInPath, request_id: RequestId) -> Response:
        """Delete it for good, and begin to replace the versions that have learnt from it."""
        message = pb.DeleteSampleRequest(observation_id=number, request_id=request_id)
        return await self._calls.answer(request, self._stub.DeleteSample, message)

    async def _delete_contributor(self, request: Request, contributor: str, request_id: RequestId) -> Response:
        """Delete all of it for good, with name and keys, and begin to replace the versions that have learnt from it."""
        message = pb.DeleteContributorRequest(contributor=contributor, request_id=request_id)
        return await self._calls.answer(request, self._stub.DeleteContributor, message)

    async def _deletion(self, request: Request, deletion_id: str) -> Response:
        """Tell it of the deletion that was asked for with this `request_id`, and what a search finds of it now."""
        return await self._calls.answer(request, self._stub.GetDeletion, pb.GetDeletionRequest(id=deletion_id))

    async def _choice(self, request: Request, least: int) -> dict[str, Any]:
        document = await self._calls.document(request, ("version", "reason", "request_id"))
        texts = {name: _text(document, name) for name in ("reason", "request_id")}
        return {"version": _version(document, least), **texts}


def _text(document: dict[str, Any], key: str) -> str:
    return member(document, key, str, "the request", "")


def _version(document: dict[str, Any], least: int) -> int:
    return bounded(member(document, "version", int, "the request"), least, 2**63 - 1, "version")
