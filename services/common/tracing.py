"""Spans of OpenTelemetry across the services, where an exporter is configured; next to nothing elsewhere.

The environment variables are those of OpenTelemetry's specification: `OTEL_TRACES_EXPORTER` (or just
`OTEL_EXPORTER_OTLP_ENDPOINT`) switches tracing on, `OTEL_TRACES_SAMPLER` says which requests are traced. A request that
arrives with a W3C `traceparent` is traced, or not, as that says, and it is handed on to the services behind. Names and
attributes are those of OpenTelemetry's semantic conventions.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.errors import SettingsError
from services.common.logs import REQUEST_ID_KEY, request_id
from services.common.statuses import status_of

TRACEPARENT = "traceparent"
"""Metadata key and HTTP header, as the W3C's Trace Context names it."""
SAMPLED_SHARE = 0.01
"""Of the requests without a `traceparent`, where `OTEL_TRACES_SAMPLER` says nothing: each span costs some 50 us."""
LAST_SECONDS = 2.0
"""How long a process that ends goes on trying to send its last spans."""

_PROPAGATOR = TraceContextTextMapPropagator()
_NOTHING: AbstractContextManager[None] = nullcontext()
_on = False
_share = 0.0
_tracer: trace.Tracer = trace.NoOpTracer()


class _Call(NamedTuple):
    """What was decided where the current call arrived."""

    name: str
    decided_by_caller: bool
    untraced: str
    """The `traceparent` of one that is not traced, so that no service behind decides otherwise."""


_call: ContextVar[_Call | None] = ContextVar("call", default=None)


def call_span(method: str, metadata: Iterable[tuple[str, Any]] | None) -> AbstractContextManager[trace.Span | None]:
    """Return the span of a gRPC call that arrives from outside of the process, in a task of its own.

    Args:
        method: As gRPC names it, with its service.
        metadata: As the call brought it.
    """
    if not _on:
        return _NOTHING
    name = method.removeprefix("/")
    given = next((value for key, value in metadata or () if key == TRACEPARENT), "")
    return _arriving(name, given, {"rpc.system.name": "grpc", "rpc.method": name})


def http_span(method: str, path: str, given: str) -> AbstractContextManager[trace.Span | None]:
    """Return the span of an HTTP request, in a task of its own; *given* is its `traceparent`, or empty."""
    if not _on:
        return _NOTHING
    return _arriving(method, given, {"http.request.method": method, "url.path": path})


def item_span() -> AbstractContextManager[trace.Span | None]:
    """Return the span of one request in the current call, a stream, in a task of its own.

    Where the stream's caller did not say whether to trace it, its requests are sampled like calls, each by itself, and
    those that are traced become traces of their own: a stream may last for days.
    """
    call = _call.get()
    if not _on or call is None:
        return _NOTHING
    name = f"{call.name} request"
    if call.decided_by_caller:
        return span(name)
    stream = trace.get_current_span()
    links = [trace.Link(stream.get_span_context())] if stream.is_recording() else []
    return _arriving(name, "", {}, links)


def _arriving(
    name: str, given: str, attributes: Mapping[str, str], links: Sequence[trace.Link] = ()
) -> AbstractContextManager[trace.Span | None]:
    """Decide whether what arrives is traced, for all that it leads to.

    Args:
        name: Of the method or the resource, never of the instance: traces are grouped by it.
        given: The caller's `traceparent`, or empty.
        attributes: Of the instance.
        links: To what it came with, without being a part of it.
    """
    # From an empty context, so that a call never becomes a part of what happens to run in this process.
    parent = _PROPAGATOR.extract({TRACEPARENT: given}, contexts.Context())
    known = trace.get_current_span(parent).get_span_context()
    sampled = known.trace_flags.sampled if known.is_valid else random.random() < _share  # noqa: S311 no secret
    untraced = "" if sampled else given if known.is_valid else _made_up()
    _call.set(_Call(name, known.is_valid, untraced))
    if sampled:
        return _server_span(name, parent, attributes, links)
    contexts.attach(parent)  # else a request would add its parts to the span of its stream
    return _NOTHING


@contextmanager
def _server_span(
    name: str, parent: contexts.Context, attributes: Mapping[str, str], links: Sequence[trace.Link]
) -> Iterator[trace.Span]:
    begun = _tracer.start_span(name, parent, trace.SpanKind.SERVER, attributes, links)
    # Never detached: the context ends with the call's task, and a broken stream is closed in another one.
    contexts.attach(trace.set_span_in_context(begun))
    try:
        yield begun
    except Exception as error:
        _record(error, begun)
        raise
    finally:
        begun.end()


