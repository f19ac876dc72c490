"""Every hour, what is too old goes, with files of nobody and rows that no loop removes."""

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from services.trainer.clock import as_row
from services.trainer.data.observing import State, store_picture
from services.trainer.data.tables import ObservationRow, PredictionRow
from services.trainer.feedback import retention
from services.trainer.feedback.counting import sum_counts
from services.trainer.feedback.policy import CapturePolicy, RetentionPolicy
from services.trainer.feedback.tables import AnswerRow, CaptureCountRow
from services.trainer.provenance import upkeep
from services.trainer.provenance.upkeep import Upkeep
from services.trainer.service import TrainerComponent
from services.trainer.settings import TrainerSettings
from tests.trainer.feedback.conftest import Groups, pictures
from tests.trainer.provenance.conftest import House

LONG_AGO = "2020-01-01T00:00:00.000Z"


@pytest.fixture
def keeping(house: House, policies: dict[str, Groups]) -> Upkeep:
    return Upkeep(
        house.database, house.folders.blobs, lambda name: policies[name], house.deletions, house.erasure,
        lambda name: {2}, house.clock,
    )  # fmt: skip


def test_what_is_too_old_goes_with_files_of_nobody(house: House, keeping: Upkeep) -> None:
    old, new = house.capture(2, "ann", seed=1)
    house.age(old, LONG_AGO)
    orphan = store_picture(house.blobs, pictures(1, seed=9)[0]).content_digest
    os.utime(house.blobs.path(orphan), (0, 0))
    with house.database.begin() as session:
        session.execute(update(PredictionRow).where(PredictionRow.observation == new).values(draw=None))
        for version in (1, 2):
            row = {"version": version, "best": 0, "best_probability": 0.5, "probabilities": b""}
            session.add(AnswerRow(model="pets", observation=new, **row))

    keeping.tidy()

    assert [house.picture(number) is None for number in (old, new)] == [True, False]
    assert len(list(house.blobs.digests())) == 1
    with house.database.read() as session:
        assert list(session.scalars(select(AnswerRow.version))) == [2]


def test_gateways_are_gone_that_were_silent_while_somebody_listened(
    house: House, keeping: Upkeep, policies: dict[str, Groups]
) -> None:
    policies["pets"] = Groups(retention=RetentionPolicy(days=1))
    house.capture(1, "ann", seed=1)
    idle = as_row(house.clock() - timedelta(days=6))
    with house.database.begin() as session:
        for gateway, time in (("gone", LONG_AGO), ("idle", idle)):
            sums: dict[str, Any] = {"answered": 7, "captured": {"RANDOM": 2}, "dropped": {}}
            session.add(CaptureCountRow(gateway=gateway, model="pets", version=1, time=time, **sums))

    def gateways() -> list[str]:
        with house.database.read() as session:
            return sorted(session.scalars(select(CaptureCountRow.gateway)))

    keeping.tidy()
    assert gateways() == ["gone", "idle"]  # those that live have had no time to say so
    house.clock.passed = 7200
    keeping.tidy()

    assert gateways() == ["", "idle"]
    assert [each.answered for each in sum_counts(house.database, "pets")] == [14]


def test_rows_go_an_hour_later_where_no_loop_removes_them(house: House, keeping: Upkeep) -> None:
    (picture,) = house.capture(1, "ann", seed=1)
    house.forget(picture)
    keeping.tidy()
    assert house.picture(picture) is not None
    house.clock.passed = 3601

    keeping.tidy()

    assert house.picture(picture) is None
    assert list(house.blobs.digests()) == []


def test_what_fails_for_one_model_is_done_for_the_rest(
    house: House, keeping: Upkeep, policies: dict[str, Groups]
) -> None:
    (old,) = house.capture(1, "ann", seed=1)
    house.age(old, LONG_AGO)
    del policies["pets"]
    orphan = store_picture(house.blobs, pictures(1, seed=9)[0]).content_digest
    os.utime(house.blobs.path(orphan), (0, 0))

    keeping.tidy()

    assert not house.blobs.has(orphan)
    assert house.picture(old) is not None


