"""What counts for and against a candidate, and in which order."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import update

from services.trainer.data.models import Model
from services.trainer.data.observing import Role, State, VoteKind
from services.trainer.data.tables import ObservationRow, PredictionRow
from services.trainer.feedback.observations import ensure_loop_model
from services.trainer.feedback.policy import CapturePolicy, RetentionPolicy
from services.trainer.feedback.retention import ExpiredCounts, expire, make_room
from services.trainer.feedback.tables import AnswerRow, FindingRow
from services.trainer.loop import streams
from services.trainer.loop.cycle_payloads import CycleEnded, GateBegun, GateDecided
from services.trainer.loop.events import Event
from services.trainer.loop.holdout import read_holdout
from services.trainer.loop.log import EventLog, Leases, gate_is_open
from services.trainer.loop.payloads import Payload
from services.trainer.loop.streams import UNREADABLE, read_judged_draws, read_live_stream
from services.trainer.loop.values import GateOutcome, Outcome, Ruling
from services.trainer.storage.database import Database
from tests.trainer.loop.conftest import MODEL
from tests.trainer.loop.rows import (
    SET,
    TIME,
    add_answers,
    add_draws,
    add_holdout,
    add_pictures,
    add_review,
    add_set_answers,
)

RED, GREEN, BLUE = 0, 1, 2
CHAMPION, CANDIDATE = 1, 2
RULING = Ruling(rule="EVIDENCE")
BEGUN = GateBegun(candidate_count=1, error_share=0.03, margin=0.0)
pytestmark = pytest.mark.usefixtures("task")


def happen(database: Database, number: int, payload: Payload, cycle: int = 3) -> None:
    """Let something happen in a cycle, as the loop writes it down."""
    lease = Leases(database, "this one").hold(MODEL)
    assert lease is not None
    EventLog(database).append(Event(MODEL, number, cycle, datetime(2026, 3, 1, tzinfo=UTC), payload), lease)


def live(database: Database, most: int = 100) -> tuple[list[int], int, int]:
    with database.read() as session:
        stream = read_live_stream(session, MODEL, CHAMPION, CANDIDATE, most)
    return stream.outcomes.tolist(), stream.undecided, stream.labels_wanted


def drawn(database: Database, count: int, champion: int = RED, candidate: int = GREEN) -> list[int]:
    """Add pictures to judge by, each drawn once and answered by both versions."""
    pictures = add_pictures(database, count)
    add_draws(database, pictures)
    add_answers(database, CHAMPION, dict.fromkeys(pictures, champion))
    add_answers(database, CANDIDATE, dict.fromkeys(pictures, candidate))
    return pictures


def test_a_judged_difference_is_a_win_a_loss_or_a_tie(database: Database) -> None:
    won, lost, both_wrong, unknown = drawn(database, 4)
    for picture, label in ((won, GREEN), (lost, RED), (both_wrong, BLUE)):
        add_review(database, picture, label)
    add_review(database, unknown, None, VoteKind.PROPOSAL)

    assert live(database) == ([1, -1, 0, 0], 0, 0)


def test_answers_that_agree_are_ties_without_a_label(database: Database) -> None:
    drawn(database, 3, RED, RED)

    assert live(database) == ([0, 0, 0], 0, 0)


def test_the_first_difference_without_a_trusted_label_ends_the_stream(database: Database) -> None:
    first, second, third, fourth = drawn(database, 4)
    add_review(database, first, GREEN)
    add_review(database, second, GREEN, by="anybody", trusted=False)
    add_review(database, third, GREEN)

    assert live(database) == ([1], 0, 2)

    add_review(database, second, RED)
    assert live(database) == ([1, -1, 1], 0, 1)
    add_review(database, fourth, None, VoteKind.WRONG)  # does not say what it is
    assert live(database) == ([1, -1, 1], 0, 1)


def test_a_content_that_a_version_has_not_answered_ends_the_stream(database: Database) -> None:
    drawn(database, 1, RED, RED)
    waiting = add_pictures(database, 1)
    add_draws(database, waiting)
    add_answers(database, CHAMPION, {waiting[0]: RED})
    drawn(database, 1, RED, RED)

    assert live(database) == ([0], 0, 0)


def test_contents_that_a_version_has_learnt_are_passed_over(database: Database) -> None:
    by_candidate, by_champion, fresh = drawn(database, 3)
    for picture in (by_candidate, by_champion, fresh):
        add_review(database, picture, GREEN)
    with database.begin() as session:
        session.get_one(AnswerRow, (MODEL, CANDIDATE, by_candidate)).learnt = True
        session.get_one(AnswerRow, (MODEL, CHAMPION, by_champion)).learnt = True

    assert live(database) == ([1], 0, 0)


def test_pictures_that_cannot_be_read_are_passed_over(database: Database, task: Model) -> None:
    (lost,) = add_pictures(database, 1)
    add_draws(database, [lost], answer=RED)
    (following,) = drawn(database, 1)
    add_review(database, following, GREEN)
    assert live(database) == ([], 0, 0)
    with database.begin() as session:
        session.add(FindingRow(observation=lost, kind=UNREADABLE, level=1.0, detail="", time=TIME))

    assert live(database) == ([1], 0, 0)
    with database.read() as session:
        assert read_judged_draws(session, task, CHAMPION, asked=True).draw.tolist() == [2]


def test_contents_count_once_in_the_order_of_their_first_draws(database: Database) -> None:
    later, first = add_pictures(database, 2)
    add_draws(database, [first, later, first, first])
    for version, answer in ((CHAMPION, RED), (CANDIDATE, GREEN)):
        add_answers(database, version, {first: answer, later: answer})
    add_review(database, first, GREEN)
    add_review(database, later, RED)

    assert live(database) == ([1, -1], 0, 0)


def test_contents_to_learn_from_and_captures_that_were_not_drawn_do_not_count(database: Database) -> None:
    for picture in (*add_pictures(database, 1, Role.TRAIN), *add_pictures(database, 1)):
        add_answers(database, CHAMPION, {picture: RED})
        add_answers(database, CANDIDATE, {picture: RED})
        if picture == 1:
            add_draws(database, [picture])

    assert live(database) == ([], 0, 0)


def test_what_reviewers_cannot_settle_is_left_out_and_counted(database: Database) -> None:
    undecidable, rejected, disputed, told = drawn(database, 4)
    add_review(database, undecidable, None, VoteKind.UNDECIDABLE)
    add_review(database, rejected, None, VoteKind.REJECT)
    add_review(database, disputed, RED)
    add_review(database, disputed, GREEN, by="second")
    add_review(database, told, None, VoteKind.UNDECIDABLE)
    add_review(database, told, GREEN, by="second")  # who cannot tell does not contradict who can

    assert live(database) == ([1], 3, 0)


def test_a_blocked_reviewer_does_not_count(database: Database) -> None:
    (picture,) = drawn(database, 1)
    add_review(database, picture, GREEN, by="gone", blocked=True)

    assert live(database) == ([], 0, 1)


def test_the_holdout_counts_in_its_order_once_both_have_answered_all_of_it(database: Database) -> None:
    add_holdout(database, [RED, GREEN, BLUE, RED], order=[2, 0, 3, 1])
    add_set_answers(database, CHAMPION, [RED, RED, RED, BLUE])
    with database.read() as session:
        assert read_holdout(session, MODEL, SET, CHAMPION, CANDIDATE) is None

    add_set_answers(database, CANDIDATE, [GREEN, GREEN, BLUE, BLUE])
    with database.read() as session:
        found = read_holdout(session, MODEL, SET, CHAMPION, CANDIDATE)
        assert read_holdout(session, MODEL, "another", CHAMPION, CANDIDATE) is None

    assert found is not None
    assert found.labels.tolist() == [BLUE, RED, RED, GREEN]
    assert found.outcomes.tolist() == [1, -1, 0, 1]
    assert (
        found.candidate_probabilities.argmax(axis=1).tolist() == found.candidate.tolist() == [BLUE, GREEN, BLUE, GREEN]
    )


def test_the_accuracy_comes_from_draws_of_the_version_up_to_the_first_without_a_label(
    database: Database, task: Model
) -> None:
    right, wrong, learnt, undecidable, unknown, waiting, late = add_pictures(database, 7, Role.TRAIN)
    add_draws(database, [right, wrong, learnt, undecidable, unknown, right], answer=RED, share=0.5)
    add_draws(database, [wrong], answer=RED, version=CANDIDATE)
    add_draws(database, [waiting, late], answer=RED)
    for picture, label in ((right, RED), (wrong, GREEN), (late, RED)):
        add_review(database, picture, label)
    add_review(database, undecidable, None, VoteKind.UNDECIDABLE)
    add_review(database, unknown, None, VoteKind.PROPOSAL)

    add_answers(database, CHAMPION, dict.fromkeys([right, wrong, undecidable, unknown, waiting, late], RED))
    add_answers(database, CHAMPION, {learnt: RED}, learnt=True)
    add_answers(database, CANDIDATE, {right: RED}, learnt=True)

    with database.read() as session:
        draws = read_judged_draws(session, task, CHAMPION, asked=True)

    assert draws.correct.tolist() == [True, False, False, True]
    assert draws.probability.tolist() == [0.5] * 4


def test_what_a_version_was_not_asked_about_ends_its_draws_and_is_passed_over_where_it_may_never_be(
    database: Database, task: Model
) -> None:
    first, waiting, lost, last = add_pictures(database, 4, Role.TRAIN)
    add_draws(database, [first, waiting, lost, last], answer=RED)
    for picture in (first, waiting, lost, last):
        add_review(database, picture, RED)
    add_answers(database, CHAMPION, {first: RED, last: RED})
    add_answers(database, CANDIDATE, {waiting: RED, lost: RED})
    with database.begin() as session:
        session.add(FindingRow(observation=lost, kind=UNREADABLE, level=1.0, detail="", time=TIME))

    def judged() -> list[list[int]]:
        with database.read() as session:
            found = [read_judged_draws(session, task, CHAMPION, asked=each) for each in (True, False)]
        return [each.draw.tolist() for each in found]

    assert judged() == [[1], [1, 4]]
    add_answers(database, CHAMPION, {waiting: RED})
    assert judged() == [[1, 2, 4], [1, 2, 4]]
    add_answers(database, CHAMPION, {waiting: RED}, learnt=True)
    assert judged() == [[1, 4], [1, 4]]


def test_streams_begin_after_the_time_of_which_draws_were_forgotten(
    database: Database, task: Model, tmp_path: Path
) -> None:
    old, undecided, later, recent, last = drawn(database, 5)
    add_draws(database, [old])  # again, after all others
    for picture in (old, later, recent, last):
        add_review(database, picture, GREEN)
    with database.begin(alone=True) as session:
        ensure_loop_model(session, MODEL)
        session.execute(update(ObservationRow).where(ObservationRow.number != undecided).values(state=State.ACCEPTED))
        newer = update(PredictionRow).where(PredictionRow.draw >= 4).values(time="2026-03-01T00:00:00.000Z")
        session.execute(newer)
    assert live(database) == ([1], 0, 1)

    kept = RetentionPolicy(days=90)
    expire(database, tmp_path, MODEL, kept, datetime(2026, 3, 2, tzinfo=UTC), gate_is_open)
    assert live(database) == ([1], 0, 1)  # nothing was forgotten: it waits for the reviewer still
    expire(database, tmp_path, MODEL, kept, datetime(2026, 4, 15, tzinfo=UTC), gate_is_open)

    happen(database, 1, BEGUN)
    assert live(database) == ([1, 1, 1], 0, 0)
    with database.read() as session:
        assert read_judged_draws(session, task, CHAMPION, asked=True).draw.tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    "end",
    [
        GateDecided(outcome=GateOutcome.PASSED, ruling=RULING),
        CycleEnded(outcome=Outcome.ABANDONED, stage="GATE", ruling=RULING),
    ],
)
def test_what_an_open_gate_judges_by_stays_however_old_it_is(
    database: Database, task: Model, tmp_path: Path, end: Payload
) -> None:
    with database.begin(alone=True) as session:
        ensure_loop_model(session, MODEL)
    lost, won = drawn(database, 2)
    learnt = add_pictures(database, 2, Role.TRAIN)
    add_draws(database, learnt)
    for picture, label in ((lost, RED), (won, GREEN), *((each, RED) for each in learnt)):
        add_review(database, picture, label)
    happen(database, 1, BEGUN)
    assert live(database) == ([-1, 1], 0, 0)

    kept = RetentionPolicy(days=90)
    assert expire(database, tmp_path, MODEL, kept, datetime(2027, 1, 1, tzinfo=UTC), gate_is_open).observations == 2
    assert live(database) == ([-1, 1], 0, 0)
    with database.read() as session:
        assert len(read_judged_draws(session, task, CHAMPION, asked=True).draw) == 0  # they may begin anew meanwhile

    happen(database, 2, end)
    assert expire(database, tmp_path, MODEL, kept, datetime(2027, 1, 1, tzinfo=UTC), gate_is_open).observations == 2
    happen(database, 3, BEGUN, cycle=4)
    drawn(database, 1, RED, RED)
    assert live(database) == ([0], 0, 0)


def test_a_gate_holds_half_of_the_bytes_and_what_comes_later_counts_for_the_next(
    database: Database, tmp_path: Path
) -> None:
    with database.begin(alone=True) as session:
        ensure_loop_model(session, MODEL)
    drawn(database, 6, RED, RED)
    happen(database, 1, BEGUN)
    full = CapturePolicy(max_bytes=1000, least_free_bytes=0)
    present = datetime(2027, 1, 1, tzinfo=UTC)

    def made() -> ExpiredCounts | None:
        return make_room(database, tmp_path, MODEL, full, present, gate_is_open)

    assert made() is None  # 600 of 1,000 bytes
    drawn(database, 4, RED, RED)
    assert made() == ExpiredCounts(0, 0)  # all of them are held
    drawn(database, 2, RED, RED)

    assert live(database) == ([0] * 10, 0, 0)
    assert made() == ExpiredCounts(2, 0)
    assert live(database) == ([0] * 10, 0, 0)
    happen(database, 2, GateDecided(outcome=GateOutcome.PASSED, ruling=RULING))
    happen(database, 3, BEGUN, cycle=4)  # at once: nothing has made room since
    assert live(database) == ([], 0, 0)
    drawn(database, 3, RED, RED)
    assert live(database) == ([0] * 3, 0, 0)


def test_it_is_counted_for_each_version_how_often_its_judged_draws_begin_anew(
    database: Database, task: Model, tmp_path: Path
) -> None:
    with database.begin(alone=True) as session:
        ensure_loop_model(session, MODEL)
    pictures = add_pictures(database, 20)
    add_draws(database, pictures[:10])
    add_draws(database, pictures[10:], version=CANDIDATE)
    for version in (CHAMPION, CANDIDATE):
        add_answers(database, version, dict.fromkeys(pictures, RED))
    for picture in pictures:
        add_review(database, picture, RED)

    def age(first: int, last: int) -> None:
        with database.begin() as session:
            aged = update(PredictionRow).where(PredictionRow.draw.between(first, last))
            session.execute(aged.values(time=TIME))
            session.execute(
                update(PredictionRow).where(PredictionRow.draw > last).values(time="2026-06-01T00:00:00.000Z")
            )
        kept = RetentionPolicy(days=90)
        expire(database, tmp_path, MODEL, kept, datetime(2026, 5, 1, tzinfo=UTC), gate_is_open)

    def judged(version: int) -> tuple[list[int], int]:
        with database.read() as session:
            draws = read_judged_draws(session, task, version, asked=True)
        return draws.draw.tolist(), draws.restarts

    age(1, 1)  # a fifth of what there is begins anew with it
    assert judged(CHAMPION) == ([5, 6, 7, 8, 9, 10], 1)
    age(2, 4)
    assert judged(CHAMPION) == ([5, 6, 7, 8, 9, 10], 1)
    age(5, 5)
    assert judged(CHAMPION) == ([9, 10], 2)
    assert judged(CANDIDATE) == (list(range(11, 21)), 0)
    age(6, 12)
    assert judged(CHAMPION) == ([], 3)
    assert judged(CANDIDATE) == (list(range(13, 21)), 1)


def test_no_more_outcomes_are_read_than_are_of_use(database: Database) -> None:
    drawn(database, 5, RED, RED)
    drawn(database, 1)

    assert live(database, most=3) == ([0, 0, 0], 0, 0)
    assert live(database, most=6) == ([0] * 5, 0, 1)


def test_streams_are_the_same_on_whichever_page_a_draw_lies(
    database: Database, task: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = drawn(database, 6)
    add_draws(database, [pictures[0], pictures[5], pictures[2]])
    for picture in pictures:
        add_review(database, picture, RED if picture == pictures[3] else GREEN)
    whole = live(database)
    with database.read() as session:
        judged = read_judged_draws(session, task, CHAMPION, asked=True).draw.tolist()

    monkeypatch.setattr(streams, "_AT_ONCE", 2)

    assert live(database) == whole == ([1, 1, 1, -1, 1, 1], 0, 0)
    with database.read() as session:
        assert read_judged_draws(session, task, CHAMPION, asked=True).draw.tolist() == judged == list(range(1, 10))
