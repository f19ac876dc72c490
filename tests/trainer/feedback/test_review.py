"""The queue of reviewers: its orders and pages, and what reviewers decide."""

import pytest

from services.common.errors import InvalidInput, NotAllowed, NotFound
from services.common.identity import LOCAL, OWNER, Caller, Scope
from services.trainer.data.blobs import Blobs
from services.trainer.data.observing import Role, State, VoteKind, Word, vote
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.contributors import create_key, set_contributor
from services.trainer.feedback.observations import Intake
from services.trainer.feedback.policy import JudgingPolicy
from services.trainer.feedback.queue import ObservationFilter, Order
from services.trainer.feedback.review import Decision, Page, Reviewing
from services.trainer.feedback.sifting import Sifter
from services.trainer.feedback.tables import AnswerRow
from services.trainer.feedback.views import Versions
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import Groups, captured, observation, pictures, prediction_id, votes

REX = Caller("rex", frozenset({Scope.FEEDBACK}), trusted=True)
ALL = ObservationFilter()


def numbers(page: Page) -> list[int]:
    return [each.number for each in page.observations]


def say(database: Database, number: int, word: Word) -> None:
    with database.begin(alone=True) as session:
        vote(session, session.get_one(ObservationRow, number), word)


@pytest.fixture
def versions() -> list[Versions | None]:
    """What is judged; tests may put something else there."""
    return [None]


@pytest.fixture
def reviewing(
    database: Database,
    blobs: Blobs,
    intake: Intake,
    sifter: Sifter,
    policies: dict[str, Groups],
    versions: list[Versions | None],
) -> Reviewing:
    """Six pictures that judge: all but 2 and 5 are draws; the first draw was of the picture 6."""
    policies["pets"] = Groups(judging=JudgingPolicy(share=0.999999))
    create_key(database, "rex", [Scope.FEEDBACK], trusted=True)
    images = pictures(6)
    other = {"strategy": "LOW_CONFIDENCE", "probability": 0}
    sure = [0.3, 0.9, 0.5, 0.2, 0.9, 0.4]
    items = [
        captured(row, image, labels=(("cat", sure[row]),), **(other if row in (1, 4, 5) else {}))
        for row, image in enumerate(images)
    ]
    intake.take([*items[:2], captured(10, images[5], labels=(("dog", 0.8),), time="2026-01-02T04:00:00.000Z")])
    intake.take(items[2:])
    return Reviewing(database, blobs.folder, sifter, lambda _: versions[0])


def test_pictures_come_in_the_order_that_is_asked_for(reviewing: Reviewing) -> None:
    """Rows: 1, 2 and 3 are the pictures 0, 1 and 5 of the fixture; then 2, 3 and 4."""
    assert numbers(reviewing.list("pets", ALL)) == [6, 5, 4, 3, 2, 1]
    assert numbers(reviewing.list("pets", ALL, Order.UNCERTAIN)) == [5, 1, 3, 4, 2, 6]
    assert numbers(reviewing.list("pets", ALL, Order.DRAWN)) == [1, 3, 4, 5]
    assert numbers(reviewing.list("pets", ALL, Order.DISAGREEMENT)) == [1, 3, 4, 5]


@pytest.mark.parametrize("order", Order)
def test_pages_hold_every_picture_once(reviewing: Reviewing, order: Order) -> None:
    whole = numbers(reviewing.list("pets", ALL, order))
    pages: list[int] = []
    token = ""
    while True:
        page = reviewing.list("pets", ALL, order, page_size=2, page_token=token)
        pages += numbers(page)
        token = page.next_token
        if not token:
            break

    assert pages == whole


def test_those_on_which_candidate_and_champion_differ_come_first(
    reviewing: Reviewing, database: Database, versions: list[Versions | None]
) -> None:
    with database.begin() as session:
        for number in range(1, 7):
            for version in (1, 2, 3):
                best = 2 if version == 2 and number in (2, 4, 5) else 0
                row = {"best": best, "best_probability": 0.5, "probabilities": b""}
                session.add(AnswerRow(model="pets", version=version, observation=number, **row))

    versions[0] = Versions(champion=1, candidate=2)
    page = reviewing.list("pets", ALL, Order.DISAGREEMENT)
    decided = reviewing.review(REX, 4, Decision.LABEL, "dog")
    versions[0] = Versions(champion=1, candidate=3)
    alike = reviewing.list("pets", ALL, Order.DISAGREEMENT)

    assert numbers(page) == [4, 5, 1, 3]
    assert [(each.champion_label, each.candidate_label) for each in page.observations] == [("", "")] * 4
    assert (decided.champion_label, decided.candidate_label) == ("cat", "cow")
    assert numbers(alike) == [1, 3, 5]


