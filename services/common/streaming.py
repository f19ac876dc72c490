"""Answers a stream of requests in their order, several of them being worked on at once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from services.common.tracing import item_span

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Coroutine[Any, Any, Response]], window: int
) -> AsyncGenerator[Response]:
    """Yield the answer to each of *requests*, in their order.

    What ends *requests* other than their end, and what *answer* raises, ends the answers too, after those before it.

    Args:
        requests: As they arrive.
        answer: Works on one request.
        window: How many requests may be taken in whose answers have not been yielded; a reader that is slow, or a
            request that takes long, holds the rest back.
    """
    answers: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    room = asyncio.Semaphore(window)
    working: set[asyncio.Task[Any]] = set()

    def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        working.add(task)
        task.add_done_callback(working.discard)
        return task

    async def work_on(request: Request) -> Response:
        with item_span():
            return await answer(request)

    async def accept() -> None:
        try:
            async for request in requests:
                await room.acquire()
                answers.put_nowait(start(work_on(request)))
        finally:
            answers.put_nowait(None)

    accepting = start(accept())
    try:  # no TaskGroup: a generator that is left at a yield must not wait for its tasks
        while (task := await answers.get()) is not None:
            yield await task
            room.release()
        await accepting  # raises what ended the requests, where that was not their end
    finally:
        for task in working:
            task.cancel()
