"""`TraceSetting` and `LogSettings`: what can be set, what is refused, and what it does."""

import json
import subprocess
import sys

import grpc
import pytest

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.errors import InvalidInput, Unsupported
from services.inference.contracts.log_settings import LogSettings
from services.inference.contracts.traces import DEFAULTS, Traces


@pytest.fixture
def stub(inference):
    return GRPCInferenceServiceStub(inference.channel)


def trace_request(model: str = "", **settings) -> pb.TraceSettingRequest:
    values = {name: pb.TraceSettingRequest.SettingValue(value=value) for name, value in settings.items()}
    return pb.TraceSettingRequest(model_name=model, settings=values)


async def trace(stub, *args, **settings) -> dict[str, list[str]]:
    response = await stub.TraceSetting(trace_request(*args, **settings))
    return {name: [*setting.value] for name, setting in response.settings.items()}


async def test_trace_settings_are_tritons_defaults_until_they_are_changed(stub):
    assert await trace(stub) == DEFAULTS
    assert await trace(stub, "tiny") == DEFAULTS


async def test_trace_settings_of_a_model_stand_before_those_of_the_server(stub):
    assert (await trace(stub, trace_rate=["10"], trace_count=["5"]))["trace_rate"] == ["10"]
    assert (await trace(stub, "tiny", trace_rate=["2"]))["trace_rate"] == ["2"]

    assert (await trace(stub))["trace_rate"] == ["10"]
    own = await trace(stub, "tiny")
    assert (own["trace_rate"], own["trace_count"]) == (["2"], ["5"])
    assert (await trace(stub, "tiny", trace_rate=[]))["trace_rate"] == ["10"]
    assert (await trace(stub, trace_rate=[]))["trace_rate"] == ["1000"]


async def test_trace_settings_of_an_unknown_model_are_not_found(stub):
    with pytest.raises(grpc.aio.AioRpcError, match="model 'other' is unknown") as caught:
        await trace(stub, "other")

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("name", "values", "error", "words"),
    [
        ("trace_levels", ["OFF"], InvalidInput, "'trace_levels' is unknown; use one of trace_file, trace_level"),
        ("trace_level", ["TENSORS"], Unsupported, "use OFF or TIMESTAMPS"),
        ("trace_level", ["timestamps"], Unsupported, "use OFF or TIMESTAMPS"),
        ("trace_file", ["/etc/passwd"], Unsupported, "traces go to the service's log"),
        ("trace_mode", ["opentelemetry"], Unsupported, "leave it 'triton'"),
        ("trace_rate", ["0"], InvalidInput, "trace_rate is '0'; give one integer from 1"),
        ("trace_rate", ["1", "2"], InvalidInput, "give one integer"),
        ("trace_count", ["-2"], InvalidInput, "give one integer from -1"),
        ("trace_count", ["many"], InvalidInput, "give one integer from -1"),
        ("trace_count", ["9" * 5000], InvalidInput, "give one integer from -1"),
        ("log_frequency", ["-1"], InvalidInput, "give one integer from 0"),
    ],
)
def test_trace_setting_that_cannot_be_is_refused_and_changes_nothing(name, values, error, words):
    traces = Traces()
    with pytest.raises(error, match=words):
        traces.update("", {"trace_rate": ["7"], name: values})

    assert traces.settings() == DEFAULTS


def test_one_of_rate_requests_is_traced_until_count_were():
    traces = Traces()
    assert not any(traces.sample("m") for _ in range(3000))

    traces.update("", {"trace_level": ["TIMESTAMPS"], "trace_rate": ["3"], "trace_count": ["2"]})
    assert [traces.sample("m") for _ in range(12)] == [False, False, True] * 2 + [False] * 6

    traces.update("m", {"trace_rate": ["1"]})
    assert [traces.sample("m") for _ in range(3)] == [True, True, False]
    assert [traces.sample("n") for _ in range(3)] == [False, False, True]
    traces.update("m", {"trace_level": ["OFF"]})
    assert not any(traces.sample("m") for _ in range(3))


