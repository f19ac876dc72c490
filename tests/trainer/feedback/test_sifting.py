"""What users say becomes samples, and is none any more when it is taken back."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from services.common.errors import NotFound
from services.common.identity import Scope
from services.trainer.data.imported import Sample, list_samples
from services.trainer.data.observing import State, VoteKind, Word, mark_changed, vote
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback import sifting
from services.trainer.feedback.contributors import create_key, set_contributor
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.policy import JudgingPolicy
from services.trainer.feedback.reliability import Reliability
from services.trainer.feedback.sifting import SOURCE, Sifter
from services.trainer.feedback.tables import EncoderRow, FindingRow, NeighbourhoodRow
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import Groups, captured, observation, pictures

TIME = "2026-01-02T03:04:05.000Z"


def say(database: Database, number: int, contributor: str, label: int | None, trusted: bool = False) -> None:
    kind = VoteKind.REJECT if label is None else VoteKind.LABEL
    with database.begin(alone=True) as session:
        vote(session, session.get_one(ObservationRow, number), Word(contributor, kind, trusted, label))


def samples(database: Database) -> list[Sample]:
    return list_samples(database, "pets")[0]


@pytest.fixture
def five(intake: Intake) -> None:
    """Five pictures that are captured."""
    intake.take([captured(number, image) for number, image in enumerate(pictures(5))])


@pytest.mark.usefixtures("five")
def test_two_who_agree_make_a_sample(database: Database, sifter: Sifter) -> None:
    say(database, 2, "ann", 1)
    first = sifter.sift("pets")
    assert (observation(database, 2).state, observation(database, 2).reason) == (State.PENDING, "NEEDS_VOTES")
    say(database, 2, "ben", 1)
    second = sifter.sift("pets")

    made, row = samples(database), observation(database, 2)
    assert (first.judged, first.accepted, second.judged, second.accepted) == (1, 0, 1, 1)
    assert [(each.label, each.contributor, each.source, each.observation) for each in made] == [
        ("dog", "ann", SOURCE, 2)
    ]
    assert (row.state, row.label, row.sample, row.stale) == (State.ACCEPTED, 1, made[0].number, False)
    assert row.label_probability > 0.9
    assert row.content_digest == made[0].content_digest


@pytest.mark.usefixtures("five")
def test_another_label_is_another_sample_and_no_number_comes_again(database: Database, sifter: Sifter) -> None:
    say(database, 1, "rex", 1, trusted=True)
    sifter.sift("pets")
    before = samples(database)[0].number
    say(database, 1, "rex", 2, trusted=True)
    counts = sifter.sift("pets")
    relabelled = samples(database)
    say(database, 1, "rex", None, trusted=True)
    sifter.sift("pets")
    none = samples(database)
    say(database, 1, "rex", 1, trusted=True)
    sifter.sift("pets")

    assert (counts.accepted, counts.withdrawn) == (1, 1)
    assert [each.label for each in relabelled] == ["cow"]
    assert none == []
    assert before < relabelled[0].number < samples(database)[0].number
    assert observation(database, 1).sample == samples(database)[0].number


@pytest.mark.usefixtures("five")
def test_the_sample_is_its_who_decided(database: Database, sifter: Sifter) -> None:
    say(database, 1, "ann", 1)
    say(database, 1, "rex", 1, trusted=True)
    sifter.sift("pets")

    assert samples(database)[0].contributor == "rex"


@pytest.mark.usefixtures("five")
def test_blocking_a_contributor_takes_the_samples_back(database: Database, sifter: Sifter) -> None:
    create_key(database, "liar", [Scope.FEEDBACK], trusted=True)
    for number in (1, 2):
        say(database, number, "liar", 0, trusted=True)
    say(database, 2, "rex", 0, trusted=True)
    sifter.sift("pets")
    assert len(samples(database)) == 2

    set_contributor(database, "liar", blocked=True)
    sifter.sift("pets")

    assert [each.observation for each in samples(database)] == [2]
    row = observation(database, 1)
    assert (row.state, row.reason, row.sample) == (State.QUARANTINED, "CONTRIBUTOR_BLOCKED", None)


def test_what_judges_becomes_a_sample_by_a_reviewer_alone(
    database: Database, intake: Intake, sifter: Sifter, policies: dict[str, Groups]
) -> None:
    policies["pets"] = Groups(judging=JudgingPolicy(share=0.999999))
    intake.take([captured(1, pictures(1)[0])])
    for name in ("ann", "ben", "cid"):
        say(database, 1, name, 1)
    sifter.sift("pets")
    assert (observation(database, 1).reason, observation(database, 1).label) == ("WAITS_FOR_REVIEW", 1)
    assert samples(database) == []
    say(database, 1, "rex", 2, trusted=True)
    sifter.sift("pets")

    assert [each.label for each in samples(database)] == ["cow"]


@pytest.mark.usefixtures("five")
def test_neighbours_and_findings_are_heeded_when_they_are_known(database: Database, sifter: Sifter) -> None:
    with database.begin() as session:
        session.add(EncoderRow(digest="e" * 64, model="pets", run="r", features=4, create_time=TIME))
    for number in (1, 2, 3):
        say(database, number, "ann", 1)
        say(database, number, "ben", 1)
    sifter.sift("pets")
    assert {observation(database, number).reason for number in (1, 2, 3)} == {"WAITS_FOR_EMBEDDING"}

    with database.begin(alone=True) as session:
        for number, lift in ((1, 2.0), (2, 0.5), (3, 2.0)):
            row = NeighbourhoodRow(
                observation=number,
                encoder="e" * 64,
                lifts={"0": 1.9, "1": lift},
                members={"0": 100, "1": 100},
                time=TIME,
            )
            session.add(row)
        session.add(FindingRow(observation=3, kind="NEAR_COPY", level=0.99, detail="", time=TIME))
        mark_changed(session, [1, 2, 3])
    sifter.sift("pets")

    found = [(observation(database, number).state, observation(database, number).reason) for number in (1, 2, 3)]
    assert found == [
        (State.ACCEPTED, ""),
        (State.QUARANTINED, "NEIGHBOURS_DISAGREE"),
        (State.QUARANTINED, "NEAR_COPY"),
    ]


@pytest.mark.usefixtures("five")
def test_a_label_whose_number_of_neighbours_is_not_known_waits(database: Database, sifter: Sifter) -> None:
    with database.begin(alone=True) as session:
        session.add(EncoderRow(digest="e" * 64, model="pets", run="r", features=4, create_time=TIME))
        session.flush()
        session.add(NeighbourhoodRow(observation=1, encoder="e" * 64, lifts={}, members={"0": 100}, time=TIME))
    say(database, 1, "ann", 1)
    sifter.sift("pets")

    assert observation(database, 1).reason == "WAITS_FOR_EMBEDDING"


def test_many_are_judged_a_hundred_at_a_time_and_once(database: Database, intake: Intake, sifter: Sifter) -> None:
    images = pictures(230)
    for start in range(0, 230, 46):
        intake.take([captured(start + row, image) for row, image in enumerate(images[start : start + 46])])
    with database.begin(alone=True) as session:
        for row in session.scalars(select(ObservationRow)):
            vote(session, row, Word("rex", VoteKind.LABEL, True, row.number % 3))

    with ThreadPoolExecutor(3) as threads:
        counts = list(threads.map(lambda _: sifter.sift("pets"), range(3)))

    assert sum(each.judged for each in counts) == sum(each.accepted for each in counts) == 230
    made = samples(database)
    assert [each.observation for each in made] == list(range(1, 231))
    with database.read() as session:
        changes = [row.changed_number for row in session.scalars(select(ObservationRow))]
    assert len(set(changes)) == 230


def test_an_unknown_model_is_not_sifted(sifter: Sifter) -> None:
    with pytest.raises(NotFound, match="model 'birds' is unknown"):
        sifter.sift("birds")


def test_a_stranger_becomes_known_by_what_others_confirm(database: Database, intake: Intake, sifter: Sifter) -> None:
    intake.take([captured(number, image) for number, image in enumerate(pictures(6))])
    with database.begin() as session:
        session.add(EncoderRow(digest="e" * 64, model="pets", run="r", features=4, create_time=TIME))
        session.flush()
        for number in range(1, 7):
            row = NeighbourhoodRow(observation=number, encoder="e" * 64, lifts={"1": 2.0}, members={"1": 99}, time=TIME)
            session.add(row)

    def sixth() -> tuple[str, str]:
        sifter.sift("pets")
        with database.begin(alone=True) as session:
            mark_changed(session, [6])
        sifter.sift("pets")
        return observation(database, 6).state, observation(database, 6).reason

    say(database, 6, "ann", 1)
    assert sixth() == (State.PENDING, "NEEDS_VOTES")
    for number in range(1, 5):
        say(database, number, "ann", 1)
        say(database, number, "rex", 1, trusted=True)
    assert sixth() == (State.PENDING, "NEEDS_VOTES")
    say(database, 5, "ann", 1)
    say(database, 5, "ben", 1)
    assert sixth() == (State.ACCEPTED, "")


@pytest.mark.usefixtures("five")
def test_votes_are_fused_while_others_can_write(
    database: Database, sifter: Sifter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = sifting.read_reliability

    def writing(*arguments: Any) -> Reliability:
        with closing(sqlite3.connect(tmp_path / "trainer.db", timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
        return read(*arguments)

    monkeypatch.setattr(sifting, "read_reliability", writing)
    say(database, 1, "rex", 1, trusted=True)

    assert sifter.sift("pets").accepted == 1
