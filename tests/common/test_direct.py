"""A servicer's method, called without a socket."""

import asyncio

import pytest

from services.common.direct import direct_call
from services.common.errors import NotFound


async def behavior(request, context):
    if request == "hang":
        await asyncio.Event().wait()
    if request == "fail":
        raise NotFound("no such thing")
    return request, context


async def test_call_is_answered_with_deadline_and_metadata_in_the_context():
    request, context = await direct_call(behavior)("hello", timeout=60, metadata=[("x-request-id", "7")])

    assert request == "hello"
    assert 0 < context.time_remaining() <= 60 + 1e-6  # a clock that began long ago has less digits for seconds
    assert context.invocation_metadata() == (("x-request-id", "7"),)


async def test_call_without_a_deadline_has_all_the_time():
    _, context = await direct_call(behavior)("hello")

    assert context.time_remaining() is None
    assert context.invocation_metadata() == ()


@pytest.mark.parametrize("timeout", [0.001, 0, -1])
async def test_deadline_ends_the_call(timeout):
    with pytest.raises(TimeoutError):
        await direct_call(behavior)("hang", timeout=timeout)


async def test_error_of_the_servicer_arrives_as_it_is():
    with pytest.raises(NotFound, match="no such thing"):
        await direct_call(behavior)("fail", timeout=60)


async def test_cancelled_caller_cancels_the_servicer():
    entered, left = asyncio.Event(), asyncio.Event()

    async def hang(request, context):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    call = asyncio.ensure_future(direct_call(hang)("hello", timeout=60))
    await entered.wait()
    call.cancel()

    await left.wait()
