"""What is missing is found in rows alone, the most urgent first."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from services.trainer.analyst.figures import KEPT, add_figure, last_figure
from services.trainer.analyst.windows import Window, Windows, find_windows
from services.trainer.analyst.work import Answer, Drift, Embed, Screen, Sift, Wanted, Work, find_work
from services.trainer.data.observing import Role
from services.trainer.data.samples import Samples
from services.trainer.feedback.tables import AnswerRow, EmbeddingRow, EncoderRow, FindingRow, NeighbourhoodRow
from services.trainer.loop.kinds import HOLDOUT, QUALITY, SCREENING, SOFTMAX_SHIFT
from services.trainer.loop.policy import AlarmPolicy
from services.trainer.loop.tables import EventRow, FigureRow, SetAnswersRow
from services.trainer.storage.database import Database
from tests.trainer.analyst.conftest import MODEL, Users, restate

ENCODER = "e" * 64
TIME = "2026-01-02T03:04:05.000Z"
ALARM = AlarmPolicy(window=3)


def find(database: Database, wanted: Wanted, now: datetime | None = None) -> Work | None:
    with database.read() as session:
        return find_work(session, MODEL, wanted, ALARM, now or datetime.now(UTC))


def embedded(session: Session, numbers: list[int]) -> None:
    session.add_all(EmbeddingRow(encoder=ENCODER, observation=number, vector=b"\0\0") for number in numbers)


def placed(session: Session, numbers: list[int], encoder: str = ENCODER) -> None:
    session.add_all(
        NeighbourhoodRow(observation=number, encoder=encoder, lifts={}, members={}, time=TIME) for number in numbers
    )


def answered(session: Session, version: int, numbers: list[int]) -> None:
    session.add_all(
        AnswerRow(model=MODEL, version=version, observation=number, best=0, best_probability=1.0, probabilities=b"")
        for number in numbers
    )


@pytest.fixture
def sent(database: Database, users: Users, slice_samples: tuple[Samples, Samples]) -> list[int]:
    """Six pictures to learn from, two of them randomly drawn, and then two to judge by."""
    with database.begin() as session:
        session.add(EncoderRow(digest=ENCODER, model=MODEL, run="r", features=1, create_time=TIME))
    images = slice_samples[1].images
    numbers = users.send(images[:2]) + users.send(images[2:6], strategy="LOW_CONFIDENCE")
    return numbers + users.send(images[6:8], Role.JUDGE, strategy="RARE_CLASS")


def test_pictures_are_embedded_then_answered_then_sifted_screened_and_compared(
    database: Database, sent: list[int]
) -> None:
    wanted = Wanted(ENCODER, champion=1, candidate=2, ready=frozenset({1, 2}), holdout="sha256:h")
    restate(database, sent[4:5], reason="WAITS_FOR_EMBEDDING")
    waiting_first = [sent[4], *sent[:4], *sent[5:]]
    assert find(database, wanted) == Embed(ENCODER, tuple(waiting_first))

    with database.begin() as session:
        embedded(session, sent)
    assert find(database, wanted) == Answer(2, (), "sha256:h")
    with database.begin() as session:
        session.add(SetAnswersRow(model=MODEL, version=2, set_digest="sha256:h", best=b"", probabilities=b""))
    assert find(database, wanted) == Answer(2, tuple(sent[6:]))
    with database.begin() as session:
        answered(session, 2, sent[6:])
    assert find(database, wanted) == Answer(1, (), "sha256:h")
    with database.begin() as session:
        session.add(SetAnswersRow(model=MODEL, version=1, set_digest="sha256:h", best=b"", probabilities=b""))
        answered(session, 1, sent[6:])
    assert find(database, wanted) == Answer(1, tuple(sent[:2]))  # the random draws, which it has answered
    with database.begin() as session:
        answered(session, 1, sent[:2])

    restate(database, sent[4:5], reason="")
    assert find(database, wanted) == Sift(ENCODER, tuple(sent))
    with database.begin() as session:
        placed(session, sent)
    restate(database, sent[:1], stale=True)
    assert find(database, wanted) == Sift(ENCODER, ())
    restate(database, sent[:1], stale=False, state="ACCEPTED", label=1, changed_number=40)
    assert find(database, wanted) == Screen(ENCODER, 40)
    with database.begin() as session:
        add_figure(session, MODEL, SCREENING, {"changed_number": 40}, {})
    assert find(database, wanted) == Drift(None, sent[-1], 40)
    with database.begin() as session:
        add_figure(session, MODEL, QUALITY, {"last": sent[-1], "last_draw": 0, "changed_number": 40}, {})
    assert find(database, wanted) is None
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert find(database, wanted, tomorrow) is None  # nothing has come since
    restate(database, sent[-1:], changed_number=41)  # a reviewer has said what it is
    assert find(database, wanted, tomorrow) == Drift(None, sent[-1], 41)


def test_nothing_is_asked_of_versions_that_cannot_answer(database: Database, sent: list[int]) -> None:
    wanted = Wanted(champion=1, candidate=2, holdout="sha256:h")

    assert find(database, wanted) == Drift(None, sent[-1], len(sent))


def test_no_version_is_asked_while_a_canary_is_compared_by_its_requests(database: Database, sent: list[int]) -> None:
    wanted = Wanted(champion=1, candidate=2, ready=frozenset({1, 2}))

    def happens(number: int, kind: str) -> type[Work]:
        with database.begin() as session:
            row = EventRow(model=MODEL, number=number, cycle=1, kind=kind, key=None, time=TIME, payload={})
            session.add(row)
        found = find(database, wanted)
        assert found is not None
        return type(found)

    assert happens(1, "shadow.ended") is Answer
    assert happens(2, "canary.intended") is Drift
    assert happens(3, "canary.moved") is Drift
    assert happens(4, "alarm.raised") is Drift
    assert happens(5, "canary.ended") is Answer
    assert happens(6, "canary.moved") is Drift
    assert happens(7, "cycle.ended") is Answer


def test_what_cannot_be_read_is_left_alone(database: Database, sent: list[int]) -> None:
    wanted = Wanted(ENCODER, champion=1, ready=frozenset({1}), without=frozenset(sent[1:]))

    assert find(database, wanted) == Embed(ENCODER, (sent[0],))
    with database.begin() as session:
        embedded(session, sent[:1])
    assert find(database, wanted) == Answer(1, (sent[0],))


def test_neighbours_are_found_anew_for_another_encoder_and_another_label(database: Database, sent: list[int]) -> None:
    with database.begin() as session:
        session.add(EncoderRow(digest="f" * 64, model=MODEL, run="r", features=1, create_time=TIME))
        embedded(session, sent)
        session.flush()
        placed(session, sent[:2], "f" * 64)
        placed(session, sent[2:])
    restate(database, sent[2:3], reason="WAITS_FOR_EMBEDDING")

    assert find(database, Wanted(ENCODER)) == Sift(ENCODER, tuple(sent[:3]))


def test_all_are_screened_again_after_many_changes_at_once_and_after_few_in_time(
    database: Database, users: Users, slice_samples: tuple[Samples, Samples], sent: list[int]
) -> None:
    numbers = users.send(slice_samples[1].images[100:130], strategy="LOW_CONFIDENCE")
    with database.begin() as session:
        embedded(session, sent + numbers)
        placed(session, sent + numbers)
        session.add(FindingRow(observation=sent[0], kind="LIKELY_WRONG", level=1.0, detail="", time=TIME))
        add_figure(session, MODEL, SCREENING, {"changed_number": 200}, {})
        add_figure(session, MODEL, QUALITY, {"last": numbers[-1], "last_draw": 0, "changed_number": 200}, {})
    wanted = Wanted(ENCODER)
    restate(database, numbers, state="ACCEPTED", label=1, changed_number=150)
    assert find(database, wanted) is None

    restate(database, sent[:1], state="QUARANTINED", changed_number=201)  # is doubted, and somebody said something
    assert find(database, wanted) is None
    assert find(database, wanted, datetime.now(UTC) + timedelta(minutes=1)) == Screen(ENCODER, 201)
    restate(database, numbers[:19], changed_number=202)
    assert find(database, wanted) == Screen(ENCODER, 202)


def test_windows_are_the_first_and_the_newest_draws_and_begin_anew_after_an_alarm(
    database: Database, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    images = slice_samples[1].images

    def windows() -> Windows | None:
        with database.read() as session:
            return find_windows(session, MODEL, 3)

    users.send(images[:5])
    assert windows() is None
    users.send(images[5:8])
    assert windows() == Windows(Window(1, 3), Window(6, 8))

    with database.begin() as session:
        add_figure(session, MODEL, SOFTMAX_SHIFT, {"first": 2, "last": 4}, {"alarm": True})
        add_figure(session, MODEL, SOFTMAX_SHIFT, {"first": 6, "last": 8}, {"alarm": False})
    assert windows() is None
    users.send(images[8:10])
    assert windows() == Windows(Window(5, 7), Window(8, 10))


def test_the_champion_answers_what_is_compared_by_its_answers(
    database: Database, users: Users, slice_samples: tuple[Samples, Samples]
) -> None:
    numbers = users.send(slice_samples[1].images[:8], version=1)
    wanted = Wanted(champion=4, ready=frozenset({1, 4}))
    with database.begin() as session:
        answered(session, 1, numbers)

    assert find(database, wanted) == Answer(4, tuple(numbers[:3] + numbers[5:]))


def test_the_oldest_figures_of_a_kind_are_forgotten(database: Database, users: Users) -> None:
    with database.begin() as session:
        add_figure(session, MODEL, HOLDOUT, {}, {})
        session.add_all(
            FigureRow(model=MODEL, kind=QUALITY, number=number, window={}, values={}, time=TIME)
            for number in range(1, KEPT + 1)
        )
        session.flush()
        add_figure(session, MODEL, QUALITY, {}, {})
    with database.read() as session:
        numbers = session.query(FigureRow.number).filter(FigureRow.kind == QUALITY).order_by(FigureRow.number)
        assert [number for (number,) in numbers] == list(range(2, KEPT + 2))
        assert last_figure(session, MODEL, HOLDOUT) is not None
