"""Answers that are the same for everybody: given again for a while, and looked for once, however many ask."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Remembered(Generic[Answer]):
    """Answers by name; to be used in one event loop."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[float, Answer]] = {}
        self._looks: dict[str, asyncio.Task[Answer]] = {}

    async def of(self, name: str, find: Callable[[str], Awaitable[Answer]], seconds: float) -> Answer:
        """Return the answer about *name*, which may be *seconds* old; what *find* raises is raised to all who wait."""
        until, answer = self._answers.get(name, (0.0, None))
        if answer is not None and time.monotonic() < until:
            return answer
        look = self._looks.get(name)
        if look is None:
            look = self._looks[name] = asyncio.ensure_future(self._look(name, find, seconds))
        return await asyncio.shield(look)  # that one of those who wait goes away is no matter to the others

    async def _look(self, name: str, find: Callable[[str], Awaitable[Answer]], seconds: float) -> Answer:
        try:
            answer = await find(name)
            self._answers[name] = time.monotonic() + seconds, answer
            return answer
        finally:
            del self._looks[name]