LOGGING_SERVICE = """
import asyncio, sys
import numpy as np
from pathlib import Path
from aimass.open_inference import grpc_service_pb2 as pb
from services.common.direct import DirectContext
from services.common.logs import configure_logs
from services.common.server import StopSignal
from services.inference.service import InferenceComponent
from services.inference.settings import InferenceSettings

async def main():
    settings = InferenceSettings(repository=Path(sys.argv[1]), device="cpu", threads=1)
    component = InferenceComponent(settings, StopSignal())
    await component.start()
    servicer = component.open_inference
    request = pb.ModelInferRequest(model_name="tiny", id="7", raw_input_contents=[bytes(48)])
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 4, 4, 3])
    context = DirectContext(None, None)

    async def log(**values):
        settings = {name: pb.LogSettingsRequest.SettingValue(**value) for name, value in values.items()}
        await servicer.LogSettings(pb.LogSettingsRequest(settings=settings), context)

    tracing = pb.TraceSettingRequest()
    tracing.settings["trace_level"].value.append("TIMESTAMPS")
    tracing.settings["trace_rate"].value.append("1")
    await servicer.ModelInfer(request, context)
    await servicer.TraceSetting(tracing, context)
    await servicer.ModelInfer(request, context)
    await log(log_info={"bool_param": False}, log_verbose_level={"uint32_param": 1})
    await servicer.ModelInfer(request, context)
    await log(log_info={"bool_param": True})
    await servicer.ModelInfer(request, context)
    await component.close()

configure_logs("inference", "INFO", "json")
asyncio.run(main())
"""


def test_log_holds_traces_and_answered_requests_as_set(model_repository):
    command = [sys.executable, "-c", LOGGING_SERVICE, str(model_repository)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    traces = [event for event in events if event["event"] == "trace"]

    # The first request was not traced; the third was not logged.
    assert [event["event"] for event in events if event["event"] != "version ready"] == [
        "trace",
        "trace",
        "inference answered",
    ]
    assert (traces[0]["model_name"], traces[0]["model_version"], traces[0]["triton_request_id"]) == ("tiny", 1, "7")
    assert [stamp["name"] for stamp in traces[0]["timestamps"]] == [
        "REQUEST_START",
        "QUEUE_START",
        "COMPUTE_START",
        "COMPUTE_INPUT_END",
        "COMPUTE_OUTPUT_START",
        "COMPUTE_END",
        "REQUEST_END",
    ]
    times = [stamp["ns"] for stamp in traces[0]["timestamps"]]
    assert times == sorted(times)


async def test_log_settings_are_shown_and_changed(stub):
    async def log(**values) -> dict[str, object]:
        settings = {name: pb.LogSettingsRequest.SettingValue(**value) for name, value in values.items()}
        response = await stub.LogSettings(pb.LogSettingsRequest(settings=settings))
        return {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in response.settings.items()}

    first = await log()
    assert first == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "ISO8601",
    }
    changed = await log(log_verbose_level={"uint32_param": 1}, log_warning={"bool_param": False}, log_info={})
    assert changed == {**first, "log_verbose_level": 1, "log_warning": False}
    assert await log() == changed


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("log_debug", True, InvalidInput, "'log_debug' is unknown; use one of log_file, log_format, log_info"),
        ("log_info", 1, InvalidInput, "'log_info' cannot be 1; give it as a bool_param"),
        ("log_verbose_level", True, InvalidInput, "give it as a uint32_param"),
        ("log_file", "/tmp/log", Unsupported, "log_file cannot be '/tmp/log': the log goes to standard error"),
        ("log_format", "default", Unsupported, "log_format cannot be 'default': the log goes to standard error"),
    ],
)
def test_log_setting_that_cannot_be_is_refused_and_changes_nothing(name, value, error, words):
    logs = LogSettings()
    before = logs.values()
    with pytest.raises(error, match=words):
        logs.update({"log_warning": False, name: value})

    assert logs.values() == before
