import pytest

from services.common.identity import ANONYMOUS, Scope
from services.trainer.data.observing import VoteKind, Word, vote
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.contributors import create_key, set_contributor
from services.trainer.feedback.evidence import Lessons
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.policy import TrustPolicy
from services.trainer.feedback.reliability import contributor_accuracies, read_reliability
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.tables import EncoderRow, FindingRow, NeighbourhoodRow
from services.trainer.feedback.trust import Support
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import captured, pictures

LABELS = ("cat", "dog", "cow")


def test_accuracies_come_from_the_votes_on_a_model(intake: Intake, database: Database) -> None:
    intake.take([captured(number, image) for number, image in enumerate(pictures(12))])
    create_key(database, "rex", [Scope.FEEDBACK], trusted=True)
    with database.begin(alone=True) as session:
        for number in range(1, 13):
            row = session.get_one(ObservationRow, number)
            vote(session, row, Word("rex", VoteKind.LABEL, label=number % 3, trusted=True))
            vote(session, row, Word("ann", VoteKind.LABEL, label=number % 3))
            vote(session, row, Word("liar", VoteKind.LABEL, label=(number + 1) % 3))

    with database.read() as session:
        found = contributor_accuracies(session, "pets", 3)
        assert contributor_accuracies(session, "birds", 3) == {}

    assert found["rex"] == 0.995
    assert found["liar"] < 0.5 < 0.85 < found["ann"]


def test_the_blocked_have_no_accuracy(intake: Intake, database: Database) -> None:
    intake.take([captured(1, pictures(1)[0])])
    create_key(database, "liar", [Scope.FEEDBACK], trusted=False)
    set_contributor(database, "liar", blocked=True)
    with database.begin(alone=True) as session:
        vote(session, session.get_one(ObservationRow, 1), Word("liar", VoteKind.LABEL, label=0))

    with database.read() as session:
        assert contributor_accuracies(session, "pets", 3) == {}


def say(database: Database, number: int, name: str, label: int, trusted: bool = False) -> None:
    with database.begin(alone=True) as session:
        vote(session, session.get_one(ObservationRow, number), Word(name, VoteKind.LABEL, trusted, label))


def test_a_trusted_word_pins_nobody_who_is_not_trusted(intake: Intake, database: Database) -> None:
    """As an import once left them behind for whoever made it."""
    intake.take([captured(number, image) for number, image in enumerate(pictures(12))])
    create_key(database, "eve", [Scope.TRAIN], trusted=False)
    create_key(database, "rex", [Scope.FEEDBACK], trusted=True)
    say(database, 1, "eve", 0, trusted=True)
    for number in range(1, 13):
        say(database, number, "rex", 0, trusted=True)
        say(database, number, "", 0, trusted=True)
        say(database, number, "eve", 1, trusted=number == 1)

    with database.read() as session:
        found = contributor_accuracies(session, "pets", 3)

    assert found["eve"] < 0.5
    assert found["rex"] == found[""] == 0.995  # the owner has no row


def test_who_had_five_labels_confirmed_by_others_is_known(intake: Intake, database: Database, sifter: Sifter) -> None:
    intake.take([captured(number, image) for number, image in enumerate(pictures(12))])
    for number in range(1, 6):
        say(database, number, "ann", 0)
        say(database, number, "ben", 0)
        say(database, number, ANONYMOUS, 0)
        say(database, number, "eve", 1)
    for number in range(6, 11):
        say(database, number, "cid", 2, trusted=True)  # nobody else says so
    sifter.sift("pets")
    with database.read() as session:
        assert read_reliability(session, "pets", LABELS, TrustPolicy()).proven == {
            "ann",
            "ben",
            ANONYMOUS,
        }  # the people of this machine
    create_key(database, "ben", [Scope.FEEDBACK], trusted=False)
    with database.read() as session:
        assert read_reliability(session, "pets", LABELS, TrustPolicy()).proven == {"ann", "ben"}
    set_contributor(database, "ben", blocked=True)
    set_contributor(database, ANONYMOUS, blocked=True)

    with database.read() as session:
        assert read_reliability(session, "pets", LABELS, TrustPolicy()).proven == frozenset()


def test_who_does_harm_is_worth_nothing_until_reviewers_release_half(
    intake: Intake, database: Database, sifter: Sifter
) -> None:
    intake.take([captured(number, image) for number, image in enumerate(pictures(12))])
    for number in range(1, 9):
        say(database, number, "eve", 0)
        say(database, number, "ann", 0)
    sifter.sift("pets")
    with database.begin() as session:
        for number in range(3, 9):
            time = "2026-01-02T03:04:05.000Z"
            session.add(FindingRow(observation=number, kind="CONTRIBUTOR_HARMS", level=9.0, detail="", time=time))

    def reliability() -> tuple[bool, float, bool]:
        with database.read() as session:
            found = read_reliability(session, "pets", LABELS, TrustPolicy())
        assert found.accuracy["ann"] > 0.79  # who agreed has not given them
        return "eve" in found.harmful, found.accuracy["eve"], "eve" in found.proven

    assert reliability() == (True, pytest.approx(1 / 3), False)
    say(database, 3, "rex", 0, trusted=True)
    say(database, 4, "rex", 0, trusted=True)
    say(database, 5, "rex", 2, trusted=True)
    assert reliability()[0]
    say(database, 5, "rex", 0, trusted=True)
    harmful, accuracy, known = reliability()
    assert (harmful, known) == (False, True)
    assert accuracy > 0.8


def test_reviewed_pictures_teach_how_often_voices_err_together_and_neighbours_are_right(
    intake: Intake, database: Database, sifter: Sifter
) -> None:
    intake.take([captured(number, image) for number, image in enumerate(pictures(12))])
    create_key(database, "rex", [Scope.FEEDBACK], trusted=True)
    time, encoder = "2026-01-02T03:04:05.000Z", "e" * 64
    for number in range(1, 9):
        say(database, number, "rex", 0, trusted=True)
        say(database, number, "ann", int(number > 4))
        say(database, number, "ben", int(number > 6))
    say(database, 9, "ann", 1)
    members = {"0": 500, "1": 500, "2": 10}
    with database.begin() as session:
        session.add(EncoderRow(digest=encoder, model="pets", run="r", features=4, create_time=time))
        for number in range(1, 9):
            lifts = {"1": 2.0} if number < 3 else {"0": 2.0, "1": 1.0}
            session.add(NeighbourhoodRow(observation=number, encoder=encoder, lifts=lifts, members=members, time=time))
    sifter.sift("pets")

    with database.read() as session:
        lessons = read_reliability(session, "pets", LABELS, TrustPolicy()).lessons
        other = read_reliability(session, "birds", LABELS, TrustPolicy()).lessons

    assert lessons.together == {("cat", "dog"): pytest.approx((4 + 0.005) / (8 + 2))}
    assert lessons.right[Support.NONE] == pytest.approx((10 * 0.05 + 2) / 18)
    assert lessons.right[Support.MOST] == pytest.approx((10 * 0.8 + 6) / 18)
    assert lessons.wrong[Support.MOST] == pytest.approx((20 * 0.02 + 2) / 28)  # of dogs; cows are too few to ask
    assert sum(lessons.wrong.values()) == pytest.approx(1)
    assert other.together == {}
    assert other.right == pytest.approx(Lessons().right)
