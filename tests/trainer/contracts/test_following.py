"""Events for all who follow, and answers for all who ask, at the price of one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest

from services.common.errors import NotReady
from services.trainer.contracts import following
from services.trainer.contracts.following import Followers
from services.trainer.contracts.remembering import Remembered
from services.trainer.loop.events import Event
from services.trainer.loop.payloads import CaptureResumed

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Log:
    """Events in memory, read some at a time."""

    def __init__(self, count: int = 0) -> None:
        self.events = [self._event(number) for number in range(1, count + 1)]
        self.reads = 0
        self.away = False
        self._awaited, self._often, self._loop = 0, asyncio.Event(), asyncio.get_running_loop()

    def happens(self) -> None:
        self.events.append(self._event(len(self.events) + 1))

    def read(self, model: str, after: int) -> Sequence[Event]:
        self.reads += 1
        if self.reads >= self._awaited:
            self._loop.call_soon_threadsafe(self._often.set)
        if self.away:
            raise NotReady("the database does not answer; start it or wait")
        return self.events[after : after + 7]

    async def until_read(self, times: int) -> None:
        """Wait until it was read so often."""
        self._awaited = times
        while self.reads < times:
            self._often.clear()
            await self._often.wait()

    def _event(self, number: int) -> Event:
        return Event("m", number, 0, NOW, CaptureResumed())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(following, "_KEPT", 5)


async def taken(events: AsyncIterator[Event], count: int) -> list[int]:
    async with asyncio.timeout(30):
        return [(await anext(events)).number for _ in range(count)]


async def test_all_followers_get_every_event_from_where_they_are() -> None:
    log = Log(20)
    followers = Followers(log.read)
    streams = [followers.follow("m", after) for after in (0, 13, 20)]
    assert await asyncio.gather(*(taken(each, count) for each, count in zip(streams, (20, 7, 0), strict=True))) == [
        list(range(1, 21)), list(range(14, 21)), []
    ]  # fmt: skip
    waiting = [asyncio.ensure_future(taken(each, 12)) for each in streams]
    for _ in range(12):
        log.happens()
        await asyncio.sleep(0)

    assert await asyncio.gather(*waiting) == [list(range(21, 33))] * 3


async def test_who_reads_slowly_misses_nothing() -> None:
    log = Log()
    followers = Followers(log.read)
    slow, quick = followers.follow("m", 0), followers.follow("m", 0)
    waiting = asyncio.ensure_future(taken(slow, 1)), asyncio.ensure_future(taken(quick, 1))
    log.happens()
    await asyncio.gather(*waiting)
    for _ in range(30):
        log.happens()
        await taken(quick, 1)

    assert await taken(slow, 30) == list(range(2, 32))


async def test_a_hundred_followers_read_the_log_as_often_as_one() -> None:
    log = Log()
    followers = Followers(log.read)
    waiting = [asyncio.ensure_future(taken(followers.follow("m", 0), 1)) for _ in range(100)]
    await log.until_read(100 + 50)  # each of them once at its begin, and then all of them together
    before = log.reads
    log.happens()
    await asyncio.gather(*waiting)

    assert log.reads - before < 50


async def test_a_log_that_cannot_be_read_is_told_to_all_and_read_again_for_the_next() -> None:
    log = Log()
    followers = Followers(log.read)
    waiting = [asyncio.ensure_future(taken(followers.follow("m", 0), 1)) for _ in range(2)]
    await log.until_read(5)
    log.away = True
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in results] == [NotReady, NotReady]

    log.away = False
    log.happens()
    assert await taken(followers.follow("m", 0), 1) == [1]


async def test_nobody_is_looked_for_once_the_last_has_gone() -> None:
    log = Log(1)
    followers = Followers(log.read)
    stream = followers.follow("m", 0)
    waiting = asyncio.ensure_future(taken(stream, 2))
    await log.until_read(5)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert followers._feeds == {}


async def test_however_many_ask_one_looks_and_who_goes_away_takes_nothing_along() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    looks: list[str] = []

    async def find(name: str) -> str:
        looks.append(name)
        begun.set()
        await go_on.wait()
        return name.upper()

    remembered = Remembered[str]()
    asking = [asyncio.ensure_future(remembered.of("a", find, 1000.0)) for _ in range(10)]
    await begun.wait()
    asking[0].cancel()
    go_on.set()

    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert answers[1:] == ["A"] * 9
    assert await remembered.of("a", find, 1000.0) == "A"
    assert looks == ["a"]
    assert await remembered.of("b", find, 0.0) == await remembered.of("b", find, 0.0)
    assert looks == ["a", "b", "b"]


async def test_what_cannot_be_found_is_looked_for_again() -> None:
    async def fail(name: str) -> str:
        raise NotReady("the database does not answer; start it or wait")

    async def find(name: str) -> str:
        return name

    remembered = Remembered[str]()
    with pytest.raises(NotReady):
        await remembered.of("a", fail, 1000.0)
    assert await remembered.of("a", find, 1000.0) == "a"
