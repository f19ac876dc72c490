"""Captured predictions become rows: each once, draws in order, refused ones for good."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import select

from services.common.identity import ANONYMOUS, Scope
from services.trainer.data.blobs import Blobs
from services.trainer.data.models import Model, create_model
from services.trainer.data.observing import Role, State
from services.trainer.data.tables import ObservationRow, PredictionRow
from services.trainer.feedback.capturing import capture_rules, stored_bytes
from services.trainer.feedback.contributors import create_key
from services.trainer.feedback.counting import VersionCounts, store_counts, sum_counts
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.policy import CapturePolicy, JudgingPolicy
from services.trainer.feedback.pseudonyms import read_pseudonyms
from services.trainer.feedback.roles import role_of
from services.trainer.feedback.tables import DeletionRow, LoopModelRow
from services.trainer.storage.database import Database
from tests.trainer.data.conftest import encoded
from tests.trainer.data.test_metadata import jpeg
from tests.trainer.feedback.conftest import SPEC, Groups, captured, observation, pictures, prediction_id


def predictions(database: Database) -> list[PredictionRow]:
    with database.read() as session:
        return list(session.scalars(select(PredictionRow).order_by(PredictionRow.id)))


def observations(database: Database) -> list[ObservationRow]:
    with database.read() as session:
        return list(session.scalars(select(ObservationRow).order_by(ObservationRow.number)))


def test_what_was_answered_is_kept(intake: Intake, database: Database, blobs: Blobs) -> None:
    taken = intake.take([captured(1, jpeg(), "dog", contributor="ann", version=7)])

    row, picture = predictions(database)[0], observation(database, taken[0].observation)
    assert [(each.new, each.refusal) for each in taken] == [(True, "")]
    assert (row.version, row.generation, row.contributor, row.strategy, row.probability) == (
        7,
        3,
        "ann",
        "RANDOM",
        0.25,
    )
    assert (row.labels, row.observation) == ([["dog", 0.5], ["other", 0.3]], picture.number)
    assert (picture.state, picture.format, picture.orientation) == (State.CAPTURED, "JPEG", 6)
    assert b"Jane" not in blobs.path(picture.content_digest).read_bytes()


def test_what_is_sent_again_changes_nothing(intake: Intake, database: Database) -> None:
    items = [captured(number, image) for number, image in enumerate(pictures(5))]

    first = intake.take(items)
    again = intake.take([*items[2:], captured(9, pictures(1)[0]), captured(9, pictures(1)[0])])

    assert [each.new for each in first] == [True] * 5
    assert [(each.observation, each.new) for each in again] == [
        (3, False),
        (4, False),
        (5, False),
        (1, True),
        (1, False),
    ]
    assert [each.draw for each in predictions(database)] == [1, 2, 3, 4, 5, 6]
    assert len(observations(database)) == 5


def test_draws_count_the_random_ones_of_each_model_in_the_order_of_arrival(
    intake: Intake, database: Database, policies
) -> None:  # type: ignore[no-untyped-def]
    create_model(database, "birds", ["tit", "owl"], SPEC.canonical_json())
    policies["birds"] = Groups()
    images = pictures(6)
    other = {"strategy": "LOW_CONFIDENCE", "probability": 0}

    intake.take([captured(5, images[0]), captured(4, images[1], **other), captured(3, images[2])])
    intake.take([captured(2, images[3], model="birds"), captured(1, images[4]), captured(0, images[5], model="birds")])

    assert {row.id: row.draw for row in predictions(database)} == {
        prediction_id(number): draw for number, draw in {5: 1, 4: None, 3: 2, 2: 1, 1: 3, 0: 2}.items()
    }


def test_draws_have_no_gaps_when_many_take_at_once(intake: Intake, database: Database) -> None:
    images = pictures(24)

    def take(start: int) -> None:
        for number in range(start, 24, 4):
            intake.take([captured(number, images[number % 20])])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(take, range(4)))

    assert sorted(row.draw or 0 for row in predictions(database)) == list(range(1, 25))
    assert len(observations(database)) == 20


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": b"hello"}, "NOT_AN_IMAGE"),
        ({"image": b""}, "EMPTY_IMAGE"),
        ({"model": "birds"}, "UNKNOWN_MODEL"),
        ({"prediction_id": "../../etc"}, "MALFORMED"),
        ({"prediction_id": prediction_id(255).upper()}, "MALFORMED"),
        ({"strategy": "ALL"}, "MALFORMED"),
        ({"probability": 0.0}, "MALFORMED"),
        ({"probability": float("nan")}, "MALFORMED"),
        ({"strategy": "RARE_CLASS"}, "MALFORMED"),
        ({"labels": ()}, "MALFORMED"),
        ({"time": ""}, "MALFORMED"),
        ({"contributor": "x" * 65}, "MALFORMED"),
    ],
)  # fmt: skip
def test_each_refused_one_fails_alone(
    intake: Intake, database: Database, changes: dict[str, object], reason: str
) -> None:
    image = pictures(1)[0]

    taken = intake.take([captured(1, image), captured(2, changes.pop("image", image), **changes), captured(3, image)])  # type: ignore[arg-type]

    assert [(each.observation, each.new, each.refusal) for each in taken] == [
        (1, True, ""),
        (0, False, reason),
        (1, True, ""),
    ]
    assert [row.draw for row in predictions(database)] == [1, 2]


def test_a_full_disk_refuses_and_says_so(intake: Intake, database: Database, blobs: Blobs) -> None:
    image = pictures(1)[0]
    intake.take([captured(1, image)])
    blobs.folder.rename(blobs.folder.with_name("gone"))
    blobs.folder.write_bytes(b"no folder any more")

    taken = intake.take([captured(1, image), captured(2, pictures(1, 7)[0])])

    assert [(each.observation, each.new, each.refusal) for each in taken] == [(1, False, ""), (0, False, "DISK_FULL")]
    assert len(predictions(database)) == 1


def test_roles_come_from_the_content_and_the_salt_that_is_drawn_once(
    intake: Intake, database: Database, policies: dict[str, Groups]
) -> None:
    policies["pets"] = Groups(judging=JudgingPolicy(share=0.5))
    intake.take([captured(number, image) for number, image in enumerate(pictures(40))])
    with database.read() as session:
        salt = session.get_one(LoopModelRow, "pets").salt

    intake.take([captured(99, pictures(1, 3)[0])])

    rows = observations(database)
    assert [row.role for row in rows] == [role_of(row.pixel_digest, salt, 0.5) for row in rows]
    assert 8 < sum(row.role == Role.JUDGE for row in rows) < 33
    with database.read() as session:
        assert session.get_one(LoopModelRow, "pets").salt == salt


def test_a_picture_that_was_forgotten_meanwhile_is_stored_again(
    intake: Intake, database: Database, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = intake._store

    def forgetting(*arguments: object, **named: object) -> object:
        content = store(*arguments, **named)  # type: ignore[arg-type]
        blobs.remove(content.content_digest)  # type: ignore[union-attr]
        return content

    monkeypatch.setattr(intake, "_store", forgetting)
    intake.take([captured(1, pictures(1)[0])])

    assert blobs.has(observations(database)[0].content_digest)


def test_counts_of_a_gateway_only_rise_and_add_up_over_gateways(database: Database, model: Model) -> None:
    def counts(answered: int, random: int, **dropped: int) -> VersionCounts:
        return VersionCounts("pets", 1, answered, {"RANDOM": random}, dropped)

    store_counts(database, "one", [counts(10, 2), VersionCounts("gone", 1, 5, {}, {})])
    store_counts(database, "one", [counts(30, 5, BUDGET=1)])
    store_counts(database, "one", [counts(20, 3)])
    store_counts(database, "two", [counts(7, 1, BUDGET=2, PAUSED=4)])

    assert sum_counts(database, "pets") == [VersionCounts("pets", 1, 37, {"RANDOM": 6}, {"BUDGET": 3, "PAUSED": 4})]
    assert sum_counts(database, "gone") == []


def test_rules_name_rare_classes_and_say_why_nothing_is_captured(
    intake: Intake, database: Database, blobs: Blobs, policies: dict[str, Groups], tmp_path: Path
) -> None:
    def rule() -> tuple[tuple[str, ...], str]:
        found = capture_rules(database, tmp_path / "blobs", lambda name: policies[name])
        assert [each.model for each in found] == ["pets"]
        return found[0].rare_labels, found[0].paused_reason

    assert rule() == ((), "")
    intake.take([captured(1, encoded(Image.new("RGB", (50, 50), "red")))])
    with database.read() as session:
        kept = stored_bytes(session, "pets")
    assert kept == blobs.path(observations(database)[0].content_digest).stat().st_size

    policies["pets"] = Groups(capture=CapturePolicy(max_bytes=kept, least_free_bytes=0))
    assert rule() == ((), "BYTES")
    policies["pets"] = Groups(capture=CapturePolicy(least_free_bytes=2**60))
    assert rule() == ((), "DISK_FULL")


REQUESTED = "2026-02-01T00:00:00Z"
BEFORE, AFTER = "2026-01-31T23:59:59.000Z", "2026-02-01T00:00:01.000Z"


def ask_to_be_forgotten(database: Database, name: str, state: str) -> None:
    with database.begin() as session:
        fields = {"kind": "CONTRIBUTOR", "subject": read_pseudonyms(session)(name), "state": state}
        report = {"request_time": REQUESTED}
        session.merge(DeletionRow(id=f"of-{name}", deadline=REQUESTED, report=report, **fields))


def refusal(intake: Intake, number: int, name: str, time: str) -> str:
    return intake.take([captured(number, pictures(1, number)[0], contributor=name, time=time)])[0].refusal


def test_what_comes_late_of_who_asked_to_be_forgotten_is_refused(
    intake: Intake, database: Database, blobs: Blobs
) -> None:
    """A gateway may hold it for hours, while the trainer is away."""
    ask_to_be_forgotten(database, "ann", "ERASING")
    assert refusal(intake, 1, "ann", BEFORE) == refusal(intake, 2, "ann", AFTER) == "CONTRIBUTOR_DELETED"
    ask_to_be_forgotten(database, "ann", "COMPLETED")
    assert refusal(intake, 1, "ann", BEFORE) == refusal(intake, 2, "ann", AFTER) == "CONTRIBUTOR_DELETED"
    assert list(blobs.digests()) == []

    create_key(database, "ann", [Scope.PREDICT], trusted=False)  # begins anew

    assert refusal(intake, 1, "ann", AFTER) == "CONTRIBUTOR_DELETED"
    assert refusal(intake, 3, "ann", "2999-01-01T00:00:00.000Z") == ""
    assert refusal(intake, 4, "ben", BEFORE) == ""
    assert [row.contributor for row in predictions(database)] == ["ann", "ben"]


def test_who_has_no_key_is_taken_again_from_the_request_on_once_it_is_carried_out(
    intake: Intake, database: Database
) -> None:
    ask_to_be_forgotten(database, ANONYMOUS, "RETRAINING")
    assert refusal(intake, 1, ANONYMOUS, AFTER) == "CONTRIBUTOR_DELETED"
    ask_to_be_forgotten(database, ANONYMOUS, "COMPLETED")

    assert refusal(intake, 1, ANONYMOUS, BEFORE) == "CONTRIBUTOR_DELETED"
    assert refusal(intake, 2, ANONYMOUS, AFTER) == ""
    assert refusal(intake, 3, "", BEFORE) == ""


def test_a_request_while_pictures_are_being_stored_is_heeded(
    intake: Intake, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = intake._store

    def storing(*arguments: Any, **more: Any) -> Any:
        stored = store(*arguments, **more)
        ask_to_be_forgotten(database, "ann", "ERASING")
        return stored

    monkeypatch.setattr(intake, "_store", storing)

    assert refusal(intake, 1, "ann", BEFORE) == "CONTRIBUTOR_DELETED"
    assert predictions(database) == []