async def test_it_goes_on_turn_after_turn_until_it_is_stopped(
    house: House, keeping: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(upkeep, "ROOM_SECONDS", 0.0)
    house.capture(1, "ann", seed=1)
    turns = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()

    def policy_of(name: str) -> Groups:
        loop.call_soon_threadsafe(turns.release)
        return Groups(retention=RetentionPolicy())

    going = Upkeep(house.database, house.folders.blobs, policy_of, house.deletions, house.erasure, lambda name: ())
    going.start()
    async with asyncio.timeout(60):
        for _ in range(9):  # each asks for it three times at most
            await turns.acquire()
        await going.stop()
    assert going._task is not None
    assert going._task.done()


def test_where_all_is_held_it_is_not_looked_again_at_once(
    house: House, keeping: Upkeep, policies: dict[str, Groups], monkeypatch: pytest.MonkeyPatch
) -> None:
    (held,) = house.capture(1, "ann", seed=1)
    policies["pets"] = Groups(capture=CapturePolicy(max_bytes=1, least_free_bytes=0))

    def become(state: State) -> None:
        with house.database.begin() as session:
            session.execute(update(ObservationRow).values(state=state))

    house.age(held, LONG_AGO)
    become(State.ACCEPTED)
    keeping.make_room()
    become(State.CAPTURED)
    keeping.make_room()
    assert house.picture(held) is not None

    monkeypatch.setattr(upkeep, "ALL_HELD_SECONDS", 0.0)
    keeping.make_room()
    assert house.picture(held) is None


async def test_room_is_made_between_the_hours(
    house: House, policies: dict[str, Groups], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "ROOM_SECONDS", 0.0)
    loop, swept, made = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def sweep(*given: Any) -> int:
        loop.call_soon_threadsafe(swept.set)
        return retention.sweep(*given)

    def make_room(*given: Any) -> retention.ExpiredCounts | None:
        counts = retention.make_room(*given)
        if counts is not None and counts.observations:
            loop.call_soon_threadsafe(made.set)
        return counts

    monkeypatch.setattr(upkeep, "sweep", sweep)
    monkeypatch.setattr(upkeep, "make_room", make_room)
    going = Upkeep(
        house.database, house.folders.blobs, lambda name: policies[name], house.deletions, house.erasure,
        lambda name: (), house.clock,
    )  # fmt: skip
    going.start()
    async with asyncio.timeout(60):
        await swept.wait()
        pictures_there = house.capture(4, "ann", seed=1)
        for picture in pictures_there[:2]:
            house.age(picture, LONG_AGO)
        policies["pets"] = Groups(capture=CapturePolicy(max_bytes=1, least_free_bytes=0))
        await made.wait()
        await going.stop()

    assert house.picture(pictures_there[0]) is None


async def test_the_service_does_so_from_its_start(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, swept = asyncio.get_running_loop(), asyncio.Event()

    def sweep(*given: Any) -> int:
        try:
            return retention.sweep(*given)
        finally:
            loop.call_soon_threadsafe(swept.set)

    monkeypatch.setattr(upkeep, "sweep", sweep)
    orphan = store_picture(house.blobs, pictures(1, seed=9)[0]).content_digest
    os.utime(house.blobs.path(orphan), (0, 0))
    settings = TrainerSettings(
        database=SecretStr(f"sqlite:///{tmp_path / 'trainer.db'}"), blobs=house.folders.blobs, data=tmp_path / "data",
        runs=tmp_path / "runs", inference_address="127.0.0.1:1", loop=False,
    )  # fmt: skip
    component = TrainerComponent(settings)
    await component.start()
    async with asyncio.timeout(60):
        await swept.wait()
    await component.close()

    assert not house.blobs.has(orphan)
