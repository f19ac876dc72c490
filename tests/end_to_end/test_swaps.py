"""Versions that take other pixels change places under load: no request is lost, and no answer mixes two of them."""

import asyncio

import grpc

from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from benchmarks.swaps import load
from benchmarks.telltale import MODEL, write_version
from services.trainer.publishing import publish_version
from tests.end_to_end.suite import eventually


async def test_no_request_is_lost_and_no_answer_mixes_versions_while_they_change_places(suite, tmp_path):
    address = f"127.0.0.1:{suite.ports.inference}"
    with grpc.insecure_channel(address) as channel:
        await asyncio.to_thread(publish_version, channel, MODEL, write_version(tmp_path, 1))
    async with grpc.aio.insecure_channel(suite.address) as public, grpc.aio.insecure_channel(address) as inference:
        await eventually(lambda: is_known(GatewayServiceStub(public)))
        own, other = await load(suite.address, 4, ModelLifecycleServiceStub(inference))

    assert own.failed == other.failed == []
    assert own.mixed == 0
    assert len(own.versions) > 2
    assert other.latencies


async def is_known(stub: GatewayServiceStub) -> bool:
    return MODEL in {model.name for model in (await stub.ListModels(gateway_pb2.ListModelsRequest())).models}
