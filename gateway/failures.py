"""Failures over HTTP: the same statuses as over gRPC, as JSON."""

import json
import math
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from google.rpc import error_details_pb2
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.errors import InvalidInput, NotFound, Unsupported
from services.common.statuses import Status, log_failure, status_of

log = structlog.get_logger(__name__)

HTTP_CODES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
PROTOCOL_CODES = {**HTTP_CODES, "FAILED_PRECONDITION": 400}
"""As Triton maps them, every other code being 400. It has none for a full queue or a passed deadline: 429 and 504 tell
a proxy or a retrying client what 400 would hide, and stock clients read the sentence of whatever is not 200."""
BODY_TOO_LARGE = "BODY_TOO_LARGE"
PROTOCOL_PATH = "/v2"
"""Where the Open Inference Protocol begins; its clients expect failures in another document than ours."""


def failure_document(code: str, reason: str, message: str) -> dict[str, Any]:
    """Return the JSON form of a failure."""
    return {"error": {"code": code, "reason": reason, "message": message}}


def failure_answer(path: str, code: str, reason: str, message: str) -> dict[str, Any]:
    """Return what a failed request to *path* is answered with: ours, or the protocol's document for its clients."""
    return {"error": message} if is_protocol_path(path) else failure_document(code, reason, message)


def is_protocol_path(path: str) -> bool:
    """Whether stock clients of the Open Inference Protocol send requests to *path*."""
    return path == PROTOCOL_PATH or path.startswith(f"{PROTOCOL_PATH}/")


def handle_failures(app: FastAPI) -> None:
    """Let every exception of *app* end in a failure document; to be called before middleware is added."""
    app.add_middleware(_AnswerFailures)
    app.add_exception_handler(ClientDisconnect, _abandoned)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _refused_by_framework)


class _AnswerFailures:
    """Answers what the application raises, inside of all other middleware: the framework would do so outside of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception as error:
            if begun:  # half an answer: the server must break the connection
                raise
            await (await _failed(Request(scope), error))(scope, receive, send)


async def _failed(request: Request, error: Exception) -> Response:
    status = status_of(error)
    log_failure(status, error, path=request.url.path)
    return _response(request, status)


async def _abandoned(request: Request, error: Exception) -> Response:
    """End a request whose client went away; nobody reads the answer."""
    log.info("client went away", path=request.url.path)
    return Response(status_code=HTTP_CODES["CANCELLED"])


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, each['loc']))} is {each.get('input')!r}: {each['msg']}" for each in error.errors()]
    return await _failed(request, InvalidInput("; ".join(problems)))


async def _refused_by_framework(request: Request, error: Exception) -> Response:
    """Answer unknown paths and methods in our form, with the framework's code."""
    assert isinstance(error, HTTPException)
    kind = {404: NotFound, 405: Unsupported}.get(error.status_code, InvalidInput)
    status = status_of(kind(f"{request.method} {request.url.path}: {error.detail}; see /openapi.json"))
    return _response(request, status, error.status_code, error.headers)


def _response(request: Request, status: Status, http_code: int | None = None, headers: Any = None) -> Response:
    path = request.url.path
    codes, other = (PROTOCOL_CODES, 400) if is_protocol_path(path) else (HTTP_CODES, 500)
    code = http_code or (413 if status.reason == BODY_TOO_LARGE else codes.get(status.code.name, other))
    document = failure_answer(path, status.code.name, status.reason, status.message)
    return Response(json.dumps(document), code, {**_retry_after(status), **(headers or {})}, "application/json")


def _retry_after(status: Status) -> dict[str, str]:
    info = error_details_pb2.RetryInfo()
    for detail in status.proto.details:
        if detail.Unpack(info):
            return {"Retry-After": str(math.ceil(info.retry_delay.seconds + info.retry_delay.nanos / 1e9))}
    return {}
