"""The loop over HTTP: how it stands, what has happened, and the hand on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from aimass.trainer.v1 import loop_pb2
from gateway import schemas
from gateway.bodies import BodyBudget
from gateway.callers import TIMEOUT_HEADER, backend_metadata, stated_timeout, unless_disconnected
from gateway.compression import read_body
from gateway.documents import bounded, member, parse_object
from gateway.message_json import plain
from gateway.prediction import Predictor

if TYPE_CHECKING:
    from aimass.trainer.v1.loop_pb2_grpc import LoopServiceAsyncStub

_REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class LoopRoutes:
    """The paths of the loop.

    Args:
        stub: Of the trainer.
        predictor: Knows how long a request may take.
        bodies: Room for what is sent.
        max_body_bytes: Largest body.
    """

    def __init__(
        self, stub: LoopServiceAsyncStub, predictor: Predictor, bodies: BodyBudget, max_body_bytes: int
    ) -> None:
        self._stub = stub
        self._predictor = predictor
        self._bodies = bodies
        self._max_body_bytes = max_body_bytes

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter()
        for path, endpoint in (("/loop", self._loop), ("/loop/events", self._events), ("/analysis", self._analysis)):
            router.add_api_route(f"/v1/models/{{model}}{path}", endpoint, methods=["GET"], response_model=None)
        for path, endpoint, body in (
            ("trigger", self._trigger, schemas.TRIGGER_BODY),
            ("promote", self._promote, schemas.VERSION_BODY),
            ("reject", self._reject, schemas.VERSION_BODY),
            ("rollback", self._roll_back, schemas.REASON_BODY),
        ):
            router.add_api_route(
                f"/v1/models/{{model}}/loop/{path}", endpoint, methods=["POST"], response_model=None, openapi_extra=body
            )
        return router

    async def _loop(self, request: Request, model: str) -> Response:
        """Tell how the loop of a model stands."""
        return await self._answer(request, self._stub.GetLoop, loop_pb2.GetLoopRequest(model=model))

    async def _events(
        self,
        request: Request,
        model: str,
        after: Annotated[int, Query(ge=0, le=2**63 - 1, description="Only events of higher numbers.")] = 0,
        page_size: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
        kind: Annotated[str, Query(description="Only of this kind.")] = "",
    ) -> Response:
        """List what has happened, in its order."""
        message = loop_pb2.ListEventsRequest(model=model, after=after, page_size=page_size, kind=kind)
        return await self._answer(request, self._stub.ListEvents, message)

    async def _analysis(self, request: Request, model: str) -> Response:
        """Tell what is known of a model in use: JSON, or a page for who prefers that."""
        message = loop_pb2.GetAnalysisRequest(model=model)
        analysis = await self._call(request, self._stub.GetAnalysis, message)
        if "text/html" in request.headers.get("accept", ""):
            return Response(analysis.analysis_html, headers=_REPORT_HEADERS, media_type="text/html")
        return Response(analysis.analysis_json, media_type="application/json")

    async def _trigger(self, request: Request, model: str) -> Response:
        """Begin a cycle now."""
        document = await self._document(request)
        message = loop_pb2.TriggerCycleRequest(
            model=model,
            reason=_text(document, "reason"),
            strategy=_text(document, "strategy"),
            request_id=_text(document, "request_id"),
        )
        return await self._answer(request, self._stub.TriggerCycle, message)

    async def _promote(self, request: Request, model: str) -> Response:
        """Let a version serve, past the gate and the trial."""
        message = loop_pb2.PromoteCandidateRequest(model=model, **_choice(await self._document(request), least=1))
        return await self._answer(request, self._stub.PromoteCandidate, message)

    async def _reject(self, request: Request, model: str) -> Response:
        """End the cycle of a version or, with version 0, the one that is under way."""
        message = loop_pb2.RejectCandidateRequest(model=model, **_choice(await self._document(request), least=0))
        return await self._answer(request, self._stub.RejectCandidate, message)

    async def _roll_back(self, request: Request, model: str) -> Response:
        """Let the version before serve again."""
        document = await self._document(request)
        message = loop_pb2.RollBackRequest(
            model=model, reason=_text(document, "reason"), request_id=_text(document, "request_id")
        )
        return await self._answer(request, self._stub.RollBack, message)

    async def _document(self, request: Request) -> dict[str, Any]:
        with self._bodies.holding() as take:
            return parse_object(await read_body(request, self._max_body_bytes, take), "the request")

    async def _answer(self, request: Request, call: Any, message: Any) -> Response:
        document = plain(await self._call(request, call, message))
        return Response(to_json(document), media_type="application/json")

    async def _call(self, request: Request, call: Any, message: Any) -> Any:
        timeout = self._predictor.deadline(stated_timeout(request.headers.get(TIMEOUT_HEADER))).remaining()
        return await unless_disconnected(request, call(message, timeout=timeout, metadata=backend_metadata()))


def _text(document: dict[str, Any], key: str) -> str:
    return member(document, key, str, "the request", "")


def _choice(document: dict[str, Any], least: int) -> dict[str, Any]:
    version = bounded(member(document, "version", int, "the request"), least, 2**63 - 1, "version")
    return {"version": version, "reason": _text(document, "reason"), "request_id": _text(document, "request_id")}
