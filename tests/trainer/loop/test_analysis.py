"""The analysis of a model in use, made from rows as the analyst, gateways and reviewers leave them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from services.trainer.analyst.drift import Judge, measure_errors, measure_shifts
from services.trainer.analyst.quality import measure_quality
from services.trainer.analyst.stored import StoredPictures
from services.trainer.analyst.windows import Window, Windows
from services.trainer.data.blobs import Blobs
from services.trainer.data.features import pack
from services.trainer.data.models import Model
from services.trainer.data.observing import State, VoteKind
from services.trainer.data.tables import ObservationRow, PredictionRow, VoteRow
from services.trainer.feedback.tables import AnswerRow, CaptureCountRow, EmbeddingRow, EncoderRow
from services.trainer.loop.analysis import make_analysis, nearness
from services.trainer.loop.analysis_document import Analysis, Consent
from services.trainer.loop.events import Event
from services.trainer.loop.log import EventLog
from services.trainer.loop.overview import read_overview
from services.trainer.loop.payloads import AlarmRaised
from services.trainer.loop.policy import AlarmPolicy
from services.trainer.loop.policy_file import load_policy
from services.trainer.loop.state import LoopState
from services.trainer.statistics.intervals import Interval
from services.trainer.statistics.value import worth
from services.trainer.storage.database import Database
from tests.end_to_end.pictures import plain
from tests.trainer.loop.conftest import LABELS, MODEL
from tests.trainer.loop.rows import (
    TIME,
    add_answers,
    add_draws,
    add_figure,
    add_holdout,
    add_pictures,
    add_review,
    add_reviews,
    add_set_answers,
)

POLICY = load_policy().default
ALARM = AlarmPolicy(window=50, per_month=10)
INTERVAL = Interval(low=0.7, high=0.8, estimate=0.75, count=99)


def analyse(
    database: Database, task: Model, champion: int = 0, accuracy: Interval | None = None, alarms: tuple[Event, ...] = ()
) -> Analysis:
    with database.read() as session:
        overview = read_overview(session, LoopState(MODEL), POLICY)
        found = worth(1000, 0.01, 60, 0.0001, 85, 0.02)
        return make_analysis(session, task, overview, champion, accuracy, found, POLICY, alarms)


def agree(database: Database, words: dict[int, bool]) -> None:
    """Let users say of the first answers to pictures whether they are right."""
    with database.begin() as session:
        for picture, agreed in words.items():
            prediction = session.query(PredictionRow).filter_by(observation=picture).first()
            assert prediction is not None
            vote = VoteRow(
                observation=picture, prediction=prediction.id, contributor="user", verdict=VoteKind.WRONG, label=None,
                proposal="", agreed=agreed, trusted=False, comment="", time=TIME,
            )  # fmt: skip
            session.add(vote)


def test_nothing_is_known_of_a_model_that_nobody_uses(database: Database, task: Model) -> None:
    found = analyse(database, task)

    assert (found.accuracy, found.detectors, found.alarms, found.contributors) == ([], [], [], [])
    assert (found.reported, found.quality, found.error_drift) == (None, None, None)
    assert json.loads(found.model_dump_json())["queue"]["to_review"] == 0


def test_each_version_has_its_interval_its_draws_and_what_was_lost(database: Database, task: Model) -> None:
    first, second = add_pictures(database, 60), add_pictures(database, 30)
    add_draws(database, first, answer=0, version=1)
    add_draws(database, second, answer=1, version=2)
    add_answers(database, 1, dict.fromkeys(first, 0))
    add_answers(database, 2, dict.fromkeys(second, 1))
    add_reviews(database, {number: int(number % 4 == 0) for number in first})  # three in four are right
    add_reviews(database, dict.fromkeys(second[:5], 1))
    with database.begin() as session:
        for gateway, answered, lost in (("a", 500, 3), ("b", 100, 4)):
            session.add(
                CaptureCountRow(
                    gateway=gateway, model=MODEL, version=1, answered=answered, captured={"RANDOM": 30},
                    dropped={"QUEUE_FULL": lost}, time=TIME,
                )
            )  # fmt: skip

    one, two, three = analyse(database, task, champion=3).accuracy

    assert (one.version, one.judged, one.drawn) == (1, 60, 60)
    assert one.low is not None
    assert one.high is not None
    assert one.estimate == pytest.approx(0.75)
    assert 0 < one.low < 0.75 < one.high < 1
    assert (one.answered, one.captured, one.dropped) == (600, {"RANDOM": 60}, {"QUEUE_FULL": 7})
    assert (two.judged, two.drawn, two.serves) == (5, 30, False)
    assert (three.version, three.serves, three.estimate, three.drawn) == (3, True, None, 0)


def test_the_champions_accuracy_is_the_one_that_the_loop_heeds(database: Database, task: Model) -> None:
    pictures = add_pictures(database, 10)
    add_draws(database, pictures)
    add_reviews(database, dict.fromkeys(pictures, 0))

    (told,) = analyse(database, task, champion=1, accuracy=INTERVAL).accuracy

    assert (told.serves, told.low, told.estimate, told.high, told.judged) == (True, 0.7, 0.75, 0.8, 99)


def test_what_a_version_has_learnt_says_nothing_of_its_accuracy(database: Database, task: Model) -> None:
    pictures = add_pictures(database, 20)
    add_draws(database, pictures)
    add_reviews(database, {number: int(number > pictures[9]) for number in pictures})
    add_answers(database, 1, dict.fromkeys(pictures, 0))
    with database.begin() as session:
        for number in pictures[:10]:
            session.get_one(AnswerRow, (MODEL, 1, number)).learnt = True

    (told,) = analyse(database, task).accuracy

    assert (told.judged, told.estimate) == (10, 0.0)


def test_what_users_say_is_told_beside_its_bias_and_by_version(database: Database, task: Model) -> None:
    pictures = add_pictures(database, 6)
    add_draws(database, pictures[:4], version=1)
    add_draws(database, pictures[4:], version=2)
    agree(database, dict(zip(pictures, [True, False, False, False, True, True], strict=True)))

    found = analyse(database, task)

    assert found.reported == Consent(agreed=3, said=6)
    assert [each.consent for each in found.accuracy] == [Consent(agreed=1, said=4), Consent(agreed=2, said=2)]
    assert "report mistakes" in found.reported_bias


@pytest.fixture
def drifted(database: Database, task: Model) -> list[int]:
    """Pictures whose second half is of other labels and looks otherwise, as an analyst has measured."""
    pictures = add_pictures(database, 100)
    add_draws(database, pictures)
    add_answers(database, 1, {number: int(place >= 50) for place, number in enumerate(pictures)})
    add_holdout(database, [0, 1, 2] * 30)
    add_set_answers(database, 1, [0, 1, 2] * 30)
    random = np.random.default_rng(0)
    with database.begin() as session:
        session.add(EncoderRow(model=MODEL, digest="e" * 64, run="r", features=4, create_time=TIME))
        for place, number in enumerate(pictures):
            vector = random.normal(5.0 * (place >= 50), 1, 4).astype(np.float32)
            session.add(EmbeddingRow(encoder="e" * 64, observation=number, vector=pack(vector)))
    judge = Judge(1, "sha256:" + "5" * 64, np.array([0, 1, 2] * 30))
    measure_shifts(database, task, "e" * 64, judge, Windows(Window(1, 50), Window(51, 100)), ALARM)
    return pictures


def test_shifts_are_told_with_their_levels_and_with_the_weights_of_the_classes(
    database: Database, task: Model, drifted: list[int]
) -> None:
    found = analyse(database, task)

    assert [each.kind for each in found.detectors] == ["label_shift", "softmax_shift", "embedding_shift"]
    for detector in found.detectors:
        (look,) = detector.looks
        assert look.alarm
        assert look.level <= look.threshold
        assert look.nearness >= 1
        assert (detector.version, detector.first_draw, detector.last_draw) == (1, 51, 100)
    assert [each.label for each in found.label_shift] == list(LABELS)
    assert [(each.reference, each.recent) for each in found.label_shift] == [(1, 0), (0, 1), (0, 0)]
    assert [each.weight for each in found.label_shift] == pytest.approx([0, 3, 0], abs=0.01)
    assert {each.label for each in found.softmax_shift} == {"red", "green"}
    assert found.embedding_discrepancy is not None
    assert found.embedding_discrepancy > 0


def test_weights_are_unknown_where_the_holdout_was_not_answered(database: Database, task: Model) -> None:
    values = {"alarm": False, "level": 0.5, "threshold": 0.001, "reference": [9, 1, 0], "recent": [8, 2, 0]}
    add_figure(database, "label_shift", 1, {"last": 20}, **values)

    red, green, _ = analyse(database, task).label_shift

    assert (red.reference, green.recent, red.weight, red.low) == (0.9, 0.2, None, None)


def test_the_detector_of_errors_tells_how_long_it_takes(database: Database, task: Model) -> None:
    pictures = add_pictures(database, 300)
    add_draws(database, pictures)
    add_answers(database, 1, dict.fromkeys(pictures, 0))
    add_reviews(database, {number: int(number % 10 == 0) for number in pictures})
    measure_errors(database, task, 1, AlarmPolicy(), datetime.fromisoformat(TIME) + timedelta(days=3))

    drift = analyse(database, task).error_drift

    assert drift is not None
    assert drift.judged == 300
    assert drift.baseline == 0.1
    assert drift.run_length == pytest.approx(4 * 100 * 30.4375)
    one, five, ten = (each.draws for each in drift.delays)
    assert [each.drop for each in drift.delays] == [0.01, 0.05, 0.1]
    assert one is None or one > 1000
    assert five is not None
    assert ten is not None
    assert five > ten > 10


def test_looks_of_the_past_are_told_in_their_order_and_only_the_newest(database: Database, task: Model) -> None:
    for number in range(1, 121):
        add_figure(
            database, "softmax_shift", number, {"last": number}, alarm=False, level=0.5, threshold=0.001, classes=[]
        )

    (detector,) = analyse(database, task).detectors

    assert len(detector.looks) == 100
    assert [each.time for each in detector.looks] == sorted(each.time for each in detector.looks)
    assert (detector.last_draw, detector.looks[-1].time) == (120, "2026-01-06T00:00:00.000Z")


@pytest.mark.parametrize(
    ("kind", "level", "threshold", "near"),
    [
        ("label_shift", 1.0, 0.001, 0.0),
        ("label_shift", 0.001, 0.001, 1.0),
        ("softmax_shift", 1e-30, 0.001, 2.0),
        ("embedding_shift", 0.0, 0.001, 2.0),
        ("embedding_shift", 0.3, 1.0, 1.0),
        ("error_drift", 0.25, 1.0, 0.25),
        ("error_drift", 1.0, 1.0, 1.0),
    ],
)
def test_all_detectors_are_near_an_alarm_on_one_scale(kind: str, level: float, threshold: float, near: float) -> None:
    assert nearness(kind, level, threshold) == pytest.approx(near)


def test_alarms_are_those_that_the_loop_has_heeded(database: Database, task: Model, log: EventLog) -> None:
    payload = AlarmRaised(alarm=3, detector="error_drift", level=1.0, threshold=1.0)
    event = Event(MODEL, 1, 0, datetime(2026, 1, 2, tzinfo=UTC), payload)

    (alarm,) = analyse(database, task, alarms=(event,)).alarms

    assert (alarm.kind, alarm.level, alarm.time) == ("error_drift", 1.0, "2026-01-02T00:00:00+00:00")


def test_the_quality_of_what_came_in_is_told_as_the_analyst_describes_it(
    database: Database, task: Model, tmp_path: Path
) -> None:
    blobs = Blobs(tmp_path)
    digests = [blobs.put(plain(colour)) for colour in ((255, 0, 0), (255, 0, 0), (0, 0, 255))]
    with database.begin() as session:
        for number, digest in zip(add_pictures(database, 3), digests, strict=True):
            session.get_one(ObservationRow, number).content_digest = digest
    add_pictures(database, 1, state=State.QUARANTINED)  # whose file is gone
    measure_quality(database, StoredPictures(blobs), task, 0, 4, lambda: None)

    quality = analyse(database, task).quality

    assert quality is not None
    assert (quality.sample_count, quality.formats, quality.widths.median) == (4, {"PNG": 4}, 4)
    assert quality.states == {"CAPTURED": 3, "QUARANTINED": 1}
    assert quality.problems == {"unreadable": 1, "duplicate": 1}


def test_pictures_wait_or_are_in_quarantine_for_reasons(database: Database, task: Model) -> None:
    held = add_pictures(database, 3, state=State.QUARANTINED)
    waiting = add_pictures(database, 2, state=State.PENDING)
    add_draws(database, waiting)
    with database.begin() as session:
        for number, reason in zip(held, ["NEAR_COPY", "NEAR_COPY", "LIKELY_WRONG"], strict=True):
            session.get_one(ObservationRow, number).reason = reason

    queue = analyse(database, task).queue

    assert list(queue.quarantined.items()) == [("NEAR_COPY", 2), ("LIKELY_WRONG", 1)]
    assert queue.states == {"QUARANTINED": 3, "PENDING": 2}
    assert queue.to_review > 0


def test_contributors_are_told_with_how_right_they_are(
    database: Database, task: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.feedback.reliability.REMEMBERED_DAYS", 36_500)
    pictures = add_pictures(database, 30)
    for number in pictures:
        add_review(database, number, 0)
    for number in pictures[:20]:
        add_review(database, number, 1, by="liar", trusted=False)

    reviewer, liar = analyse(database, task).contributors

    assert (reviewer.name, reviewer.labels, reviewer.trusted) == ("reviewer", 30, True)
    assert (liar.name, liar.labels, liar.trusted) == ("liar", 20, False)
    assert reviewer.accuracy > 0.9 > 0.5 > liar.accuracy


def test_the_sum_of_a_cycle_has_its_parts(database: Database, task: Model) -> None:
    cost = analyse(database, task).cost

    assert cost is not None
    assert cost.value == pytest.approx(cost.errors_avoided * cost.cost_per_error)
    assert cost.cost == pytest.approx(cost.seconds * cost.price_per_second + cost.labels * cost.price_per_label)
    assert (cost.errors_avoided, cost.seconds, cost.labels, cost.pays, cost.decides) == (1000, 60, 85, True, True)
