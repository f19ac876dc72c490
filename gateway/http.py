"""The HTTP interface: JSON outside, the same prediction inside; and the page."""

import asyncio
import json
import math
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from google.protobuf.duration_pb2 import Duration

from aimass.gateway.v1 import gateway_pb2 as pb
from gateway import schemas
from gateway.access import Access, CallerBinding
from gateway.backends import Backends
from gateway.bodies import BodyBudget, read_images
from gateway.callers import stated_timeout, unless_disconnected
from gateway.draining import BodyDrain
from gateway.failures import failure_document, handle_failures
from gateway.feedback import Feedback
from gateway.feedback_http import FeedbackRoutes
from gateway.inference_http import JSON_SIZE_HEADER, InferenceRoutes
from gateway.loop_http import LoopRoutes
from gateway.models import describe_models
from gateway.origin import OriginGuard
from gateway.prediction import DEFAULT_TOP, Predictor
from gateway.request_tracking import RequestTracking
from gateway.settings import GatewaySettings
from gateway.trainer_http import TrainerCalls
from services.common.logs import REQUEST_ID_KEY
from services.common.metrics import LabelledCounts
from services.common.server import StopSignal
from services.common.traffic import TrafficFollower, all_serve

PAGE = Path(__file__).with_name("page")
_MAX_TOP, _MAX_VERSION = 2**31 - 1, 2**63 - 1  # what the contract's fields hold

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(
    settings: GatewaySettings,
    predictor: Predictor,
    feedback: Feedback,
    access: Access,
    follower: TrafficFollower,
    backends: Backends,
    stop: StopSignal,
    responses: LabelledCounts,
) -> FastAPI:
    """Return the ASGI application."""
    bodies = BodyBudget(settings.max_bodies_bytes)
    app = FastAPI(
        title="AI Mass",
        summary="Images in, labels out.",
        # The usual documentation pages load their scripts from the internet; the document itself is all one needs.
        docs_url=None,
        redoc_url=None,
        responses={"default": {"model": schemas.Failure, "description": "What is wrong, in one sentence."}},
    )

    @app.post(
        "/v1/models/{model}/predict",
        summary="Predict labels of images",
        response_model=schemas.Answer,
        openapi_extra=schemas.IMAGE_BODY,
    )
    async def predict(
        request: Request,
        model: str,
        top: Annotated[int, Query(ge=1, le=_MAX_TOP, description="Labels per image, best first.")] = DEFAULT_TOP,
        version: Annotated[
            int | None, Query(ge=1, le=_MAX_VERSION, description="Version; the model's traffic decides if absent.")
        ] = None,
        x_request_timeout: Annotated[str | None, Header(description="Seconds until the request is given up.")] = None,
        x_routing_key: Annotated[str, Header(description="Same key, same version, while traffic is split.")] = "",
    ) -> Response:
        """Predict the labels of the image that is the body, or of each image of a multipart form."""
        deadline = predictor.deadline(stated_timeout(x_request_timeout))
        with bodies.holding() as take:
            async with asyncio.timeout(deadline.remaining()):  # for the upload, which may come in slowly, too
                images = await read_images(request, settings.max_body_bytes, settings.max_images, take)
            message = pb.PredictRequest(
                model=model, version=version or 0, images=images, top=top, routing_key=x_routing_key
            )
            response = await unless_disconnected(request, predictor.predict(message, deadline))
        return _answer(response)

    @app.get("/v1/models", summary="List models", response_model=schemas.Models)
    async def models() -> Response:
        """List the models that the suite serves."""
        return _json({"models": [_model(each) for each in describe_models(follower.models)]})

    @app.get("/v2/health/live", summary="Liveness", response_model=None)
    async def live() -> Response:
        """Say that the process answers."""
        return Response()

    @app.get("/v2/health/ready", summary="Readiness", response_model=None)
    async def ready() -> Response:
        """Say whether predictions can be made: 200, or 503 while a service is away or a model is not ready."""
        well = not stop.is_set and all_serve(follower.models.values()) and await backends.ready()
        return Response(status_code=200 if well else 503)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)

    limits = bodies, settings.max_body_bytes
    calls = TrainerCalls(predictor, *limits)
    app.include_router(FeedbackRoutes(feedback, backends.feedback, calls).router())
    app.include_router(LoopRoutes(backends.loop, calls).router())
    app.router.routes.extend(InferenceRoutes(backends.open_inference, predictor, *limits).all())
    app.mount("/page", _PageFiles(directory=PAGE))
    app.add_middleware(CallerBinding, access=access)
    handle_failures(app)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Server-Timing", "Retry-After", JSON_SIZE_HEADER, REQUEST_ID_KEY],
        )
    app.add_middleware(OriginGuard, hosts=settings.allowed_hosts, origins=settings.allowed_origins)
    app.add_middleware(RequestTracking, responses=responses, stop=stop)
    app.add_middleware(BodyDrain)  # the last one added is the outermost
    return app


class _PageFiles(StaticFiles):
    """The page's files, as guarded as the page itself: a browser would show them by themselves too."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(_PAGE_HEADERS)
        return response


def _answer(response: pb.PredictResponse) -> Response:
    headers = {"Server-Timing": _server_timing(response.timings)}
    results = [_result(response, result) for result in response.results]
    if len(results) > 1:
        return _json({"results": [document for document, _ in results]}, headers=headers)
    document, status_code = results[0]
    return _json(document, status_code, headers)


def _result(response: pb.PredictResponse, result: pb.PredictResult) -> tuple[dict[str, Any], int]:
    if result.HasField("error"):
        return failure_document(result.error.code, result.error.reason, result.error.message), 400
    prediction = result.prediction
    document = {
        "prediction_id": prediction.prediction_id,
        "model": response.model,
        "version": response.version,
        "predictions": [{"label": each.label, "probability": _finite(each.probability)} for each in prediction.labels],
        "captured": prediction.captured,
    }
    return document, 200


def _finite(value: float) -> float | None:
    """Return None for what JSON cannot say: a broken model's NaN or infinity."""
    return value if math.isfinite(value) else None


def _server_timing(timings: pb.Timings) -> str:
    stages = {name: getattr(timings, name) for name in ("preprocess", "queue", "inference", "total")}
    return ", ".join(f"{name};dur={_milliseconds(duration):.3f}" for name, duration in stages.items())


def _milliseconds(duration: Duration) -> float:
    return duration.seconds * 1e3 + duration.nanos / 1e6


def _model(model: pb.Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version or None,
        "state": "READY" if model.ready else "UNAVAILABLE",
        "state_reason": model.state_reason,
        "accepts_images": model.accepts_images,
        "labels": list(model.labels),
        "versions": list(model.ready_versions),
        "metrics": dict(model.metrics),
    }


def _json(document: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(document), status_code, headers, "application/json")
