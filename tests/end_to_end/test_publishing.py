"""A new version comes and takes over while the suite serves."""

import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest

import aimass.starter
from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.inference.v1.lifecycle_pb2 import GetUploadRequest
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from services.common.manifest import digest_of
from services.trainer.publishing import CHUNK_BYTES, publish_version, set_stable
from tests.end_to_end.pictures import cat
from tests.end_to_end.suite import eventually, wait_for_end

RUN = Path(aimass.starter.__file__).parent / "cifar10" / "1"
"""Holds what a finished run holds: graph and manifest."""


@pytest.fixture
def inference(suite):
    with grpc.insecure_channel(f"127.0.0.1:{suite.ports.inference}") as channel:
        yield channel


async def test_a_published_version_gets_traffic_only_when_it_is_moved_and_no_request_fails(suite, inference):
    model, seen = "published", []

    async def ask(stub, version=0):
        response = await stub.Predict(pb.PredictRequest(model=model, version=version, images=[cat()], top=1))
        assert response.results[0].prediction.labels[0].label == "cat"
        return response.version

    async def keep_asking(stub):
        while True:
            seen.append(await ask(stub))

    async def listed(stub):
        models = (await stub.ListModels(pb.ListModelsRequest())).models
        return next((each for each in models if each.name == model), None)

    async def until_seen(version):
        await eventually(lambda: asking.done() or version in seen[-1:])

    first = (await asyncio.to_thread(publish_version, inference, model, RUN)).version
    async with grpc.aio.insecure_channel(suite.address) as channel:
        stub = GatewayServiceStub(channel)
        await eventually(lambda: listed(stub))
        asking = asyncio.create_task(keep_asking(stub))
        await until_seen(first)

        progress = []
        second = (await asyncio.to_thread(publish_version, inference, model, RUN, progress.append)).version
        pinned = await ask(stub, second)
        before_the_move = set(seen)
        await asyncio.to_thread(set_stable, inference, model, second)
        await until_seen(second)
        await asyncio.to_thread(set_stable, inference, model, first)
        await until_seen(first)
        described = await listed(stub)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    assert (first, second, pinned) == (1, 2, 2)
    assert before_the_move == {1}
    assert described.version == 1
    assert described.ready_versions == [1, 2]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


def test_a_version_that_is_not_what_its_manifest_says_is_refused(suite, inference, tmp_path):
    (tmp_path / "model.json").write_bytes((RUN / "model.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes((RUN / "model.onnx").read_bytes()[:-1] + b"?")

    with pytest.raises(grpc.RpcError) as caught:
        publish_version(inference, "broken", tmp_path)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "sha256:" in caught.value.details()
    with suite.client() as client:
        assert "broken" not in {each["name"] for each in client.get("/v1/models").json()["models"]}


def test_an_upload_goes_on_by_itself_when_the_server_is_killed_in_the_middle(start):
    suite, progress, killed = start("services"), [], []
    graph = (RUN / "model.onnx").read_bytes()
    upload = GetUploadRequest(model="resumed", graph_digest=digest_of(graph))

    def kill_once(fraction):
        progress.append(fraction)
        while not killed and stub.GetUpload(upload).received_bytes >= CHUNK_BYTES:
            os.kill(suite.pids()["inference"], signal.SIGKILL)
            assert wait_for_end(suite.pids()["inference"])
            killed.append(len(progress))

    with grpc.insecure_channel(f"127.0.0.1:{suite.ports.inference}") as channel:
        stub = ModelLifecycleServiceStub(channel)
        version = publish_version(channel, "resumed", RUN, kill_once)

    assert (version.version, version.graph_digest) == (1, upload.graph_digest)
    assert progress[killed[0]] > CHUNK_BYTES / len(graph)
    assert progress[-1] == 1.0
