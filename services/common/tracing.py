"""Spans of OpenTelemetry across the services, where an exporter is configured; next to nothing elsewhere.

The environment variables are those of OpenTelemetry's specification: `OTEL_TRACES_EXPORTER` (or just
`OTEL_EXPORTER_OTLP_ENDPOINT`) switches tracing on, `OTEL_TRACES_SAMPLER` says which requests are traced. A request that
arrives with a W3C `traceparent` is traced, or not, as that says, and it is handed on to the services behind.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.errors import SettingsError
from services.common.logs import REQUEST_ID_KEY, request_id

TRACEPARENT = "traceparent"
"""Metadata key and HTTP header, as the W3C's Trace Context names it."""
SAMPLED_SHARE = 0.01
"""Of the requests without a `traceparent`, where `OTEL_TRACES_SAMPLER` says nothing: each span costs some 50 us."""
LAST_SECONDS = 2.0
"""How long a process that ends goes on trying to send its last spans."""

_NOT_SAMPLED = "00"
_PROPAGATOR = TraceContextTextMapPropagator()
_NOTHING: AbstractContextManager[None] = nullcontext()
_on = False
_share = 0.0
_tracer: trace.Tracer = trace.NoOpTracer()
_untraced: ContextVar[str] = ContextVar("untraced", default="")
"""The `traceparent` of a request that is not traced, so that no service behind decides otherwise."""


def call_span(
    name: str, metadata: Iterable[tuple[str, Any]] | None, attributes: Mapping[str, str] | None = None
) -> AbstractContextManager[None]:
    """Return the span of a call that arrives from outside of the process, in a task of its own.

    Args:
        name: Of the method or the resource, never of the instance: traces are grouped by it.
        metadata: As the call brought it.
        attributes: Of the instance.
    """
    if not _on:
        return _NOTHING
    given = next((value for key, value in metadata or () if key == TRACEPARENT), "")
    # From an empty context, so that a call never becomes a part of what happens to run in this process.
    parent = _PROPAGATOR.extract({TRACEPARENT: given}, contexts.Context())
    known = trace.get_current_span(parent).get_span_context()
    sampled = known.trace_flags.sampled if known.is_valid else random.random() < _share  # noqa: S311 no secret
    _untraced.set("" if sampled else given if known.is_valid else _made_up())
    return _call_span(name, parent, attributes) if sampled else _NOTHING


@contextmanager
def _call_span(name: str, parent: contexts.Context, attributes: Mapping[str, str] | None) -> Iterator[None]:
    begun = _tracer.start_span(name, parent, trace.SpanKind.SERVER, attributes)
    # Never detached: the context ends with the call's task, and a broken stream is closed in another one.
    contexts.attach(trace.set_span_in_context(begun))
    try:
        yield
    except Exception as error:
        begun.record_exception(error)
        begun.set_status(trace.StatusCode.ERROR, str(error))
        raise
    finally:
        begun.end()


def is_traced() -> bool:
    """Whether the current call is."""
    return _on and trace.get_current_span().is_recording()


def span(name: str, attributes: Mapping[str, str | int] | None = None) -> AbstractContextManager[Any]:
    """Return the span of a part of the current call; nothing where that is not traced."""
    if not is_traced():
        return _NOTHING
    return _tracer.start_as_current_span(name, attributes=attributes)


def record_span(name: str, begin: int, end: int, attributes: Mapping[str, str | int] | None = None) -> None:
    """Add a part of the current call, which is traced, that is over.

    Args:
        name: Of the part.
        begin: When it began, by `time.perf_counter_ns`.
        end: When it ended.
        attributes: What else is known.
    """
    offset = time.time_ns() - time.perf_counter_ns()
    _tracer.start_span(name, attributes=attributes, start_time=begin + offset).end(end + offset)


def call_metadata() -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call to a service behind: the current request's id and its trace."""
    identity = (REQUEST_ID_KEY, request_id())
    if not _on:
        return (identity,)
    carrier = {TRACEPARENT: _untraced.get()}
    if not carrier[TRACEPARENT]:
        _PROPAGATOR.inject(carrier)
    return (identity, *((TRACEPARENT, value) for value in carrier.values() if value))


@contextmanager
def exporting_spans(service: str) -> Iterator[None]:
    """Export the spans of this process while inside, where the environment names an exporter.

    Raises:
        SettingsError: It names one that is not installed, or a sampler that is unknown.
    """
    global _on, _share, _tracer
    if not _is_wanted(os.environ):
        yield
        return
    share = _sampled_share(os.environ)
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider, sampling
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            "OTEL_* asks for traces, but OpenTelemetry's SDK is missing; install the extra tracing"
        ) from error
    # Decided at the door, once for all spans of a request.
    provider = TracerProvider(
        sampler=sampling.ALWAYS_ON,
        resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or f"aimass-{service}"}),
    )
    exporter = _exporter(os.environ)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _on, _share, _tracer = True, share, provider.get_tracer("aimass")
    try:
        yield
    finally:
        _on = False
        # A collector that is away would be tried again and again while the process should end.
        giving_up = threading.Timer(LAST_SECONDS, exporter.shutdown)
        giving_up.start()
        provider.shutdown()  # sends what is left
        giving_up.cancel()


def _is_wanted(environ: Mapping[str, str]) -> bool:
    named = environ.get("OTEL_TRACES_EXPORTER", "")
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return named != "none" and bool(named or endpoint) and environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


def _sampled_share(environ: Mapping[str, str]) -> float:
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").removeprefix("parentbased_")
    argument = environ.get("OTEL_TRACES_SAMPLER_ARG") or "1"
    known = {"": str(SAMPLED_SHARE), "always_on": "1", "always_off": "0", "traceidratio": argument}
    try:
        share = float(known[sampler])
    except (KeyError, ValueError):
        share = math.nan
    if not 0 <= share <= 1:
        raise SettingsError(
            f"OTEL_TRACES_SAMPLER={sampler!r} with OTEL_TRACES_SAMPLER_ARG={argument!r} is no sampler; use always_on, "
            "always_off, or traceidratio with a share from 0 to 1"
        )
    return share


def _exporter(environ: Mapping[str, str]) -> Any:
    """Return the exporter by the name under which its package is registered with OpenTelemetry's SDK."""
    name = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name == "otlp":
        protocol = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        name = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}.get(protocol, protocol)
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        return found.load()()
    installed = sorted(each.name for each in entry_points(group="opentelemetry_traces_exporter"))
    raise SettingsError(
        f"OTEL_TRACES_EXPORTER names {name!r}, which is not installed; there are {', '.join(installed) or 'none'}"
    )


def _made_up() -> str:
    return f"00-{random.getrandbits(128) | 1:032x}-{random.getrandbits(64) | 1:016x}-{_NOT_SAMPLED}"
