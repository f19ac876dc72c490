"""Spans as an OpenTelemetry collector receives them."""

import json
import random
import subprocess
import sys

import grpc
import pytest

from services.common import tracing
from services.common.errors import NotFound, SettingsError
from services.common.logs import REQUEST_ID_KEY, bind_request_id
from services.common.streaming import answer_in_order
from services.common.tracing import (
    TRACEPARENT,
    call_metadata,
    call_span,
    exporting_spans,
    record_failure,
    record_span,
    span,
)
from tests.collector import attributes_of

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
    assert attributes_of(call)["rpc.response.status_code"] == "INTERNAL"


async def test_a_refusal_is_told_by_its_code_and_words_and_without_a_stack(tracing_on, collector):
    refusal = NotFound("no such model", reason="MODEL_NOT_FOUND")

    with exporting_spans("test"):
        with pytest.raises(NotFound), call_span("/test.Test/Call", ()), span("part"):
            raise refusal
        with call_span("answered", ()):
            record_failure(refusal)

    assert attributes_of(collector.named("test.Test/Call")) == {
        "rpc.system.name": "grpc",
        "rpc.method": "test.Test/Call",
        "rpc.response.status_code": "NOT_FOUND",
        "error.type": "MODEL_NOT_FOUND",
    }
    assert len(collector.spans) == 3
    for each in collector.spans:
        assert (each.status.code, each.status.message) == (each.status.STATUS_CODE_ERROR, "no such model")
        assert not each.events


@pytest.fixture
async def ask_stream(serve_handlers):
    """A function that sends 100 requests in one stream, and returns the metadata of what each called behind it."""

    async def answer(request):
        with span("part"):
            return dict(call_metadata())[TRACEPARENT].encode()

    async def answers(requests, context):
        assert TRACEPARENT in dict(call_metadata())
        context.set_trailing_metadata(call_metadata(stream=True))
        async for each in answer_in_order(requests, answer, 10):
            yield each

    async def ask(*metadata):
        served = await serve_handlers(Stream=grpc.stream_stream_rpc_method_handler(answers))
        call = served.channel.stream_stream("/test.Test/Stream")(iter([b""] * 100), metadata=metadata)
        return [each.decode() async for each in call], dict(await call.trailing_metadata())

    return ask


async def test_each_request_of_a_stream_is_sampled_by_itself(tracing_on, collector, monkeypatch, ask_stream):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.3")
    random.seed(2)

    with exporting_spans("test"):
        handed_on, together = await ask_stream()

    requests = [each for each in collector.spans if each.name == "test.Test/Stream request"]
    traced = [value for value in handed_on if int(value[-2:], 16) & 1]
    assert 10 < len(traced) < 60
    assert {each.trace_id.hex() for each in requests} == {value.split("-")[1] for value in traced}
    assert not any(each.parent_span_id for each in requests)
    parts = [each for each in collector.spans if each.name == "part"]
    assert {each.parent_span_id for each in parts} == {each.span_id for each in requests}
    assert len(set(handed_on)) == 100
    assert TRACEPARENT not in together  # who answers a forwarded stream samples its requests too


async def test_the_requests_of_a_stream_name_it_where_it_is_traced_too(tracing_on, collector, ask_stream):
    with exporting_spans("test"):
        await ask_stream()

    stream = collector.named("test.Test/Stream")
    requests = [each for each in collector.spans if each.name == "test.Test/Stream request"]
    assert len({each.trace_id for each in (stream, *requests)}) == 101
    assert {link.span_id for each in requests for link in each.links} == {stream.span_id}


async def test_the_requests_of_a_stream_belong_to_its_callers_trace(tracing_on, collector, monkeypatch, ask_stream):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")

    with exporting_spans("test"):
        _, together = await ask_stream((TRACEPARENT, SAMPLED))

    stream = collector.named("test.Test/Stream")
    requests = [each for each in collector.spans if each.name == "test.Test/Stream request"]
    assert {each.trace_id.hex() for each in collector.spans} == {TRACE}
    assert {each.parent_span_id for each in requests} == {stream.span_id}
    assert (stream.parent_span_id.hex(), len(requests)) == (PARENT, 100)
    assert together[TRACEPARENT] == f"00-{TRACE}-{stream.span_id.hex()}-01"


async def test_a_stream_that_its_caller_does_not_trace_is_not_traced(tracing_on, collector, ask_stream):
    with exporting_spans("test"):
        handed_on, together = await ask_stream((TRACEPARENT, NOT_SAMPLED))

    assert {*handed_on, together[TRACEPARENT]} == {NOT_SAMPLED}
    assert collector.spans == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "the exporter 'zipkin', which is not installed; there are .*console"),
        ({"OTEL_TRACES_EXPORTER": "otlp,zipkin"}, "'zipkin'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "'http/json'"),
        ({"OTEL_TRACES_SAMPLER": "some"}, "OTEL_TRACES_SAMPLER='some'"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"}, "a share from 0 to 1"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "ten"}, "refuses what OTEL_.* says: .*'ten'"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "bogus"}, "refuses .*OTEL_EXPORTER_OTLP_COMPRESSION"),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "99999"}, "refuses .*max_export_batch_size"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "-5"}, "refuses .*schedule_delay"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x"}, "refuses .*OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(monkeypatch, variables, words):
    for name, value in {"OTEL_TRACES_EXPORTER": "otlp", **variables}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=words), exporting_spans("test"):
        pass


async def test_capitals_do_not_matter(tracing_on, collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "OTLP")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "Always_On")

    with exporting_spans("test"), call_span("call", ()):
        pass

    assert collector.named("call")


def test_several_exporters_all_get_the_spans(tracing_on, collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp, console")
    program = "from services.common.tracing import *\nwith exporting_spans('test'), call_span('call', ()): pass"

    # A process of its own: the SDK writes to what was standard output when it was imported.
    written = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, timeout=60).stdout

    assert json.loads(written)["name"] == "call"
    assert collector.named("call")


@pytest.mark.parametrize("variables", [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
async def test_tracing_can_be_switched_off(tracing_on, collector, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with exporting_spans("test"), call_span("call", ()):
        pass

    assert collector.spans == []
    assert tracing.call_metadata()[0][0] == REQUEST_ID_KEY
