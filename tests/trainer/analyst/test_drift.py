"""The traffic is compared with what it was, and raises one alarm for one change."""

from datetime import UTC, datetime

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from services.trainer.analyst.drift import DETECTORS, WARM_UP, Judge, alarm_level, measure_errors, measure_shifts
from services.trainer.analyst.figures import last_figure
from services.trainer.analyst.quality import measure_quality
from services.trainer.analyst.stored import StoredPictures
from services.trainer.analyst.windows import find_windows
from services.trainer.data.blobs import Blobs
from services.trainer.data.features import pack
from services.trainer.data.models import Model
from services.trainer.data.observing import Role
from services.trainer.data.samples import Samples
from services.trainer.data.tables import ObservationRow, PredictionRow, VoteRow
from services.trainer.feedback.tables import AnswerRow, EmbeddingRow, EncoderRow
from services.trainer.loop.alarms import read_alarms
from services.trainer.loop.kinds import EMBEDDING_SHIFT, ERROR_DRIFT, LABEL_SHIFT, SHIFTS, SOFTMAX_SHIFT
from services.trainer.loop.policy import AlarmPolicy
from services.trainer.loop.tables import FigureRow, SetAnswersRow
from services.trainer.storage.database import Database
from tests.trainer.analyst.conftest import CAT, DOG, MODEL, Users, observation

ENCODER = "e" * 64
SIZE = 100
ALARM = AlarmPolicy(window=SIZE, per_month=10)
HOLDOUT_LABELS = np.arange(500) % 10


@pytest.fixture
def drawn(database: Database, users: Users, slice_samples: tuple[Samples, Samples]) -> list[int]:
    """Twice as many draws as a window has."""
    with database.begin() as session:
        session.add(EncoderRow(digest=ENCODER, model=MODEL, run="r", features=4, create_time="2026-01-02T03:04:05Z"))
        best = np.where(np.arange(500) % 7 == 0, (HOLDOUT_LABELS + 1) % 10, HOLDOUT_LABELS)
        row = SetAnswersRow(
            model=MODEL, version=1, set_digest="h", best=best.astype("<i2").tobytes(), probabilities=b""
        )
        session.add(row)
    return users.send(slice_samples[1].images[: 2 * SIZE])


def answers(shares: list[float], count: int, seed: int) -> NDArray[np.float64]:
    """Return answers whose best classes have *shares*."""
    random = np.random.default_rng(seed)
    rows = random.dirichlet(np.ones(10), count)
    best = random.choice(10, count, p=shares)
    rows[np.arange(count), best] += 1.0
    return rows / 2


def keep(
    session: Session, numbers: list[int], probabilities: NDArray[np.float64], features: NDArray[np.float64]
) -> None:
    for number, answer, vector in zip(numbers, probabilities, features, strict=True):
        row = {"best": int(answer.argmax()), "best_probability": float(answer.max()), "probabilities": pack(answer)}
        session.add(AnswerRow(model=MODEL, version=1, observation=number, **row))
        session.add(EmbeddingRow(encoder=ENCODER, observation=number, vector=pack(vector)))


def measure(database: Database, task: Model) -> dict[str, FigureRow]:
    with database.read() as session:
        windows = find_windows(session, MODEL, SIZE)
    assert windows is not None
    measure_shifts(database, task, ENCODER, Judge(1, "h", HOLDOUT_LABELS), windows, ALARM)
    with database.read() as session:
        found = {kind: last_figure(session, MODEL, kind) for kind in SHIFTS}
    return {kind: row for kind, row in found.items() if row is not None}


EVEN = [0.1] * 10


