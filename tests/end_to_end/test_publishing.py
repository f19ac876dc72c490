"""A new version comes and takes over while the suite serves."""

import asyncio
from pathlib import Path

import grpc
import pytest

import aimass.starter
from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from services.trainer.publishing import publish_version, set_stable
from tests.end_to_end.pictures import cat
from tests.end_to_end.suite import eventually

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
