"""`aimass up` from the first line that it prints to its last process."""

import asyncio
import signal
import socket
import subprocess

import grpc
import httpx
import pytest

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from tests.end_to_end.pictures import cat
from tests.end_to_end.slow import PALE, Slow, picture
from tests.end_to_end.suite import (
    AIMASS,
    MODES,
    START_SECONDS,
    clean_environment,
    is_serving,
    poll,
    start_suite,
    wait_for_end,
)

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
BOTH_MODES = pytest.mark.parametrize("mode", MODES)


def is_free(port):
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def up(mode, **environment):
    """Run `aimass up` where it must end by itself."""
    command = [AIMASS, "up", "--mode", mode]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_SECONDS)


def test_the_suite_prints_where_its_page_is_and_what_to_type(suite):
    with suite.client() as client:
        page = client.get("/")

    assert f"AI Mass is ready.  Page  {suite.url}   gRPC  {suite.address}" in suite.printed
    assert f"curl --data-binary @cat.jpg {suite.url}/v1/models/cifar10/predict" in suite.printed
    assert "AI Mass" in page.text


def test_the_starter_model_answers(suite):
    with suite.client() as client:
        answer = client.post("/v1/models/cifar10/predict", content=cat())

    assert answer.json()["predictions"][0]["label"] == "cat"


def test_services_are_four_processes_and_the_pipeline_is_one(suite):
    services = {"gateway", "preprocess", "trainer", "inference"}

    assert set(suite.pids()) == (services if suite.mode == "services" else set())


def test_every_public_and_internal_port_says_serving(suite):
    ports = [suite.ports.grpc, suite.ports.inference]
    if suite.mode == "services":
        ports += [suite.ports.preprocess, suite.ports.trainer]

    assert all(is_serving(f"127.0.0.1:{port}") for port in ports)


def test_a_second_suite_on_the_same_ports_ends_with_a_sentence_and_the_first_goes_on(suite, tmp_path):
    second = up(suite.mode, **suite.environment | {"AIMASS_HOME": str(tmp_path)})

    assert second.returncode == 1
    assert "cannot listen on 127.0.0.1:" in second.stderr
    assert "is another suite running?" in second.stderr
    assert "Traceback" not in second.stderr
    assert "ready" not in second.stdout
    with suite.client() as client:
        assert client.post("/v1/models/cifar10/predict", content=cat()).status_code == 200


@BOTH_MODES
def test_wrong_settings_end_the_start_with_all_problems_at_once(mode, tmp_path):
    wrong = {"GATEWAY_HTTP_PROT": "80", "GATEWAY_MAX_IMAGES": "none"}

    ended = up(mode, **clean_environment(AIMASS_HOME=str(tmp_path), **wrong))

    assert ended.returncode == 1
    assert "GATEWAY_HTTP_PROT is not a setting; did you mean GATEWAY_HTTP_PORT?" in ended.stderr
    assert "GATEWAY_MAX_IMAGES='none'" in ended.stderr
    assert "Traceback" not in ended.stderr


@BOTH_MODES
def test_a_wrong_setting_of_an_inner_service_ends_the_start_too(mode, tmp_path):
    ended = up(mode, **clean_environment(AIMASS_HOME=str(tmp_path), PREPROCESS_THREADS="0"))

    assert ended.returncode == 1
    assert "PREPROCESS_THREADS='0'" in ended.stderr
    assert "Traceback" not in ended.stderr


@SIGNALS
@BOTH_MODES
async def test_a_signal_lets_calls_in_flight_finish_and_ends_every_process(start, mode, number):
    suite = await asyncio.to_thread(start, mode)
    pids = suite.pids()

    async with (
        grpc.aio.insecure_channel(suite.address) as channel,
        httpx.AsyncClient(base_url=suite.url, trust_env=False, timeout=60) as http,
    ):
        stub = GatewayServiceStub(channel)
        request = pb.PredictStreamRequest(request=pb.PredictRequest(model="cifar10", images=[cat()]))
        stream = stub.PredictStream()
        await stream.write(request)
        assert (await stream.read()).HasField("response")
        half_closed = aiter(stub.PredictStream(iter([request] * 60)))
        assert (await anext(half_closed)).HasField("response")
        over_http = asyncio.create_task(http.post("/v1/models/slow/predict", content=picture(PALE)))
        over_grpc = await Slow(channel).occupy(PALE)
        suite.signal(number)
        answers = await asyncio.gather(over_grpc, over_http)
        stream_code = await stream.code()
        answered = [answer async for answer in half_closed]
        code = await asyncio.to_thread(suite.wait)

    assert code == 0
    # An open stream is ended, and does not hold the others up; it might have had more to send.
    assert stream_code is grpc.StatusCode.UNAVAILABLE
    assert len(answered) == 59
    assert all(answer.HasField("response") for answer in answered)
    assert answers[0].model_name == "slow"
    assert answers[1].json()["predictions"]
    assert all(wait_for_end(pid) for pid in pids.values())
    assert all(is_free(port) for port in vars(suite.ports).values())
    assert "Traceback" not in suite.logged
    assert suite.new_errors() == []


@BOTH_MODES
def test_a_suite_that_is_stopped_while_it_starts_leaves_nothing_behind(mode, tmp_path):
    suite = start_suite(mode, tmp_path)
    try:
        poll(lambda: '"event"' in suite.logged, suite.process, tmp_path)
        suite.signal(signal.SIGTERM)

        assert suite.wait() == 0
        assert all(wait_for_end(pid) for pid in suite.pids().values())
        assert "Traceback" not in suite.logged
    finally:
        suite.end()