def test_traffic_that_stays_as_it_is_raises_no_alarm(database: Database, task: Model, drawn: list[int]) -> None:
    with database.begin() as session:
        keep(session, drawn, answers(EVEN, 2 * SIZE, 0), np.random.default_rng(0).normal(size=(2 * SIZE, 4)))

    found = measure(database, task)

    assert set(found) == set(SHIFTS)
    assert [row.values["alarm"] for row in found.values()] == [False] * 3
    assert found[SOFTMAX_SHIFT].window == {
        "first": 101, "last": 200, "reference_first": 1, "reference_last": 100, "version": 1,
    }  # fmt: skip
    low, high = np.array(found[LABEL_SHIFT].values["low"]), np.array(found[LABEL_SHIFT].values["high"])
    assert np.mean((low <= 1) & (high >= 1)) >= 0.8


def test_a_change_is_seen_in_answers_labels_and_features_once(
    database: Database, task: Model, drawn: list[int]
) -> None:
    changed = [0.55] + [0.05] * 9
    random = np.random.default_rng(1)
    with database.begin() as session:
        keep(session, drawn[:SIZE], answers(EVEN, SIZE, 1), random.normal(size=(SIZE, 4)))
        keep(session, drawn[SIZE:], answers(changed, SIZE, 2), random.normal(2.0, 1.0, size=(SIZE, 4)))

    found = measure(database, task)

    assert [row.values["alarm"] for row in found.values()] == [True] * 3
    assert all(row.values["level"] <= row.values["threshold"] == alarm_level(ALARM) for row in found.values())
    assert found[SOFTMAX_SHIFT].values["classes"][0]["label"] == task.labels[0]
    assert found[EMBEDDING_SHIFT].values["discrepancy"] > 0.1
    weights = found[LABEL_SHIFT].values["weights"]
    assert weights[0] == max(weights) > 4
    with database.read() as session:
        assert find_windows(session, MODEL, SIZE) is None  # what came since is the reference from now on


@pytest.mark.parametrize("learnt", [False, True])
def test_that_the_champion_is_surer_of_what_it_has_learnt_is_no_change(
    database: Database, task: Model, drawn: list[int], learnt: bool
) -> None:
    with database.begin() as session:
        keep(session, drawn, answers(EVEN, 2 * SIZE, 3), np.zeros((2 * SIZE, 4)))
        session.flush()
        for number in drawn:
            if number % 3 == 0:
                session.get_one(ObservationRow, number).role = Role.JUDGE
            elif number in drawn[:SIZE]:
                answer = session.get_one(AnswerRow, (MODEL, 1, number))
                sure = np.full(10, 0.001)
                sure[answer.best] = 0.991
                answer.probabilities, answer.learnt = pack(sure), learnt

    found = measure(database, task)

    assert found[SOFTMAX_SHIFT].values["alarm"] is not learnt


def test_what_was_not_answered_or_embedded_is_not_compared(database: Database, task: Model, drawn: list[int]) -> None:
    with database.begin() as session:
        keep(session, drawn[:SIZE], answers(EVEN, SIZE, 1), np.zeros((SIZE, 4)))

    assert measure(database, task) == {}


NOON = datetime(2026, 1, 3, 12, tzinfo=UTC)
YESTERDAY = "2026-01-02T12:00:00.000Z"


def judge(database: Database, first: int, errors: NDArray[np.bool_]) -> None:
    """Let the champion's next draws be judged, from the one numbered *first* on."""
    with database.begin(alone=True) as session:
        for number, error in enumerate(errors.tolist(), first):
            digest = f"{number:064x}"
            session.add(
                ObservationRow(
                    number=number, model=MODEL, content_digest=digest, pixel_digest=digest, size_bytes=9, width=4,
                    height=4, format="PNG", orientation=1, role="JUDGE", state="CAPTURED", reason="", detail="",
                    label=None, label_probability=0.0, sample=None, changed_number=number, stale=False,
                    create_time=YESTERDAY,
                )
            )  # fmt: skip
            session.flush()
            session.add(
                PredictionRow(
                    id=f"{number:032x}", model=MODEL, version=1, generation=1, preprocess_digest="", probability=0.5,
                    observation=number, contributor="", strategy="RANDOM", draw=number, labels=[["cat", 0.9]],
                    time=YESTERDAY,
                )
            )  # fmt: skip
            session.add(
                VoteRow(
                    observation=number, prediction=None, contributor="reviewer", verdict="LABEL",
                    label=DOG if error else CAT, proposal="", agreed=None, trusted=True, comment="", time=YESTERDAY,
                )
            )  # fmt: skip
            row = {"best": CAT, "best_probability": 0.9, "probabilities": b""}
            session.add(AnswerRow(model=MODEL, version=1, observation=number, **row))


