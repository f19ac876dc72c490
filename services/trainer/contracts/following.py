"""Events as they happen, read once for all who follow a model."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from services.trainer.loop.events import Event

LOOK_SECONDS = 0.2
"""Between two looks for new events."""
_KEPT = 1000
"""Newest events of a model that are not read again for those who are behind."""

Read = Callable[[str, int], Sequence[Event]]
"""Returns the events of a model after a number, some at a time; called in a thread."""


class Followers:
    """Lets any number of streams follow the events of models; each model is looked at once, while somebody does.

    Args:
        read: Reads the log.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._feeds: dict[str, _Feed] = {}

    async def follow(self, model: str, after: int) -> AsyncIterator[Event]:
        """Yield the events of a model that come after number *after*, without an end.

        Raises:
            NotReady: The database does not answer.
        """
        while events := await asyncio.to_thread(self._read, model, after):
            for event in events:
                yield event
                after = event.number
        feed = self._feeds.get(model)
        if feed is None or feed.failed:
            feed = self._feeds[model] = _Feed(model, self._read, after)
        feed.followers += 1
        try:
            while True:
                for event in await feed.after(after):
                    yield event
                    after = event.number
        finally:
            feed.followers -= 1
            if not feed.followers:
                feed.close()
                if self._feeds.get(model) is feed:
                    del self._feeds[model]


class _Feed:
    """The newest events of one model."""

    def __init__(self, model: str, read: Read, after: int) -> None:
        self._model = model
        self._read = read
        self._begin = self._end = after
        self._events: deque[Event] = deque()
        """Those after `_begin` up to `_end`."""
        self._more = asyncio.Event()
        self.followers = 0
        self._looking = asyncio.create_task(self._look())
        self._looking.add_done_callback(lambda _: self._more.set())

    @property
    def failed(self) -> bool:
        """Whether the log cannot be read."""
        return self._looking.done()

    async def after(self, number: int) -> Sequence[Event]:
        """Return some events after *number*, once there are any.

        Raises:
            NotReady: The database does not answer.
        """
        if number < self._begin:  # who is far behind reads by himself
            return await asyncio.to_thread(self._read, self._model, number)
        while number >= self._end:
            if self._looking.done():
                self._looking.result()
            await self._more.wait()
        return [event for event in self._events if event.number > number]

    def close(self) -> None:
        """Look no more."""
        self._looking.cancel()

    async def _look(self) -> None:
        while True:
            events = await asyncio.to_thread(self._read, self._model, self._end)
            if not events:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            self._events.extend(events)
            self._end = events[-1].number
            while len(self._events) > _KEPT:
                self._begin = self._events.popleft().number
            self._more.set()
            self._more = asyncio.Event()
