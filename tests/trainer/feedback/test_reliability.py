import pytest

from services.common.identity import ANONYMOUS, Scope
from services.trainer.data.observing import VoteKind, Word, vote
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.contributors import create_key, set_contributor
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.reliability import contributor_accuracies, label_posterior, read_reliability
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.tables import FindingRow
from services.trainer.feedback.trust import VoteFact
from services.trainer.statistics.agreement import fuse_votes
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import captured, pictures


def says(label: str, name: str, trusted: bool = False) -> VoteFact:
    return VoteFact(name, VoteKind.LABEL, label, trusted)


def test_it_is_what_fused_votes_come_to_for_the_same_accuracies() -> None:
    votes = [(0, 0, 2), (0, 1, 2), (0, 2, 1), (1, 0, 3), (1, 2, 3), (2, 1, 0)]
    fused = fuse_votes(votes, 5)
    accuracy = {str(number): value for number, value in fused.accuracy.items()}

    for item in range(3):
        said = [says(str(label), str(name)) for at, name, label in votes if at == item]
        found = label_posterior(said, "", accuracy, 5)
        assert found == pytest.approx({label: fused.posterior[item][int(label)] for label in found}, abs=1e-3)


def test_a_stranger_is_as_likely_right_as_strangers_are() -> None:
    assert label_posterior([says("dog", "ann")], "", {}, 10) == pytest.approx({"dog": 0.8})


def test_a_word_against_the_answer_speaks_against_its_label_alone() -> None:
    wrong = VoteFact("ben", VoteKind.WRONG)
    for_answer = label_posterior([says("cat", "ann"), wrong], "cat", {}, 3)
    for_other = label_posterior([says("dog", "ann"), wrong], "cat", {}, 3)

    assert for_answer["cat"] < 0.8 < for_other["dog"]
    assert label_posterior([wrong], "cat", {}, 3) == {}


def test_labels_that_the_model_does_not_know_are_weighed_like_others() -> None:
    found = label_posterior([says("yak", "ann"), says("yak", "ben"), says("dog", "cid")], "cat", {}, 2)

    assert found["yak"] > 0.8 > found["dog"] > 0


def test_reviewers_weigh_most_and_the_blocked_nothing() -> None:
    crowd = [says("cow", "ann"), says("dog", "rex", trusted=True)]

    assert label_posterior(crowd, "", {"ann": 0.9}, 3)["dog"] > 0.9
    assert label_posterior([VoteFact("x", VoteKind.LABEL, "cow", True, True), crowd[1]], "", {}, 3).keys() == {"dog"}


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
        assert read_reliability(session, "pets", 3).proven == {"ann", "ben", ANONYMOUS}  # the people of this machine
    create_key(database, "ben", [Scope.FEEDBACK], trusted=False)
    with database.read() as session:
        assert read_reliability(session, "pets", 3).proven == {"ann", "ben"}
    set_contributor(database, "ben", blocked=True)
    set_contributor(database, ANONYMOUS, blocked=True)

    with database.read() as session:
        assert read_reliability(session, "pets", 3).proven == frozenset()


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
            found = read_reliability(session, "pets", 3)
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