def look(database: Database, task: Model) -> FigureRow | None:
    measure_errors(database, task, 1, AlarmPolicy(per_month=10), NOON)
    with database.read() as session:
        return last_figure(session, MODEL, ERROR_DRIFT)


def test_a_rise_of_errors_raises_one_alarm(database: Database, task: Model) -> None:
    random = np.random.default_rng(5)
    judge(database, 1, random.random(WARM_UP + 1) < 0.1)
    with database.begin() as session:
        session.get_one(AnswerRow, (MODEL, 1, 3)).learnt = True
    assert look(database, task) is None  # one of them was learnt

    judge(database, WARM_UP + 2, random.random(200) < 0.1)
    quiet = look(database, task)
    judge(database, WARM_UP + 202, random.random(150) < 0.6)
    loud = look(database, task)
    judge(database, WARM_UP + 352, random.random(10) < 0.1)
    after = look(database, task)
    unchanged = look(database, task)

    assert quiet is not None
    assert loud is not None
    assert after is not None
    assert unchanged is not None
    assert not quiet.values["alarm"]
    assert 0.1 < quiet.values["baseline"] < 0.3
    assert quiet.values["run_length"] == pytest.approx(DETECTORS * 400 * 365.25 / 12 / 10)
    assert loud.values["baseline"] == quiet.values["baseline"]
    assert loud.values["run_length"] == quiet.values["run_length"]
    assert loud.values["alarm"]
    assert WARM_UP + 202 < loud.values["raised"] <= loud.window["last"] == WARM_UP + 351
    assert (after.values["alarm"], after.values["raised"]) == (False, loud.values["raised"])
    assert [each.number for each in (quiet, loud, after, unchanged)] == [1, 2, 3, 3]  # of what was judged since
    with database.read() as session:
        (alarm,) = read_alarms(session, MODEL)
    assert (alarm.detector, alarm.level, alarm.threshold) == (ERROR_DRIFT, 1.0, 1.0)


def test_the_policy_says_how_often_an_alarm_is_false() -> None:
    level = alarm_level(AlarmPolicy(per_month=2.0, looks_per_day=24))

    assert DETECTORS * 24 * 365.25 / 12 * level == pytest.approx(2.0)
    assert alarm_level(AlarmPolicy(per_month=1e6)) == 1.0


def test_the_quality_of_what_came_in_is_described_without_pictures(
    database: Database, task: Model, users: Users, blobs: Blobs, slice_samples: tuple[Samples, Samples]
) -> None:
    image = slice_samples[1].images[0]
    brighter = np.minimum(image.astype(int) + 8, 255).astype(np.uint8)
    numbers = users.send([image, brighter, np.kron(slice_samples[1].images[1], np.ones((2, 2, 1), np.uint8))])
    numbers += users.send(slice_samples[1].images[2:3])
    blobs.remove(observation(database, numbers[3]).content_digest)

    measure_quality(database, StoredPictures(blobs), task, 7, 9, lambda: None)

    with database.read() as session:
        row = last_figure(session, MODEL, "quality")
    assert row is not None
    assert row.window == {"first": numbers[0], "last": numbers[3], "last_draw": 7, "changed_number": 9}
    values = row.values
    assert (values["sample_count"], values["sizes"], values["formats"]) == (4, {"32x32": 2, "64x64": 1}, {"PNG": 4})
    assert values["problems"] == {"unreadable": 1, "near-duplicate": 1}
    assert sum(values["brightness"]["counts"]) == 3
    assert "data:image" not in str(values)
