"""The channel between services."""

import grpc
import pytest

from services.common.channels import open_channel


async def echo(request, context):
    return request


@pytest.fixture
def component(handlers):
    return handlers({"Echo": grpc.unary_unary_rpc_method_handler(echo)})


async def test_channel_leaves_the_size_of_messages_to_the_server(start_server, component):
    _, port = await start_server(component)
    async with open_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test.Test/Echo")

        assert len(await call(bytes(9_000_000))) == 9_000_000
        assert await call(bytes(11_000_000)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_channel_finds_a_restarted_service_again(start_server, component):
    server, port = await start_server(component)
    async with open_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test.Test/Echo")
        assert await call(b"before") == b"before"

        await server.stop(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"meanwhile")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

        await start_server(component, port=port)
        assert await call(b"after", wait_for_ready=True) == b"after"
