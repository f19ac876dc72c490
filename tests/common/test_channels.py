"""The channel between services."""

import grpc
import pytest

from services.common.channels import open_channel
from services.common.server import GrpcServer, Service


async def big(request, context):
    return bytes(2000)


def register(server) -> None:
    handlers = {"Big": grpc.unary_unary_rpc_method_handler(big)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))


def serving(port: int) -> GrpcServer:
    return GrpcServer("127.0.0.1", port, [Service("test.Test", register)], max_message_bytes=1_000_000)


@pytest.mark.parametrize(("limit", "code"), [(2000, "OK"), (1999, "RESOURCE_EXHAUSTED")])
async def test_channel_refuses_answers_over_its_limit(limit, code):
    server = serving(0)
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}", limit) as channel:
        assert (await channel.unary_unary("/test.Test/Big")(b"").code()).name == code
    await server.stop(0, 0)


async def test_channel_finds_a_restarted_service_again():
    server = serving(0)
    port = await server.start()
    async with open_channel(f"127.0.0.1:{port}", 1_000_000) as channel:
        call = channel.unary_unary("/test.Test/Big")
        assert len(await call(b"")) == 2000

        await server.stop(0, 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

        server = serving(port)
        await server.start()
        assert len(await call(b"", wait_for_ready=True)) == 2000
    await server.stop(0, 0)
