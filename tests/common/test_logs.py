"""What a service process writes to standard error."""

import json
import os
import subprocess
import sys

import pytest

from services.common.logs import bind_request_id, request_id

PROBE = """
import logging
from services.common.logs import bind_request_id
from services.common.server import run_process
from services.common.settings import ServiceSettings
from pydantic_settings import SettingsConfigDict
import structlog

class ProbeSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="PROBE_")

async def main(settings, stop):
    log = structlog.get_logger()
    log.debug("too quiet")
    log.info("outside")
    bind_request_id([("x-request-id", "id-7")])
    try:
        1 / 0
    except ZeroDivisionError as error:
        log.error("inside", port=7, exc_info=error)
        logging.getLogger("foreign").exception("from a library")

run_process("probe", ProbeSettings, main)
"""

LATE_PROBE = """
import asyncio, logging
import grpc
from pydantic_settings import SettingsConfigDict
from services.common.server import GrpcServer, Service, run_process
from services.common.settings import ServiceSettings

class ProbeSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="PROBE_")

async def late(request, context):
    await asyncio.sleep(max(0.0, context.time_remaining() - 0.001))  # so that answer and deadline meet
    raise TimeoutError

def register(server):
    handlers = {"Late": grpc.unary_unary_rpc_method_handler(late)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))

async def main(settings, stop):
    server = GrpcServer("127.0.0.1:0", [Service("test.Test", register)], max_message_bytes=1000)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test.Test/Late")
        for _ in range(40):
            answers = await asyncio.gather(*(call(b"", timeout=0.02) for _ in range(30)), return_exceptions=True)
            print({answer.code().name for answer in answers})
    await server.stop(1.0)
    try:
        raise grpc.aio.InternalError("Failed grpc_call_start_batch: 9")
    except grpc.aio.InternalError:
        logging.getLogger("grpc._cython.cygrpc").exception("a fault of ours")

run_process("probe", ProbeSettings, main)
"""


def run_probe(probe: str = PROBE, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, timeout=60)


def test_every_line_is_one_json_event_with_its_request_id():
    finished = run_probe()

    outside, inside, foreign = [json.loads(line) for line in finished.stderr.splitlines()]
    assert (finished.returncode, finished.stdout) == (0, "")
    assert (outside["event"], outside["level"], outside["service"]) == ("outside", "info", "probe")
    assert "request_id" not in outside
    assert (inside["event"], inside["port"], inside["request_id"]) == ("inside", 7, "id-7")
    assert (foreign["event"], foreign["level"], foreign["request_id"]) == ("from a library", "error", "id-7")
    assert all("ZeroDivisionError: division by zero" in event["exception"] for event in (inside, foreign))


def test_console_style_is_for_people():
    finished = run_probe(PROBE_LOG_STYLE="console", PROBE_LOG_LEVEL="DEBUG")

    assert "too quiet" in finished.stderr
    assert finished.stderr.count("ZeroDivisionError: division by zero") == 2
    assert "Warning" not in finished.stderr
    assert not finished.stderr.startswith("{")


def test_an_answer_that_comes_with_the_deadline_is_no_fault():
    finished = run_probe(LATE_PROBE)

    assert finished.returncode == 0
    assert finished.stdout == "{'DEADLINE_EXCEEDED'}\n" * 40
    events = [json.loads(line) for line in finished.stderr.splitlines() if line.startswith("{")]
    assert [event["event"] for event in events if event["level"] != "info"] == ["a fault of ours"]


def test_wrong_setting_ends_the_process_with_a_sentence():
    finished = run_probe(PROBE_LOG_LEVL="DEBUG")

    assert finished.returncode == 1
    assert finished.stderr == "probe: PROBE_LOG_LEVL is not a setting; did you mean PROBE_LOG_LEVEL?\n"


@pytest.mark.parametrize(
    ("metadata", "adopted"),
    [
        ([("x-request-id", "abc")], "abc"),
        ([("other", "1"), ("x-request-id", "first"), ("x-request-id", "second")], "first"),
        ([("x-request-id", "x" * 10_000)], "x" * 64),
    ],
)
def test_request_id_of_the_caller_is_adopted(metadata, adopted):
    assert bind_request_id(metadata) == adopted == request_id()


@pytest.mark.parametrize("metadata", [None, [], [("other", "1")], [("x-request-id", "")]])
def test_request_without_an_id_gets_one_of_its_own(metadata):
    assert bind_request_id(metadata) != bind_request_id(metadata)
    assert len(request_id()) == 32
