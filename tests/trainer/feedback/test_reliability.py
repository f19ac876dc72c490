import pytest

from services.common.identity import Scope
from services.trainer.data.observing import VoteKind, Word, vote
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.contributors import create_key, set_contributor
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.reliability import contributor_accuracies, label_posterior
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