def is_traced() -> bool:
    """Whether the current call is."""
    return _on and trace.get_current_span().is_recording()


def span(name: str, attributes: Mapping[str, str | int] | None = None) -> AbstractContextManager[trace.Span | None]:
    """Return the span of a part of the current call; nothing where that is not traced."""
    return _part(name, attributes) if is_traced() else _NOTHING


@contextmanager
def _part(name: str, attributes: Mapping[str, str | int] | None) -> Iterator[trace.Span]:
    with _tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as begun:
        try:
            yield begun
        except Exception as error:
            _record(error, begun)
            raise


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


def record_failure(error: Exception) -> None:
    """Mark the span of the current call, where that is traced and is answered with *error* rather than ended by it."""
    if is_traced():
        _record(error, trace.get_current_span())


def _record(error: Exception, failed: trace.Span) -> None:
    status = status_of(error)
    failed.set_attribute("error.type", status.reason)
    failed.set_attribute("rpc.response.status_code", status.code.name)
    if status.expected:
        failed.set_status(trace.StatusCode.ERROR, status.message)
    else:  # with where it came from; a refusal is no riddle
        failed.record_exception(error)
        failed.set_status(trace.StatusCode.ERROR, str(error))


def call_metadata(*, stream: bool = False) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call to a service behind: the current request's id and its trace.

    A *stream* of requests takes no trace along that was begun here: who answers them samples each by itself.
    """
    identity = (REQUEST_ID_KEY, request_id())
    call = _call.get()
    if not _on or (stream and call is not None and not call.decided_by_caller):
        return (identity,)
    carrier = {TRACEPARENT: call.untraced if call is not None else ""}
    if not carrier[TRACEPARENT]:
        _PROPAGATOR.inject(carrier)
    return (identity, *((TRACEPARENT, value) for value in carrier.values() if value))


@contextmanager
def exporting_spans(service: str) -> Iterator[None]:
    """Export the spans of this process while inside, where the environment names an exporter.

    Raises:
        SettingsError: It names one that is not installed, a sampler that is unknown, or something that the SDK refuses.
    """
    global _on, _share, _tracer
    names = _exporter_names(os.environ)
    if not names:
        yield
        return
    share = _sampled_share(os.environ)
    provider, exporters = _provider(service, names)
    _on, _share, _tracer = True, share, provider.get_tracer("aimass")
    try:
        yield
    finally:
        _on = False
        # A collector that is away would be tried again and again while the process should end.
        giving_up = threading.Timer(LAST_SECONDS, lambda: [each.shutdown() for each in exporters])
        giving_up.start()
        provider.shutdown()  # sends what is left
        giving_up.cancel()


def _exporter_names(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the exporters, as their packages register them; none where nothing should be traced."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    named = environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    packages = {"otlp": {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}.get(protocol, protocol)}
    names = (each.strip() for each in named.lower().split(","))
    return [packages.get(name, name) for name in names if name not in ("", "none")]


def _sampled_share(environ: Mapping[str, str]) -> float:
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").lower().removeprefix("parentbased_")
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


def _provider(service: str, names: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return what makes the spans, and the exporters that get them."""
    registered = [_registered(name) for name in names]
    try:
        # Here, not above: the SDK is an extra, and reads some of its variables when it is imported.
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider, sampling
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(
            sampler=sampling.ALWAYS_ON,  # decided at the door, once for all spans of a request
            resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or f"aimass-{service}"}),
        )
        exporters = [each.load()() for each in registered]
        for exporter in exporters:
            provider.add_span_processor(BatchSpanProcessor(exporter))
    except Exception as error:  # each exporter has its own
        raise SettingsError(f"OpenTelemetry's SDK refuses what OTEL_* says: {error}") from error
    return provider, exporters


def _registered(name: str) -> EntryPoint:
    known = entry_points(group="opentelemetry_traces_exporter")
    if name not in known.names:
        installed = ", ".join(sorted(known.names)) or "none: install the extra tracing"
        raise SettingsError(f"OTEL_* asks for the exporter {name!r}, which is not installed; there are {installed}")
    return known[name]


def _made_up() -> str:
    """Return the `traceparent` of a request that is not traced."""
    return f"00-{random.getrandbits(128) | 1:032x}-{random.getrandbits(64) | 1:016x}-00"