def test_what_is_decided_leaves_the_queue(reviewing: Reviewing, database: Database) -> None:
    assert reviewing.list("pets", ALL).waiting == 4
    reviewing.review(REX, 1, Decision.LABEL, "dog")
    reviewing.review(REX, 3, Decision.UNDECIDABLE)
    say(database, 4, Word("ann", VoteKind.LABEL, label=0))
    say(database, 5, Word("rex", VoteKind.WRONG, trusted=True))

    page = reviewing.list("pets", ALL, Order.DRAWN)

    assert (numbers(page), page.waiting) == ([4, 5], 2)
    assert numbers(reviewing.list("pets", ALL, Order.DISAGREEMENT)) == [4, 5]
    assert len(numbers(reviewing.list("pets", ALL))) == 6


def test_a_filter_leaves_out_what_is_not_asked_for(reviewing: Reviewing, database: Database) -> None:
    reviewing.review(REX, 1, Decision.LABEL, "dog")
    say(database, 2, Word("ann", VoteKind.PROPOSAL, proposal="yak"))

    def found(**wanted: object) -> list[int]:
        return numbers(reviewing.list("pets", ObservationFilter(**wanted)))  # type: ignore[arg-type]

    assert found(states=frozenset({State.ACCEPTED})) == [1]
    assert found(label="dog") == [1]
    assert found(contributor="ann") == [2]
    assert found(role=Role.TRAIN) == []
    assert len(found(role=Role.JUDGE, states=frozenset({State.CAPTURED}))) == 5


@pytest.mark.parametrize("order", Order)
def test_reviewers_see_what_others_say_of_a_picture_that_judges_once_it_is_decided(
    reviewing: Reviewing, database: Database, order: Order
) -> None:
    say(database, 3, Word("ann", VoteKind.LABEL, label=1, comment="woof"))
    reviewing._sifter.sift("pets")

    (blind,) = (each for each in reviewing.list("pets", ALL, order).observations if each.number == 3)
    shown = reviewing.review(REX, 3, Decision.LABEL, "cow")

    assert (blind.state, blind.reason, blind.drawn, blind.version) == ("PENDING", "WAITS_FOR_REVIEW", True, 1)
    assert blind.hides_answers
    assert (blind.predicted_label, blind.predicted_probability) == ("", 0.0)
    assert (blind.votes, blind.label, blind.label_probability, blind.detail) == ((), "", 0.0, "")
    assert not shown.hides_answers
    assert (shown.predicted_label, shown.predicted_probability) == ("cat", 0.4)
    assert shown.prediction_ids == (prediction_id(5), prediction_id(10))
    assert [(each.contributor, each.label, each.comment) for each in shown.votes] == [
        ("ann", "dog", "woof"), ("rex", "cow", ""),
    ]  # fmt: skip


def test_a_label_that_reviewers_may_not_see_cannot_be_found_by_asking_for_it(
    reviewing: Reviewing, database: Database
) -> None:
    say(database, 3, Word("ann", VoteKind.LABEL, label=1))
    reviewing._sifter.sift("pets")
    before = numbers(reviewing.list("pets", ObservationFilter(label="dog")))
    reviewing.review(REX, 3, Decision.LABEL, "dog")

    assert (before, numbers(reviewing.list("pets", ObservationFilter(label="dog")))) == ([], [3])


@pytest.mark.parametrize(
    ("row", "state", "blind", "votes_shown"),
    [(0, "PENDING", True, False), (0, "QUARANTINED", True, True), (0, "ACCEPTED", True, False),
     (1, "PENDING", False, True), (1, "QUARANTINED", False, True)],
)  # fmt: skip
def test_a_draw_to_learn_from_that_is_held_up_shows_what_was_said_and_no_answer(
    database: Database, blobs: Blobs, intake: Intake, sifter: Sifter, row: int, state: str, blind: bool,
    votes_shown: bool,
) -> None:  # fmt: skip
    """Of two pictures to learn from the first is a draw."""
    images = pictures(2)
    intake.take([captured(0, images[0]), captured(1, images[1], strategy="LOW_CONFIDENCE", probability=0)])
    say(database, row + 1, Word("ann", VoteKind.LABEL, label=2))
    sifter.sift("pets")
    with database.begin() as session:
        session.get_one(ObservationRow, row + 1).state = state

    shown = Reviewing(database, blobs.folder, sifter).read(row + 1)

    assert (shown.hides_answers, shown.predicted_label) == (blind, "" if blind else "cat")
    assert ([each.label for each in shown.votes], shown.label) == ((["cow"], "cow") if votes_shown else ([], ""))
    assert bool(shown.detail) == votes_shown


def test_a_reviewer_who_was_blocked_has_not_decided(reviewing: Reviewing, database: Database) -> None:
    create_key(database, "rex", [Scope.FEEDBACK], trusted=True)
    reviewing.review(REX, 1, Decision.LABEL, "dog")
    set_contributor(database, "rex", blocked=True)
    reviewing._sifter.sift("pets")

    page = reviewing.list("pets", ALL, Order.DRAWN)

    assert numbers(page) == [1, 3, 4, 5]
    assert (page.observations[0].state, page.observations[0].votes) == ("QUARANTINED", ())


