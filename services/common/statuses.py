"""The one place where exceptions become gRPC statuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.common import errors
from services.common.durations import duration_of

log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 1024
"""A message quotes what the caller sent, travels in the trailers up to three times, and trailers hold 8 KiB."""
MAX_DETAIL_BYTES = 256
ERROR_DOMAIN = "aimass"
"""`domain` of every `google.rpc.ErrorInfo` that the suite sends."""

CODES: dict[type[errors.ServiceError], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True)
class Status:
    """What a caller is told: a canonical code, a stable reason and a sentence."""

    code: grpc.StatusCode
    message: str
    reason: str
    proto: status_pb2.Status
    """The same with `google.rpc` details, as it goes into the trailers."""

    @property
    def expected(self) -> bool:
        """Whether the error is part of the contract, rather than a fault of ours."""
        return self.code is not grpc.StatusCode.INTERNAL


def status_of(error: BaseException) -> Status:
    """Map any exception to the status that callers see; the same table serves gRPC and HTTP."""
    if isinstance(error, errors.ServiceError):
        return _status(CODES[type(error)], error.message, error.reason, _details(error))
    if isinstance(error, grpc.aio.AioRpcError):
        return _backend_status(error)
    if isinstance(error, TimeoutError):
        return status_of(
            errors.DeadlineExceeded("the deadline passed before the answer was ready; allow more time or send less")
        )
    if isinstance(error, DecodeError):
        return status_of(
            errors.InvalidInput("the request is not a message of the method's type; send one of that type")
        )
    if isinstance(error, NotImplementedError):  # raised by the generated base of a servicer
        return status_of(
            errors.Unsupported("this server does not implement the method; ask its reflection for those that it has")
        )
    return _status(grpc.StatusCode.INTERNAL, "internal error", "INTERNAL", [])


def _status(code: grpc.StatusCode, message: str, reason: str, details: list[Any]) -> Status:
    message = _cut(message, MAX_MESSAGE_BYTES)
    proto = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        proto.details.add().Pack(detail)
    return Status(code, message, reason, proto)


def _details(error: errors.ServiceError) -> list[Any]:
    facts = {key: _cut(value, MAX_DETAIL_BYTES) for key, value in error.details.items()}
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=facts)]
    if error.field is not None:
        description = _cut(error.message, MAX_MESSAGE_BYTES)
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=description)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_seconds is not None:
        delay = duration_of(int(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _cut(text: str, size: int) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= size else data[: size - 3].decode(errors="ignore") + "…"


def _backend_status(error: grpc.aio.AioRpcError) -> Status:
    """Keep a backend's status, so that it reaches the client as the backend meant it."""
    message = error.details() or ""
    code = error.code()
    proto = _rich_status(error)
    if proto is None and code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        # grpc's own text for a lost connection names our internal addresses. CANCELLED, where it wasn't us, is what
        # a server makes of calls that it had not begun when it stopped.
        return status_of(errors.NotReady("a service behind the gateway is not reachable; try again"))
    if proto is None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return status_of(TimeoutError())  # grpc's own end of the call; the backend, where it speaks, knows more
    proto = proto or status_pb2.Status(code=code.value[0], message=message)
    return Status(code, message, _reason(proto) or code_pb2.Code.Name(code.value[0]), proto)


def _rich_status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        return rpc_status.from_call(error)
    except ValueError:  # code or text disagree with the details, so the details are not ours
        return None


def _reason(proto: status_pb2.Status) -> str | None:
    info = error_details_pb2.ErrorInfo()
    for detail in proto.details:
        if detail.Unpack(info):
            return str(info.reason)
    return None


def log_failure(status: Status, error: BaseException, **facts: Any) -> None:
    """Log an expected failure in one line, an unexpected one with its trace."""
    if status.expected:
        log.info("call refused", code=status.code.name, reason=status.reason, message=status.message, **facts)
    else:
        log.error("call failed", code=status.code.name, exc_info=error, **facts)
