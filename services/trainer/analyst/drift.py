"""Has the traffic changed? The newest draws against the first ones, by the champion's answers and by features.

Of pictures that it has learnt a champion is surer than of others. Where there are such among the draws, its answers are
compared on those pictures alone that no version may learn, which are as many among the old ones as among the new ones.

And does the champion err more often than it did: its judged draws, one after another.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from services.trainer.analyst.figures import add_figure, last_figure
from services.trainer.analyst.windows import Window, Windows
from services.trainer.data.features import unpack
from services.trainer.data.models import Model
from services.trainer.data.observing import Role
from services.trainer.data.tables import ObservationRow, PredictionRow
from services.trainer.feedback.tables import AnswerRow, EmbeddingRow
from services.trainer.loop.kinds import EMBEDDING_SHIFT, ERROR_DRIFT, LABEL_SHIFT, SOFTMAX_SHIFT
from services.trainer.loop.policy import AlarmPolicy
from services.trainer.loop.streams import JudgedDraws, read_judged_draws
from services.trainer.loop.tables import SetAnswersRow
from services.trainer.statistics.detectors import ErrorDetector, run_length, window_level
from services.trainer.statistics.shift import count_shift, embedding_shift, label_shift, softmax_shift
from services.trainer.storage.database import Database

DETECTORS = 4
"""That share the false alarms which a policy allows: those of `SHIFTS`, and that of errors."""
WARM_UP = 200
"""Judged draws of a version from which on it is known how many come in a day."""
_DAY_SECONDS = 86_400.0
_LEAST_COMPARED = 20
"""Draws on either side, below which nothing is said: the rest could not be read or was deleted."""


@dataclass(frozen=True)
class Judge:
    """The version whose answers are compared, and what it is measured on."""

    champion: int
    holdout: str
    """Digest of the hold-out; empty for none."""
    holdout_labels: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class _Compared:
    reference: NDArray[np.float32]
    recent: NDArray[np.float32]

    @property
    def suffice(self) -> bool:
        return min(len(self.reference), len(self.recent)) >= _LEAST_COMPARED


def alarm_level(alarm: AlarmPolicy) -> float:
    """Return the chance of a false alarm in one look by one detector that the policy allows."""
    return window_level(alarm.per_month, alarm.looks_per_day, DETECTORS)


def measure_shifts(
    database: Database, task: Model, encoder: str, judge: Judge, windows: Windows, alarm: AlarmPolicy
) -> None:
    """Compare two windows and keep the figures, each with its level and threshold and whether it raises an alarm.

    Args:
        database: Has the rows.
        task: The model.
        encoder: Digest; empty for none, and then features are not compared.
        judge: Whose answers are compared, and what they are measured on.
        windows: What is compared.
        alarm: How often it may cry wolf.
    """
    threshold = alarm_level(alarm)
    with database.read() as session:
        roles = [Role.JUDGE] if _has_learnt(session, task.name, judge.champion, windows) else list(Role)
        answers = _Compared(
            _answers(session, task.name, judge.champion, windows.reference, roles),
            _answers(session, task.name, judge.champion, windows.recent, roles),
        )
        features = _Compared(
            _features(session, task.name, encoder, windows.reference),
            _features(session, task.name, encoder, windows.recent),
        )
        holdout = session.get(SetAnswersRow, (task.name, judge.champion, judge.holdout))
    figures: dict[str, Mapping[str, Any]] = {}
    if answers.suffice:
        figures[SOFTMAX_SHIFT] = _softmax(task, answers, threshold)
        figures[LABEL_SHIFT] = _labels(task, answers, judge, holdout, threshold)
    if features.suffice:
        figures[EMBEDDING_SHIFT] = _embeddings(features, windows, threshold)
    window = {
        "first": windows.recent.first,
        "last": windows.recent.last,
        "reference_first": windows.reference.first,
        "reference_last": windows.reference.last,
        "version": judge.champion,
    }
    with database.begin(alone=True) as session:
        for kind, values in figures.items():
            add_figure(session, task.name, kind, window, values)


def measure_errors(database: Database, task: Model, champion: int, alarm: AlarmPolicy, now: datetime) -> None:
    """Look for a rise of the champion's errors, and keep the figure where draws were judged since the last one.

    The run length is that at the end of the warm-up, as long as the version serves. All judged draws are gone through
    at each look, since what reviewers say of them may change; an alarm before the last one is not new.

    Args:
        database: Has the rows.
        task: The model.
        champion: Version that serves.
        alarm: How often it may cry wolf.
        now: With its time zone.
    """
    with database.read() as session:
        draws = read_judged_draws(session, task, champion, asked=True)
        last = last_figure(session, task.name, ERROR_DRIFT)
        if len(draws.correct) <= WARM_UP:
            return
        newest = session.scalar(select(func.max(PredictionRow.draw)).where(PredictionRow.model == task.name)) or 0
        began = session.scalar(
            select(PredictionRow.time).where(PredictionRow.model == task.name, PredictionRow.draw == int(draws.draw[0]))
        )
    assert began is not None, "it was read in the same transaction"
    known = last.values if last is not None and last.window["version"] == champion else None
    if known is not None and (known["judged"], known["last_judged"]) == (len(draws.draw), int(draws.draw[-1])):
        return
    if known is not None:
        length = float(known["run_length"])
    else:
        days = (now - datetime.fromisoformat(began)).total_seconds() / _DAY_SECONDS
        length = max(2.0, run_length(alarm.per_month, len(draws.correct) / max(days, 1 / _DAY_SECONDS), DETECTORS))
    detector = ErrorDetector(length)
    alarms = [int(draw) for draw, right in zip(draws.draw, draws.correct, strict=True) if detector.add(not right)]
    raised = int(last.values["raised"]) if last is not None else 0
    new = [each for each in alarms if each > raised]
    window = {"first": int(draws.draw[0]), "last": newest, "version": champion}
    values = {
        "alarm": bool(new),
        "level": 1.0 if new else detector.level,
        "threshold": 1.0,
        "baseline": _told_share(detector, draws, float(known["baseline"]) if known is not None else None),
        "run_length": length,
        "judged": len(draws.correct),
        "last_judged": int(draws.draw[-1]),
        "raised": max([raised, *new]),
    }
    with database.begin(alone=True) as session:
        add_figure(session, task.name, ERROR_DRIFT, window, values)


def _told_share(detector: ErrorDetector, draws: JudgedDraws, before: float | None) -> float:
    """Return the share of errors that later ones are compared with: the one *before* while few came since an alarm.

    In whole per cent, above 0 and below 1: delays are simulated from it, which need not be done at each look.
    """
    share = detector.share if detector.answers >= WARM_UP else before
    return min(max(round(share or 1 - float(draws.correct.mean()), 2), 0.01), 0.99)


def _softmax(task: Model, answers: _Compared, threshold: float) -> dict[str, Any]:
    classes = answers.recent.shape[1]
    surest = softmax_shift(answers.reference, answers.recent, 1.0)[
        :1
    ]  # the first step of Holm's test decides on the alarm
    level = min(1.0, classes * surest[0].p_value) if surest else 1.0
    shifted = softmax_shift(answers.reference, answers.recent, threshold)
    classes_found = [
        {"label": task.labels[each.dimension], "distance": each.distance, "p_value": each.p_value} for each in shifted
    ]
    return _figure(level, threshold) | {"classes": classes_found}


def _embeddings(features: _Compared, windows: Windows, threshold: float) -> dict[str, Any]:
    permutations = math.ceil(2 / threshold)  # so that the least p-value lies below the threshold
    discrepancy, level = embedding_shift(features.reference, features.recent, windows.recent.last, permutations)
    return _figure(level, threshold) | {"discrepancy": discrepancy}


def _labels(
    task: Model,
    answers: _Compared,
    judge: Judge,
    holdout: SetAnswersRow | None,
    threshold: float,
) -> dict[str, Any]:
    classes = len(task.labels)
    counts = [np.bincount(each.argmax(axis=1), minlength=classes) for each in (answers.reference, answers.recent)]
    values = _figure(count_shift(counts[0], counts[1]), threshold)
    values |= {"reference": counts[0].tolist(), "recent": counts[1].tolist()}
    if holdout is None or judge.holdout_labels is None:
        return values
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (judge.holdout_labels, np.frombuffer(holdout.best, "<i2")), 1)
    shift = label_shift(confusion, counts[1]) if confusion.sum(axis=1).all() else None
    if shift is not None:  # else the classifier hardly tells some classes apart
        values |= {"weights": shift.weights.tolist(), "low": shift.low.tolist(), "high": shift.high.tolist()}
    return values


def _figure(level: float, threshold: float) -> dict[str, Any]:
    return {"alarm": level <= threshold, "level": level, "threshold": threshold}


def _has_learnt(session: Session, model: str, version: int, windows: Windows) -> bool:
    """Whether a version has learnt any draw of two windows."""
    drawn = [PredictionRow.draw.between(each.first, each.last) for each in (windows.reference, windows.recent)]
    statement = (
        select(AnswerRow.observation)
        .join(PredictionRow, PredictionRow.observation == AnswerRow.observation)
        .where(PredictionRow.model == model, or_(*drawn))
        .where(AnswerRow.model == model, AnswerRow.version == version, AnswerRow.learnt)
        .limit(1)
    )
    return session.scalar(statement) is not None


def _answers(session: Session, model: str, version: int, window: Window, roles: Sequence[Role]) -> NDArray[np.float32]:
    """Return what a version makes of the draws of a window whose pictures have one of *roles*, (n, classes)."""
    statement = (
        select(AnswerRow.probabilities)
        .join(PredictionRow, PredictionRow.observation == AnswerRow.observation)
        .join(ObservationRow, ObservationRow.number == AnswerRow.observation)
        .where(*_drawn(model, window), ObservationRow.role.in_(roles))
        .where(AnswerRow.model == model, AnswerRow.version == version)
        .order_by(PredictionRow.draw)
    )
    return _stacked(list(session.scalars(statement)))


def _features(session: Session, model: str, encoder: str, window: Window) -> NDArray[np.float32]:
    statement = (
        select(EmbeddingRow.vector)
        .join(PredictionRow, PredictionRow.observation == EmbeddingRow.observation)
        .where(*_drawn(model, window), EmbeddingRow.encoder == encoder)
        .order_by(PredictionRow.draw)
    )
    return _stacked(list(session.scalars(statement)))


def _drawn(model: str, window: Window) -> tuple[Any, ...]:
    return PredictionRow.model == model, PredictionRow.draw.between(window.first, window.last)


def _stacked(rows: list[bytes]) -> NDArray[np.float32]:
    return np.stack([unpack(row) for row in rows]).astype(np.float32) if rows else np.empty((0, 0), np.float32)
