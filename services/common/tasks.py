"""How tasks are ended that would go on for ever."""

import asyncio
from typing import Any

AGAIN_SECONDS = 0.1


async def end(task: "asyncio.Task[Any]") -> None:
    """Cancel *task* until it has ended, whatever ends it.

    Once is not always enough for one that reads streams of grpc and survives their errors: a call that fails while it
    is cancelled may take the cancellation and raise its failure.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=AGAIN_SECONDS)
