"""Processes that are killed, in services mode."""

import asyncio
import os
import signal

import grpc
import pytest

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from services.common.channels import open_channel
from tests.end_to_end.models import install_models
from tests.end_to_end.pictures import cat
from tests.end_to_end.slow import Slow
from tests.end_to_end.suite import eventually, poll, start_suite, wait_for_end

PREDICT = pb.PredictRequest(model="cifar10", images=[cat()], top=1)


@pytest.fixture(scope="module")
def suite(start):
    """A suite of this module's own: its processes are killed."""
    return start("services")


@pytest.fixture
async def channel(suite):
    async with open_channel(suite.address) as channel:
        yield channel


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid)


async def refusals_until_answered(stub):
    """Ask again and again; return the errors that came before the answer."""
    errors = []
    while True:
        try:
            response = await stub.Predict(PREDICT, timeout=10)
        except grpc.aio.AioRpcError as error:
            errors.append(error)
            await asyncio.sleep(0.02)
        else:
            assert response.results[0].prediction.labels[0].label == "cat"
            return errors


@pytest.mark.parametrize("name", ["preprocess", "inference", "gateway"])
async def test_a_killed_process_comes_back_and_callers_get_unavailable_meanwhile(suite, channel, name):
    stub = GatewayServiceStub(channel)
    assert await refusals_until_answered(stub) == []
    pid = suite.pids()[name]

    kill(pid)
    errors = await refusals_until_answered(stub)

    assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}
    assert suite.pids()[name] != pid
    assert suite.process.poll() is None
    if name != "gateway":  # whose absence is told by the caller's own gRPC
        assert not [error for error in errors if "127.0.0.1" in error.details()]


async def test_a_call_that_is_running_in_a_killed_process_ends_with_unavailable(suite, channel):
    running = await Slow(channel).occupy()

    kill(suite.pids()["inference"])

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await refusals_until_answered(GatewayServiceStub(channel))


async def test_the_suite_is_live_but_not_ready_while_a_process_is_away(suite, channel):
    with suite.client() as client:
        os.kill(suite.pids()["inference"], signal.SIGSTOP)
        live, away = client.get("/v2/health/live").status_code, client.get("/v2/health/ready").status_code
        os.kill(suite.pids()["inference"], signal.SIGCONT)
        await refusals_until_answered(GatewayServiceStub(channel))

        assert (live, away) == (200, 503)
        assert client.get("/v2/health/ready").status_code == 200


async def test_a_killed_trainer_comes_back_and_predictions_do_not_notice(suite, channel):
    pid = suite.pids()["trainer"]

    kill(pid)

    assert await refusals_until_answered(GatewayServiceStub(channel)) == []
    await eventually(lambda: suite.pids()["trainer"] != pid)


def test_a_damaged_database_of_the_trainer_is_named_and_predictions_are_answered(save_graph, tmp_path):
    home = install_models(tmp_path, save_graph)
    (home / "trainer.db").write_bytes(b"\x5a" * 20_000)
    suite = start_suite("services", home)
    try:
        suite.wait_until_ready()
        with suite.stub() as stub:
            assert stub.Predict(PREDICT, timeout=30).results[0].prediction.labels[0].label == "cat"
        first = suite.pids()["trainer"]
        poll(lambda: suite.pids()["trainer"] != first, suite.process, suite.folder)

        assert f"trainer: the trainer's database {home / 'trainer.db'} is damaged" in suite.logged
        assert "Traceback" not in suite.logged
        assert "trainer" in {event["process"] for event in suite.events() if event["event"].startswith("process ended")}
    finally:
        suite.end()


def test_in_one_process_a_damaged_database_ends_the_start_with_the_sentence_alone(save_graph, tmp_path):
    home = install_models(tmp_path, save_graph)
    (home / "trainer.db").write_bytes(b"\x5a" * 20_000)
    suite = start_suite("pipeline", home)
    try:
        assert suite.wait() == 1
        assert "trainer.db is damaged" in suite.logged.replace("\n", " ")
        assert "Traceback" not in suite.logged
    finally:
        suite.end()


def test_no_process_outlives_a_supervisor_that_is_killed(suite):  # the last one: it ends the suite
    pids = suite.pids()

    suite.process.kill()
    suite.process.wait()

    assert len(pids) == 4
    assert all(wait_for_end(pid) for pid in pids.values())
    assert "Traceback" not in suite.logged
