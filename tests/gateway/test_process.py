"""The gateway as a process by itself, with nothing behind it."""

import signal
import subprocess
import sys

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from tests.end_to_end.pictures import cat
from tests.end_to_end.suite import STOP_SECONDS, Ports, clean_environment, poll

COMMAND = [sys.executable, "-m", "gateway"]


@pytest.fixture(scope="module")
def ports():
    return Ports.free()


@pytest.fixture(scope="module")
def gateway(ports, tmp_path_factory):
    """The process; inference, which it waits for, never comes."""
    folder = tmp_path_factory.mktemp("gateway")
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(COMMAND, env=clean_environment(**ports.environment()), stderr=stderr)
    try:
        poll(lambda: "listening for HTTP" in (folder / "stderr").read_text(), process, folder)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def channel(gateway, ports):
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        yield channel


@pytest.fixture
def client(gateway, ports):
    with httpx.Client(base_url=f"http://127.0.0.1:{ports.http}", trust_env=False) as client:
        yield client


def test_it_is_live_but_not_ready(client, channel):
    health = HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_calls_end_with_unavailable_and_a_sentence(client, channel):
    stub = GatewayServiceStub(channel)
    refused = []
    for call, request in (
        (stub.ListModels, pb.ListModelsRequest()),
        (stub.Predict, pb.PredictRequest(model="cifar10", images=[cat()])),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        refused.append((caught.value.code(), caught.value.details()))
    over_http = client.post("/v1/models/cifar10/predict", content=cat())

    sentence = "the list of models has not arrived from inference yet; try again"
    assert refused == [(grpc.StatusCode.UNAVAILABLE, sentence)] * 2
    assert over_http.status_code == 503
    assert over_http.json()["error"]["message"] == sentence


def test_a_forwarded_call_ends_with_unavailable_and_names_no_inner_address(channel):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"")

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "a service behind the gateway is not reachable; try again"


def test_the_page_is_there_already(client):
    assert "AI Mass" in client.get("/").text


def test_it_stops_when_asked_though_it_never_was_ready(gateway):  # the last one: it ends the process
    gateway.send_signal(signal.SIGTERM)

    assert gateway.wait(STOP_SECONDS) == 0


def test_wrong_settings_end_it_with_a_sentence():
    environment = clean_environment(GATEWAY_MAX_IMAGE="1")

    ended = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=STOP_SECONDS)

    assert ended.returncode == 1
    assert ended.stderr == "gateway: GATEWAY_MAX_IMAGE is not a setting; did you mean GATEWAY_MAX_IMAGES?\n"
