"""Pictures as they are shown: what was answered, what was said, what came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.trainer.data.models import Model
from services.trainer.data.observing import VoteKind
from services.trainer.data.tables import ObservationRow, PredictionRow, VoteRow
from services.trainer.feedback.blinding import hides_answers, hides_words
from services.trainer.feedback.tables import AnswerRow

MOST_PREDICTIONS = 10
"""Of one picture that are named; the contract states it."""


@dataclass(frozen=True)
class Versions:
    """Those that a candidate is judged between."""

    champion: int
    candidate: int


@dataclass(frozen=True)
class VoteView:
    """What one contributor says."""

    contributor: str
    label: str
    """Known or proposed; empty where none was given."""
    kind: VoteKind
    trusted: bool
    comment: str
    time: str


@dataclass(frozen=True)
class ObservationView:
    """One picture with what was said of it."""

    number: int
    model: str
    content_digest: str
    """SHA-256 of the file, 64 hexadecimal digits."""
    state: str
    reason: str
    detail: str
    role: str
    label: str
    label_probability: float
    votes: tuple[VoteView, ...]
    predicted_label: str
    predicted_probability: float
    version: int
    """0 where no answer is known."""
    drawn: bool
    candidate_label: str
    champion_label: str
    prediction_ids: tuple[str, ...]
    sample: int | None
    create_time: str
    hides_answers: bool
    """Whether reviewers may not see what versions answer."""
    hides_words: bool
    """Whether they may not see what others say either."""

    def for_reviewers(self) -> ObservationView:
        """Return the picture as it is shown to those who may decide on it."""
        shown = self
        if self.hides_answers:
            shown = replace(shown, predicted_label="", predicted_probability=0.0, champion_label="", candidate_label="")
        if self.hides_words:
            shown = replace(shown, votes=(), label="", label_probability=0.0, detail="")
        return shown


def view(
    session: Session, task: Model, rows: Sequence[ObservationRow], versions: Versions | None = None
) -> list[ObservationView]:
    """Return *rows* of a model with all that is known of them, in their order.

    Args:
        session: Of the database.
        task: The model.
        rows: Pictures of it.
        versions: Whose answers are shown beside; None where no candidate is judged.
    """
    numbers = [row.number for row in rows]
    votes: defaultdict[int, list[VoteView]] = defaultdict(list)
    said = select(VoteRow).where(VoteRow.observation.in_(numbers)).order_by(VoteRow.time, VoteRow.number)
    for each in session.scalars(said):
        votes[each.observation].append(_vote(task, each))
    predictions: defaultdict[int, list[PredictionRow]] = defaultdict(list)
    answered = select(PredictionRow).where(PredictionRow.observation.in_(numbers))
    for prediction in session.scalars(answered.order_by(PredictionRow.time, PredictionRow.id)):
        predictions[prediction.observation].append(prediction)
    answers = _answers(session, task, numbers, versions)
    hidden = select(ObservationRow.number, hides_words()).where(ObservationRow.number.in_(numbers), hides_answers())
    hides: dict[int, bool] = dict(session.execute(hidden).all())
    return [
        _view(task, row, tuple(votes[row.number]), predictions[row.number], answers, versions, hides) for row in rows
    ]


def _view(
    task: Model,
    row: ObservationRow,
    votes: tuple[VoteView, ...],
    predictions: Sequence[PredictionRow],
    answers: dict[tuple[int, int], str],
    versions: Versions | None,
    hides: Mapping[int, bool],
) -> ObservationView:
    first = predictions[0] if predictions else None
    return ObservationView(
        number=row.number,
        model=row.model,
        content_digest=row.content_digest,
        state=row.state,
        reason=row.reason,
        detail=row.detail,
        role=row.role,
        label=_label(task, row, votes),
        label_probability=row.label_probability,
        votes=votes,
        predicted_label=str(first.labels[0][0]) if first else "",
        predicted_probability=float(str(first.labels[0][1])) if first else 0.0,
        version=first.version if first else 0,
        drawn=any(each.draw is not None for each in predictions),
        candidate_label=answers.get((versions.candidate, row.number), "") if versions else "",
        champion_label=answers.get((versions.champion, row.number), "") if versions else "",
        prediction_ids=tuple(each.id for each in predictions[:MOST_PREDICTIONS]),
        sample=row.sample,
        create_time=row.create_time,
        hides_answers=row.number in hides,
        hides_words=hides.get(row.number, False),
    )


def _label(task: Model, row: ObservationRow, votes: Sequence[VoteView]) -> str:
    """Return the accepted or leading label; of labels that the model does not know, the one most often proposed."""
    if row.label is not None:
        return task.labels[row.label]
    proposed = sorted(each.label for each in votes if each.kind is VoteKind.PROPOSAL)
    return max(proposed, key=proposed.count, default="")


def _vote(task: Model, row: VoteRow) -> VoteView:
    label = row.proposal if row.label is None else task.labels[row.label]
    return VoteView(row.contributor, label, VoteKind(row.verdict), row.trusted, row.comment, row.time)


def _answers(
    session: Session, task: Model, numbers: Sequence[int], versions: Versions | None
) -> dict[tuple[int, int], str]:
    """Return the best labels by version and picture."""
    if versions is None:
        return {}
    statement = select(AnswerRow.version, AnswerRow.observation, AnswerRow.best).where(
        AnswerRow.model == task.name,
        AnswerRow.version.in_((versions.champion, versions.candidate)),
        AnswerRow.observation.in_(numbers),
    )
    return {(version, number): task.labels[best] for version, number, best in session.execute(statement)}
