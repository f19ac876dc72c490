"""Feedback: by prediction or with the image, idempotent, at a pace, from those who are not blocked."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, NotAllowed, NotFound, Overloaded
from services.common.identity import LOCAL, OWNER, Caller, Scope
from services.trainer.data.blobs import Blobs
from services.trainer.data.observing import State
from services.trainer.feedback.contributors import create_key, set_contributor
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.pace import VotePace
from services.trainer.feedback.policy import CapturePolicy, TrustPolicy
from services.trainer.feedback.retention import forget
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.voting import FeedbackResult, NewFeedback, Voting
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import Groups, captured, observation, pictures, prediction_id, votes


def caller(name: str, trusted: bool = False) -> Caller:
    return Caller(name, frozenset({Scope.FEEDBACK}), trusted)


ANN, BEN, REX = caller("ann"), caller("ben"), caller("rex", trusted=True)


@pytest.fixture
def now() -> list[float]:
    """Seconds; tests may change them."""
    return [0.0]


@pytest.fixture
def voting(
    database: Database, blobs: Blobs, intake: Intake, sifter: Sifter, policies: dict[str, Groups], now: list[float]
) -> Voting:
    """With three predictions of a cat."""
    intake.take([captured(number, image) for number, image in enumerate(pictures(3))])
    create_key(database, "rex", [Scope.FEEDBACK], trusted=True)
    return Voting(database, blobs.folder, lambda name: policies[name], sifter, VotePace(lambda: now[0]))


def about(number: int, **said: object) -> NewFeedback:
    return NewFeedback(prediction_id(number), **said)  # type: ignore[arg-type]


def test_two_users_correct_an_answer(voting: Voting, database: Database) -> None:
    first = voting.send(ANN, about(0, label="dog", comment="a dog"))
    again = voting.send(ANN, about(0, label="dog", comment="a dog"))
    second = voting.send(BEN, about(0, label="dog"))

    assert first == FeedbackResult(1, State.PENDING, "NEEDS_VOTES", True, "pets")
    assert again == FeedbackResult(1, State.PENDING, "NEEDS_VOTES", False, "pets")
    assert second == FeedbackResult(1, State.ACCEPTED, "", True, "pets")
    kept = [(each.contributor, each.label, each.agreed, each.prediction, each.comment) for each in votes(database)]
    assert kept == [("ann", 1, False, prediction_id(0), "a dog"), ("ben", 1, False, prediction_id(0), "")]


def test_a_contributor_may_think_again(voting: Voting, database: Database) -> None:
    voting.send(REX, about(0, label="dog"))
    result = voting.send(REX, about(0, label="cow"))

    assert (result.state, result.new, len(votes(database))) == (State.ACCEPTED, True, 1)
    assert observation(database, 1).label == 2


def test_that_an_answer_is_right_is_a_vote_for_its_label(voting: Voting, database: Database) -> None:
    result = voting.send(REX, about(0, correct=True))

    assert (result.state, observation(database, 1).label, votes(database)[0].agreed) == (State.ACCEPTED, 0, True)


def test_that_an_answer_is_wrong_leaves_open_what_is_right(voting: Voting, database: Database) -> None:
    result = voting.send(REX, about(0, correct=False))

    assert (result.state, result.reason, votes(database)[0].agreed) == (State.PENDING, "NEEDS_LABEL", False)


def test_a_label_that_the_model_does_not_know_is_kept_as_a_proposal(voting: Voting, database: Database) -> None:
    assert voting.send(ANN, about(0, label=" yak ")).state == State.PROPOSED
    assert (votes(database)[0].label, votes(database)[0].proposal) == (None, "yak")


@pytest.mark.parametrize(
    "label", ["\u06a9\u062a\u0627\u0628\u200c\u0647\u0627", "\U0001f469\u200d\U0001f52c", "chow-chow 2"]
)
def test_joiners_are_a_part_of_words_that_are_written_with_them(voting: Voting, database: Database, label: str) -> None:
    voting.send(ANN, about(0, label=label))

    assert [each.proposal for each in votes(database)] == [label]


def test_upper_and_lower_case_are_one_label(voting: Voting, database: Database) -> None:
    voting.send(ANN, about(0, label="Dog "))

    assert votes(database)[0].label == 1


def test_an_answer_with_a_label_of_another_model_is_a_proposal_when_it_is_right(
    voting: Voting, intake: Intake, database: Database
) -> None:
    intake.take([captured(9, pictures(1, 5)[0], "red")])

    assert voting.send(REX, about(9, correct=True)).state == State.PROPOSED


def test_a_picture_that_was_not_captured_comes_with_the_feedback(
    voting: Voting, database: Database, blobs: Blobs
) -> None:
    image = pictures(1, 8)[0]
    result = voting.send(REX, NewFeedback(prediction_id(77), "pets", "dog", image=image))
    again = voting.send(ANN, NewFeedback(model="pets", label="dog", image=image))
    captured_one = voting.send(ANN, NewFeedback(model="pets", label="dog", image=pictures(1)[0]))

    assert result == FeedbackResult(4, State.ACCEPTED, "", True, "pets")
    assert again == FeedbackResult(4, State.ACCEPTED, "", True, "pets")
    assert captured_one.observation == 1
    assert blobs.has(observation(database, 4).content_digest)


def test_a_picture_may_be_named_by_its_number(voting: Voting) -> None:
    assert voting.send(REX, NewFeedback(label="dog", observation=2)) == FeedbackResult(
        2, State.ACCEPTED, "", True, "pets"
    )


@pytest.mark.parametrize(
    ("feedback", "error", "words"),
    [
        (NewFeedback(label="dog"), InvalidInput, "names neither prediction_id nor image and model; send the id"),
        (NewFeedback(label="dog", model="pets"), InvalidInput, "names neither prediction_id nor image and model"),
        (about(0), InvalidInput, "has label '' and correct None; give one of them"),
        (about(0, label="  "), InvalidInput, "has label '  ' and correct None; give one"),
        (about(0, label="dog", correct=True), InvalidInput, "has label 'dog' and correct True; give one"),
        (about(0, label="x" * 201), InvalidInput, "label has 201 characters; the limit is 200; shorten it"),
        (
            about(0, label="\x1b]0;owned\x07RED"),
            InvalidInput,
            "has the character U+001B, which cannot be seen; leave it",
        ),
        (about(0, label="cat\u200b"), InvalidInput, "has the character U+200B, which cannot be seen"),
        (about(0, label="cat\u200d"), InvalidInput, "has the character U+200D, which cannot be seen"),
        (about(0, label="dog", comment="x" * 1001), InvalidInput, "comment has 1,001 characters; the limit is 1,000"),
        (
            about(50, label="dog"),
            NotFound,
            f"prediction '{prediction_id(50)}' was not captured or is forgotten; send image",
        ),
        (about(50, label="dog", image=b"x"), NotFound, "was not captured or is forgotten; send image and model"),
        (NewFeedback(model="birds", label="dog", image=b"x"), NotFound, "model 'birds' is unknown"),
        (NewFeedback(model="pets", label="dog", image=b"x"), InvalidInput, "do not begin like an image"),
        (NewFeedback(model="pets", correct=True, image=pictures(1)[0]), InvalidInput, "send the label that it should"),
        (NewFeedback(label="dog", observation=99), NotFound, "prediction 'of picture 99' was not captured"),
    ],
)
def test_feedback_that_says_nothing_is_refused(
    voting: Voting, database: Database, feedback: NewFeedback, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        voting.send(ANN, feedback)

    assert words in str(caught.value)
    assert votes(database) == []


def test_the_blocked_are_not_heard(voting: Voting, database: Database) -> None:
    create_key(database, "ann", [Scope.FEEDBACK], trusted=False)
    set_contributor(database, "ann", blocked=True)

    with pytest.raises(NotAllowed, match="what ann says is not taken; ask the owner to unblock"):
        voting.send(ANN, about(0, label="dog"))


def test_who_is_distrusted_while_their_picture_is_stored_does_not_decide(
    voting: Voting, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voting, "_check_room", lambda *_: set_contributor(database, "rex", trusted=False))

    result = voting.send(REX, NewFeedback(model="pets", label="dog", image=pictures(1, 8)[0]))

    assert (result.state, result.reason) == (State.PENDING, "NEEDS_VOTES")
    assert [each.trusted for each in votes(database)] == [False]


def test_a_picture_that_goes_before_the_word_is_taken_is_not_found(
    voting: Voting, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_of = voting.model_of

    def model_of_the_last(feedback: NewFeedback) -> str:
        name = model_of(feedback)
        with database.begin(alone=True) as session:
            forget(session, [1])
        return name

    monkeypatch.setattr(voting, "model_of", model_of_the_last)

    with pytest.raises(NotFound, match="was not captured or is forgotten; send image and model with the label"):
        voting.send(REX, about(0, label="dog"))


def test_a_picture_that_goes_while_the_word_waits_for_its_turn_is_not_found(
    voting: Voting, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = database.begin

    @contextmanager
    def begin_late(*, alone: bool = False) -> Iterator[Session]:
        with begin(alone=alone) as session:
            forget(session, [1])
            yield session

    monkeypatch.setattr(database, "begin", begin_late)

    with pytest.raises(NotFound, match="was not captured or is forgotten; send image and model with the label"):
        voting.send(REX, about(0, label="dog"))


def test_a_word_is_taken_though_its_picture_goes_before_it_is_judged(
    voting: Voting, database: Database, sifter: Sifter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sift(name: str) -> None:
        with database.begin(alone=True) as session:
            forget(session, [1])

    monkeypatch.setattr(sifter, "sift", sift)

    assert voting.send(REX, about(0, label="dog")) == FeedbackResult(1, State.CAPTURED, "", True, "pets")


def test_each_contributor_has_a_pace_of_its_own(voting: Voting, policies: dict[str, Groups], now: list[float]) -> None:
    policies["pets"] = Groups(trust=TrustPolicy(votes_per_minute=3))
    for number in range(3):
        voting.send(ANN, about(number, label="dog"))

    with pytest.raises(Overloaded, match="ann has said something of 3 pictures within a minute") as caught:
        voting.send(ANN, about(0, label="cow"))
    assert caught.value.retry_after_seconds == pytest.approx(20)
    voting.send(BEN, about(0, label="dog"))
    for _ in range(9):
        voting.send(REX, about(0, label="dog"))
    now[0] = 20.0
    voting.send(ANN, about(0, label="cow"))
    with pytest.raises(Overloaded):
        voting.send(ANN, about(0, label="dog"))


def test_a_minute_of_silence_gives_no_more_than_a_minutes_worth() -> None:
    now = [0.0]
    pace = VotePace(lambda: now[0])
    pace.take("ann", 2)
    now[0] = 3600.0
    pace.take("ann", 2)
    pace.take("ann", 2)

    with pytest.raises(Overloaded):
        pace.take("ann", 2)


def test_all_on_this_machine_are_one_contributor_and_the_owner_decides(voting: Voting) -> None:
    for _ in range(3):
        assert voting.send(LOCAL, about(0, label="dog")).reason == "NEEDS_VOTES"
    assert voting.send(OWNER, about(0, label="dog")).state == State.ACCEPTED


@pytest.mark.parametrize(
    ("capture", "reason", "words"),
    [
        (CapturePolicy(least_free_bytes=10**18), "DISK_FULL", "must keep 1,000,000,000,000,000,000, so no picture is"),
        (CapturePolicy(least_free_bytes=0, max_bytes=1), "BYTES", "bytes and may take 1, so none is taken"),
    ],
)
def test_a_picture_for_which_the_policy_has_no_room_is_not_taken(
    voting: Voting, policies: dict[str, Groups], blobs: Blobs, capture: CapturePolicy, reason: str, words: str
) -> None:
    policies["pets"] = Groups(capture=capture)
    before = list(blobs.digests())

    with pytest.raises(Overloaded, match=words) as caught:
        voting.send(REX, NewFeedback(model="pets", label="dog", image=pictures(1, 8)[0]))

    assert caught.value.reason == reason
    assert list(blobs.digests()) == before
    assert voting.send(REX, about(0, label="dog")).state == State.ACCEPTED  # what is there needs no room