def test_the_file_of_a_picture_is_given(reviewing: Reviewing) -> None:
    image, name, orientation = reviewing.image(3)

    assert (image[:4], name, orientation) == (b"\x89PNG", "PNG", 1)


def test_decisions_are_final_until_the_reviewer_thinks_again(reviewing: Reviewing, database: Database) -> None:
    states = [
        reviewing.review(REX, 1, Decision.LABEL, "dog").state,
        reviewing.review(REX, 1, Decision.LABEL, "dog").state,
        reviewing.review(REX, 1, Decision.REJECT).state,
        reviewing.review(REX, 1, Decision.LABEL, "yak").state,
    ]

    assert states == ["ACCEPTED", "ACCEPTED", "REJECTED", "PROPOSED"]
    assert reviewing.read(1).label == "yak"
    assert len(votes(database)) == 1


def test_a_picture_is_released_with_its_leading_label(
    reviewing: Reviewing, database: Database, intake: Intake, policies: dict[str, Groups]
) -> None:
    policies["pets"] = Groups()
    intake.take([captured(20, pictures(1, 9)[0])])  # the picture 7 is to learn from
    with pytest.raises(
        InvalidInput, match="measures the model, so that what others say of it must not decide"
    ) as blind:
        reviewing.review(REX, 7, Decision.RELEASE)
    with database.begin() as session:
        session.get_one(ObservationRow, 7).state = State.QUARANTINED
    with pytest.raises(InvalidInput, match="picture 7 has no leading label that the model knows; decide on it with"):
        reviewing.review(REX, 7, Decision.RELEASE)
    say(database, 7, Word("ann", VoteKind.LABEL, label=2))
    reviewing._sifter.sift("pets")
    with database.begin() as session:
        session.get_one(ObservationRow, 7).state = State.QUARANTINED

    released = reviewing.review(REX, 7, Decision.RELEASE)

    assert blind.value.reason == "BLIND"
    assert (released.state, released.label, released.sample is not None) == ("ACCEPTED", "cow", True)
    assert reviewing.review(REX, 7, Decision.RELEASE) == released


def test_only_the_trusted_decide(reviewing: Reviewing, database: Database) -> None:
    with pytest.raises(NotAllowed, match="anonymous is not trusted to decide on picture 1; send it as feedback"):
        reviewing.review(LOCAL, 1, Decision.LABEL, "dog")
    create_key(database, "rex", [Scope.FEEDBACK], trusted=True)
    set_contributor(database, "rex", blocked=True)
    with pytest.raises(NotAllowed, match="rex is not trusted"):
        reviewing.review(REX, 1, Decision.LABEL, "dog")

    assert reviewing.review(OWNER, 1, Decision.LABEL, "dog").state == "ACCEPTED"


def test_what_is_not_there_is_not_found(reviewing: Reviewing, database: Database, blobs: Blobs) -> None:
    for act in (reviewing.read, reviewing.image, lambda number: reviewing.review(REX, number, Decision.REJECT)):
        with pytest.raises(NotFound, match="name one that ListObservations or `aimass review` gives"):
            act(99)
    blobs.path(observation(database, 1).content_digest).write_bytes(b"corrupt")
    with pytest.raises(NotFound, match="the file of picture 1 is damaged") as caught:
        reviewing.image(1)
    assert caught.value.reason == "PICTURE_DAMAGED"
    blobs.remove(observation(database, 1).content_digest)
    with pytest.raises(NotFound, match="picture 1 is unknown or was deleted"):
        reviewing.image(1)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"page_size": -1}, InvalidInput, "page_size is -1; give 1 to 200, or 0 for 50"),
        ({"page_token": "next"}, InvalidInput, "page_token 'next' is not one; give next_page_token"),
        ({"page_token": "1:-1"}, InvalidInput, "page_token '1:-1' is not one"),
        ({"page_token": "1.1.1:1"}, InvalidInput, "page_token '1.1.1:1' is not one"),
        ({"model": "birds"}, NotFound, "model 'birds' is unknown"),
        ({"wanted": ObservationFilter(label="do")}, InvalidInput, "did you mean 'dog'?"),
    ],
)
def test_a_page_that_cannot_be_is_refused(
    reviewing: Reviewing, request_: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        reviewing.list(**({"model": "pets", "wanted": ALL} | request_))  # type: ignore[arg-type]

    assert words in str(caught.value)


@pytest.mark.parametrize("label", ["", "   ", "x" * 201, "cat\u202e"])
def test_a_malformed_label_decides_nothing(reviewing: Reviewing, database: Database, label: str) -> None:
    with pytest.raises(InvalidInput, match=r"characters; give 1 to 200|U\+202E, which cannot be seen"):
        reviewing.review(REX, 1, Decision.LABEL, label)

    assert votes(database) == []
