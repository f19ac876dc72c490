"""Structured logs: one event per line, with the id of the request that it belongs to."""

import logging
import sys
import uuid
from collections.abc import Callable, Iterable, MutableMapping
from contextvars import ContextVar
from typing import Any, Literal

import grpc
import structlog

REQUEST_ID_KEY = "x-request-id"
"""Metadata key and HTTP header that carry the request id through all services."""

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def request_id() -> str:
    """Return the id of the request that the current task works on; empty outside of requests."""
    return _request_id.get()


def bind_request_id(metadata: Iterable[tuple[str, Any]] | None) -> str:
    """Adopt the caller's request id from *metadata*, or make one."""
    given = next((str(value) for key, value in metadata or () if key == REQUEST_ID_KEY), "")
    # Foreign ids are cut, so that a caller can't fill our logs.
    value = given[:64] or uuid.uuid4().hex
    _request_id.set(value)
    return value


def configure_logs(service: str, level: str = "INFO", style: Literal["auto", "json", "console"] = "auto") -> None:
    """Send the logs of this process to standard error: JSON, or colours on a terminal."""
    console = sys.stderr.isatty() if style == "auto" else style == "console"
    # Not the traceback with all variables: they hold the images of callers.
    colours = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    rendering = [structlog.processors.format_exc_info, colours if console else structlog.processors.JSONRenderer()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_service(service),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering], foreign_pre_chain=shared
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(grpc.aio.InternalError.__module__).addFilter(_is_fault)


def _is_fault(record: logging.LogRecord) -> bool:
    """Whether grpc complains of more than an answer to a caller who has gone, or whose deadline passed as it left.

    grpc holds its tongue itself where it has learnt so before the answer fails, which is a race.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, grpc.aio.InternalError) and str(error).startswith('Failed "execute_batch"'))


def _add_service(service: str) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        if identity := _request_id.get():
            event["request_id"] = identity
        return event

    return add
