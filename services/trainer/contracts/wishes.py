"""What is asked of loops by hand, and what becomes of it."""

import asyncio
from collections.abc import AsyncIterator

from services.common.errors import Conflict, NotReady
from services.common.server import StopSignal
from services.trainer.contracts.following import Followers
from services.trainer.contracts.rules import explain_declined
from services.trainer.loop.cycle_payloads import ActionFailed, MoveAbandoned, MoveIntended
from services.trainer.loop.directors import Directors
from services.trainer.loop.events import Event
from services.trainer.loop.log import EventLog
from services.trainer.loop.payloads import Payload, Wish, WishDeclined

ANSWER_SECONDS = 30.0
"""How long it is waited for what becomes of a wish; it is kept for longer."""


class Wishes:
    """Writes wishes to the log, and follows it.

    Args:
        events: The log.
        directors: Are hurried when something is asked for; those of another process find it by themselves.
        stop: Ends the waiting when the process stops.
    """

    def __init__(self, events: EventLog, directors: Directors, stop: StopSignal) -> None:
        self._events = events
        self._directors = directors
        self._stop = stop
        self._followers = Followers(events.read)

    async def ask(self, model: str, wish: Wish, granted: tuple[type[Payload], ...]) -> Event:
        """Write a wish and return the event that grants it.

        Args:
            model: Name of the model, which must be a task.
            wish: What is asked for.
            granted: Kinds of events by which it may be granted.

        Raises:
            Conflict: It does not fit what is the case.
            NotReady: Nobody has heeded it for long; it is kept.
        """
        asked = await asyncio.to_thread(self._events.ask, model, wish)
        self._directors.hurry(model)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._answer(asked, wish, granted)
        except TimeoutError as error:
            reason = self._directors.disabled_reason(model)
            raise NotReady(
                f"the loop of model {model!r} has not answered for {ANSWER_SECONDS:g} seconds"
                f"{f' ({reason})' if reason else ''}; what was asked for is kept as event {asked.number}; look at the "
                f"events that follow, or ask again with the same request_id {wish.request_id!r}"
            ) from error

    async def _answer(self, asked: Event, wish: Wish, granted: tuple[type[Payload], ...]) -> Event:
        moving = False
        async for event in self._stop.until(self.follow(asked.model, asked.number)):
            payload = event.payload
            if isinstance(payload, WishDeclined) and payload.wish == asked.number:
                raise Conflict(explain_declined(asked.model, wish, payload.rule), reason=payload.rule)
            if isinstance(payload, MoveIntended) and payload.authority == asked.number:
                moving = True
            elif moving and isinstance(payload, MoveAbandoned | ActionFailed):
                raise Conflict(
                    f"the traffic of model {asked.model!r} could not be changed ({event.kind}); look at it and ask "
                    "again",
                    reason="TRAFFIC_CHANGED",
                )
            if isinstance(payload, granted) and (moving or getattr(payload, "wish", 0) == asked.number):
                return event
        raise AssertionError("the events of a model never end")

    def follow(self, model: str, after: int) -> AsyncIterator[Event]:
        """Yield the events of a model that come after number *after*, without an end."""
        return self._followers.follow(model, after)
