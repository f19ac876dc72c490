"""The wrapper around every call, for all four arities."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from services.common.calls import CALLS
from services.common.errors import InvalidInput
from services.common.interceptor import AroundInterceptor


async def unary_unary(request, context):
    refuse_empty(request)
    return request


async def unary_stream(request, context):
    yield request
    refuse_empty(request)
    yield request


async def stream_unary(requests, context):
    received = [request async for request in requests]
    refuse_empty(received[-1])
    return b"".join(received)


async def stream_stream(requests, context):
    async for request in requests:
        refuse_empty(request)
        yield request


def refuse_empty(request: bytes) -> None:
    if not request:
        raise InvalidInput("empty")


BEHAVIORS = [unary_unary, unary_stream, stream_unary, stream_stream]


async def call(channel: grpc.aio.Channel, arity: str, requests: list[bytes]) -> list[bytes]:
    method = getattr(channel, arity)("/test.Test/Call")
    response = method(iter(requests) if arity.startswith("stream") else requests[0])
    return [each async for each in response] if arity.endswith("stream") else [await response]


@pytest.fixture
async def start(serve_handlers):
    async def start(behavior):
        make = getattr(grpc, f"{behavior.__name__}_rpc_method_handler")
        return (await serve_handlers(Call=make(behavior))).channel

    return start


@pytest.mark.parametrize(
    ("behavior", "answers"),
    [(unary_unary, [b"a"]), (unary_stream, [b"a", b"a"]), (stream_unary, [b"ab"]), (stream_stream, [b"a", b"b"])],
)
async def test_call_of_any_arity_is_answered(start, behavior, answers):
    assert await call(await start(behavior), behavior.__name__, [b"a", b"b"]) == answers


@pytest.mark.parametrize("behavior", BEHAVIORS)
async def test_call_of_any_arity_ends_with_the_status_of_its_error(start, behavior):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(await start(behavior), behavior.__name__, [b""])

    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "empty")


async def test_unknown_method_stays_unimplemented(start):
    channel = await start(unary_unary)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Test/Other")(b"")

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    (calls,) = CALLS.collect()  # by method: a caller's inventions would make series without an end
    assert "/test.Test/Other" not in {sample.labels["method"] for sample in calls.samples}


async def test_around_is_left_when_the_client_of_a_stream_goes_away():
    left = asyncio.Event()

    @asynccontextmanager
    async def around(method, context):
        try:
            yield
        finally:
            left.set()

    async def endless(request, context):
        yield request
        await asyncio.Event().wait()

    server = grpc.aio.server(interceptors=[AroundInterceptor(around)])
    handlers = {"Call": grpc.unary_stream_rpc_method_handler(endless)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = channel.unary_stream("/test.Test/Call")(b"a")
        try:
            assert await stream.read() == b"a"
            stream.cancel()

            await left.wait()
        finally:
            await server.stop(None)
