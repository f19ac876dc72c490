"""Spans as an OpenTelemetry collector receives them."""

import random

import pytest

from services.common import tracing
from services.common.errors import SettingsError
from services.common.logs import REQUEST_ID_KEY, bind_request_id
from services.common.tracing import TRACEPARENT, call_metadata, call_span, exporting_spans, record_span, span

TRACE, PARENT = f"{0xABC:032x}", f"{0xDEF:016x}"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


@pytest.fixture
def tracing_on(monkeypatch, collector):
    """Export to the collector, and trace every request."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")


async def test_nothing_is_traced_without_an_exporter(collector):
    with exporting_spans("test"), call_span("call", [(TRACEPARENT, SAMPLED)]), span("part"):
        record_span("stage", 0, 1)
        metadata = call_metadata()

    assert [key for key, _ in metadata] == [REQUEST_ID_KEY]
    assert collector.spans == []


async def test_parts_and_stages_belong_to_their_call(tracing_on, collector):
    with exporting_spans("test"), call_span("call", ()):
        with span("part", {"images": 3}):
            pass
        record_span("stage", 1_000, 3_500, {"model": "m"})

    call, part, stage = (collector.named(name) for name in ("call", "part", "stage"))
    assert part.parent_span_id == stage.parent_span_id == call.span_id
    assert part.trace_id == stage.trace_id == call.trace_id
    assert not call.parent_span_id
    assert stage.end_time_unix_nano - stage.start_time_unix_nano == 2_500
    assert collector.services == {"aimass-test"}


async def test_a_callers_trace_goes_on_and_is_handed_on(tracing_on, collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    bind_request_id([(REQUEST_ID_KEY, "mine")])

    with exporting_spans("test"), call_span("call", [("other", "x"), (TRACEPARENT, SAMPLED)]):
        metadata = dict(call_metadata())

    call = collector.named("call")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert metadata == {REQUEST_ID_KEY: "mine", TRACEPARENT: f"00-{TRACE}-{call.span_id.hex()}-01"}


async def test_what_a_caller_does_not_trace_nobody_behind_does(tracing_on, collector):
    with exporting_spans("test"), call_span("call", [(TRACEPARENT, NOT_SAMPLED)]), span("part"):
        metadata = dict(call_metadata())

    assert metadata[TRACEPARENT] == NOT_SAMPLED
    assert collector.spans == []


@pytest.mark.parametrize("given", ["", "00-zz", f"00-{'0' * 32}-{PARENT}-01", "x" * 10_000])
async def test_a_malformed_traceparent_counts_as_none(tracing_on, collector, given):
    with exporting_spans("test"), call_span("call", [(TRACEPARENT, given)]):
        pass

    assert not collector.named("call").parent_span_id


async def test_a_share_of_the_requests_is_traced_and_the_others_say_so(tracing_on, collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    random.seed(1)
    handed_on = []

    with exporting_spans("test"):
        for _ in range(400):
            with call_span("call", ()):
                handed_on.append(dict(call_metadata())[TRACEPARENT])

    traced = [value for value in handed_on if int(value[-2:], 16) & 1]
    assert len(collector.spans) == len(traced)
    assert 60 < len(traced) < 140
    assert len(set(handed_on)) == 400


async def test_a_failed_call_is_marked(tracing_on, collector):
    with pytest.raises(ZeroDivisionError), exporting_spans("test"), call_span("call", ()):
        raise ZeroDivisionError("by zero")

    call = collector.named("call")
    assert call.status.message == "by zero"
    assert [event.name for event in call.events] == ["exception"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER names 'zipkin', which is not installed"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "some"}, "OTEL_TRACES_SAMPLER='some'"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"},
            "a share from 0 to 1",
        ),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=words), exporting_spans("test"):
        pass


@pytest.mark.parametrize("variables", [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
async def test_tracing_can_be_switched_off(tracing_on, collector, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with exporting_spans("test"), call_span("call", ()):
        pass

    assert collector.spans == []
    assert tracing.call_metadata()[0][0] == REQUEST_ID_KEY
