"""What is too old or too much is forgotten; what is learnt from is not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from services.trainer.data.blobs import Blobs
from services.trainer.data.imported import NewSample, SampleImport
from services.trainer.data.models import create_model
from services.trainer.data.observing import VoteKind, Word, store_picture, vote
from services.trainer.data.tables import (
    ObservationRow,
    PredictionRow,
    SnapshotRow,
    SnapshotSampleRow,
    VoteRow,
)
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.policy import CapturePolicy, RetentionPolicy
from services.trainer.feedback.retention import ExpiredCounts, expire, forget, make_room, sweep
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.tables import AnswerRow, FindingRow
from services.trainer.storage.database import Database
from tests.trainer.data.test_imported import noise
from tests.trainer.feedback.conftest import SPEC, captured, pictures

NOW = datetime.now(UTC)
MONTH = RetentionPolicy(days=30)
TIME = "2026-01-02T03:04:05.000Z"


@pytest.fixture
def six(intake: Intake, database: Database, sifter: Sifter) -> None:
    """Pictures 1 to 6: 1 is a sample, 2 is in a snapshot, 3 and 4 are captured, all of them 40 days old; 5, 6 new."""
    intake.take([captured(number, image) for number, image in enumerate(pictures(6))])
    with database.begin(alone=True) as session:
        for number, word in ((1, Word("rex", VoteKind.LABEL, True, 0)), (3, Word("ann", VoteKind.LABEL, label=1))):
            vote(session, session.get_one(ObservationRow, number), word)
    sifter.sift("pets")
    with database.begin() as session:
        old = (NOW - timedelta(days=40)).isoformat(timespec="milliseconds")
        session.execute(update(ObservationRow).where(ObservationRow.number <= 4).values(create_time=old))
        for number in range(1, 7):
            sent = old if number <= 4 else (NOW + timedelta(hours=number)).isoformat(timespec="milliseconds")
            session.execute(update(PredictionRow).where(PredictionRow.observation == number).values(time=sent))
        fields = {"model": "pets", "base": "", "base_digest": "", "base_drawn": [], "counts": {}, "create_time": TIME}
        session.add(SnapshotRow(digest="d" * 64, **fields))
        session.flush()
        session.add(SnapshotSampleRow(snapshot="d" * 64, observation=2, sample=9, label=0, part="train"))
        session.add(FindingRow(observation=3, kind="NEAR_COPY", level=1.0, detail="", time=TIME))
        answer = {"best": 0, "best_probability": 0.5, "probabilities": b""}
        session.add(AnswerRow(model="pets", version=1, observation=3, **answer))


def no_gate(session: Session, model: str) -> bool:
    return False


def expired(database: Database, blobs: Blobs, policy: RetentionPolicy) -> ExpiredCounts:
    return expire(database, blobs.folder, "pets", policy, NOW, no_gate)


def room_made(database: Database, blobs: Blobs, most: int) -> ExpiredCounts | None:
    policy = CapturePolicy(max_bytes=most, least_free_bytes=0)
    return make_room(database, blobs.folder, "pets", policy, NOW + timedelta(days=1), no_gate)


def left(database: Database) -> list[int]:
    with database.read() as session:
        return list(session.scalars(select(ObservationRow.number).order_by(ObservationRow.number)))


@pytest.mark.usefixtures("six")
def test_old_pictures_go_with_all_that_is_known_of_them(database: Database, blobs: Blobs) -> None:
    counts = expired(database, blobs, MONTH)

    assert counts == ExpiredCounts(2, 2)
    assert left(database) == [1, 2, 5, 6]
    assert len(list(blobs.digests())) == 4
    with database.read() as session:
        assert sorted(session.scalars(select(PredictionRow.observation))) == [1, 2, 5, 6]
        assert list(session.scalars(select(VoteRow.observation))) == [1]
        assert list(session.scalars(select(FindingRow))) == list(session.scalars(select(AnswerRow))) == []
    assert expired(database, blobs, MONTH) == ExpiredCounts(0, 0)


@pytest.mark.usefixtures("six")
def test_of_too_many_the_oldest_go(database: Database, blobs: Blobs) -> None:
    counts = expired(database, blobs, RetentionPolicy(days=1000, most_observations=1))

    assert counts.observations == 3
    assert left(database) == [1, 2, 6]


@pytest.mark.usefixtures("six")
def test_where_the_bytes_are_full_those_of_which_nobody_spoke_make_room_first(database: Database, blobs: Blobs) -> None:
    with database.begin(alone=True) as session:
        session.execute(update(ObservationRow).values(size_bytes=100))
        vote(session, session.get_one(ObservationRow, 5), Word("ann", VoteKind.PROPOSAL, proposal="yak"))

    assert room_made(database, blobs, 632) is None
    assert room_made(database, blobs, 630) == ExpiredCounts(1, 1)
    assert left(database) == [1, 2, 3, 5, 6]  # the word on 3 is as old as 4 was
    assert room_made(database, blobs, 500) == ExpiredCounts(1, 1)
    assert left(database) == [1, 2, 3, 5]
    assert room_made(database, blobs, 1) == ExpiredCounts(1, 1)  # of two that nothing holds
    assert left(database) == [1, 2, 5]


@pytest.mark.usefixtures("six")
def test_the_newest_stay_where_little_beside_what_is_held_may_go(database: Database, blobs: Blobs) -> None:
    with database.begin() as session:
        session.execute(update(ObservationRow).values(size_bytes=100))

    assert room_made(database, blobs, 1) == ExpiredCounts(3, 3)  # two of three without a word, and that with one
    assert left(database) == [1, 2, 6]


@pytest.mark.usefixtures("six")
@pytest.mark.parametrize("word", [Word("ann", VoteKind.LABEL, label=1), Word("rex", VoteKind.LABEL, True, 1)])
def test_a_picture_of_which_somebody_speaks_while_room_is_made_stays(
    database: Database, blobs: Blobs, sifter: Sifter, monkeypatch: pytest.MonkeyPatch, word: Word
) -> None:
    with database.begin() as session:
        session.execute(update(ObservationRow).values(size_bytes=100))
    begin = database.begin

    @contextmanager
    def begin_late(*, alone: bool = False) -> Iterator[Session]:
        monkeypatch.setattr(database, "begin", begin)
        with begin(alone=True) as session:
            vote(session, session.get_one(ObservationRow, 4), word)
        sifter.sift("pets")
        with begin(alone=alone) as session:
            yield session

    monkeypatch.setattr(database, "begin", begin_late)

    assert room_made(database, blobs, 630) == ExpiredCounts(0, 0)
    assert left(database) == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("six")
def test_draws_are_numbered_once_whatever_becomes_of_them(database: Database, blobs: Blobs, intake: Intake) -> None:
    with database.begin(alone=True) as session:
        session.execute(update(ObservationRow).values(sample=None, state="CAPTURED"))
        forget(session, range(3, 7))

    intake.take([captured(40, pictures(7)[6])])

    with database.read() as session:
        assert session.scalar(select(func.max(PredictionRow.draw))) == 7


@pytest.mark.usefixtures("six")
def test_a_picture_is_as_old_as_its_newest_answer(database: Database, blobs: Blobs, intake: Intake) -> None:
    intake.take([captured(30, pictures(3)[2], time=(NOW - timedelta(days=29)).isoformat(timespec="milliseconds"))])

    assert expired(database, blobs, MONTH).observations == 1
    assert left(database) == [1, 2, 3, 5, 6]
    few = RetentionPolicy(days=1000, most_observations=3)
    assert expired(database, blobs, few).observations == 0  # 3, 5, 6 are the newest
    assert left(database) == [1, 2, 3, 5, 6]


@pytest.mark.usefixtures("six")
def test_a_file_that_another_model_has_too_stays(
    database: Database, blobs: Blobs, intake: Intake, policies: dict[str, object]
) -> None:
    create_model(database, "birds", ["tit", "owl"], SPEC.canonical_json())
    policies["birds"] = policies["pets"]
    intake.take([captured(20, pictures(3)[2], model="birds")])

    assert expired(database, blobs, MONTH) == ExpiredCounts(2, 1)


def test_files_that_nobody_names_are_swept_when_they_are_old(database: Database, blobs: Blobs, intake: Intake) -> None:
    with SampleImport(database, blobs.folder, "pets") as taking:
        taking.add([NewSample(image, "cat") for image in noise(3, 4)])
    intake.take([captured(1, pictures(1)[0])])
    orphans = [store_picture(blobs, image).content_digest for image in noise(2, 9)]
    for digest, _ in list(blobs.digests()):
        if digest != orphans[1]:
            os.utime(blobs.path(digest), (0, 0))

    assert sweep(database, blobs.folder, NOW) == 1
    assert [blobs.has(digest) for digest in orphans] == [False, True]
    assert len(list(blobs.digests())) == 5


def test_a_blob_is_removed_once(blobs: Blobs) -> None:
    digest = blobs.put(b"something")

    assert [blobs.has(digest), blobs.remove(digest), blobs.has(digest), blobs.remove(digest)] == [
        True, True, False, False,
    ]  # fmt: skip
