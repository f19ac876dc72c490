"""What has happened, as the suite's own log of events tells it."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from aimass.demo.users import MODEL
from aimass.trainer.v1 import loop_pb2
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceStub
from services.common.channels import open_channel

_SERVES = {"promotion.intended": "promoted", "rollback.intended": "rolled_back"}


@dataclass(frozen=True)
class Happened:
    """One event."""

    number: int
    kind: str
    cycle: int
    seconds: float
    """Since the record began."""
    payload: dict[str, Any]


@dataclass
class Record:
    """Follows the events of a suite; they are told to *on_event* as they come."""

    on_event: Callable[[Happened], None]
    begin: float = field(default_factory=time.time)
    events: list[Happened] = field(default_factory=list)
    serving: list[tuple[float, int]] = field(default_factory=list)
    """From which second on which version served."""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def follow(self, address: str, stop: asyncio.Event) -> None:
        """Follow until *stop*; a suite that is being started again is asked again."""
        while not stop.is_set():
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with open_channel(address) as channel:
                    request = loop_pb2.WatchEventsRequest(model=MODEL, after=len(self.events))
                    call = LoopServiceStub(channel).WatchEvents(request)
                    ending = asyncio.create_task(_cancel(call, stop))
                    try:
                        async for response in call:
                            await self._take(response.event)
                    finally:
                        ending.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.2)

    async def wait_for(self, condition: Callable[[Happened], bool], after: int = 0) -> Happened:
        """Return the first event after number *after* that fulfils *condition*, when it has happened."""
        async with self._changed:
            while True:
                for each in self.events[after:]:
                    if condition(each):
                        return each
                after = len(self.events)
                await self._changed.wait()

    async def _take(self, event: loop_pb2.Event) -> None:
        happened = Happened(
            event.number,
            event.kind,
            event.cycle,
            event.time.ToMilliseconds() / 1e3 - self.begin,
            json.loads(event.payload_json),
        )
        async with self._changed:
            self.events.append(happened)
            self._changed.notify_all()
        if happened.kind in _SERVES.values():
            intended = next(each for each in reversed(self.events) if _SERVES.get(each.kind) == happened.kind)
            self.serving.append((happened.seconds, intended.payload["wanted"]["stable"]))
        self.on_event(happened)


async def _cancel(call: Any, stop: asyncio.Event) -> None:
    await stop.wait()
    call.cancel()
