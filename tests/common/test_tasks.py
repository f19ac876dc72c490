"""Tasks end, however they take it."""

import asyncio

from services.common.tasks import end


async def test_a_task_ends_that_takes_a_cancellation_for_a_failure_and_goes_on() -> None:
    survived = []

    async def follow() -> None:
        while len(survived) < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                survived.append("a failure")
        await asyncio.Event().wait()

    task = asyncio.create_task(follow())
    await asyncio.sleep(0)
    await end(task)

    assert task.cancelled()
    assert survived == ["a failure"] * 2


async def test_what_a_task_has_raised_is_not_raised_again() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await end(task)

    assert isinstance(task.exception(), ValueError)
    await end(task)
