"""Reads what the analysis of a model in use tells of its versions, its pictures and its contributors."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.data.models import Model
from services.trainer.data.observing import State, VoteKind
from services.trainer.data.tables import ObservationRow, PredictionRow, VoteRow
from services.trainer.feedback.reliability import contributor_accuracies
from services.trainer.feedback.tables import CaptureCountRow, ContributorRow
from services.trainer.loop.analysis_document import Consent, Contributor, VersionAccuracy
from services.trainer.loop.measuring import measure_accuracy
from services.trainer.loop.streams import read_judged_draws
from services.trainer.loop.tables import FigureRow
from services.trainer.statistics.intervals import Interval

VERSIONS = 12
"""Newest ones with draws that are told of."""
CONTRIBUTORS = 50
"""That are told of, those first who have said most."""


@dataclass
class _Captured:
    """What all gateways count of one version."""

    answered: int = 0
    captured: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def read_figures(session: Session, model: str, kind: str, count: int) -> list[FigureRow]:
    """Return the newest *count* figures of a kind, in their order."""
    statement = select(FigureRow).where(FigureRow.model == model, FigureRow.kind == kind)
    return list(session.scalars(statement.order_by(FigureRow.number.desc()).limit(count)))[::-1]


def read_accuracies(
    session: Session, task: Model, champion: int, accuracy: Interval | None, consents: Mapping[int | None, Consent]
) -> list[VersionAccuracy]:
    """Return how right the newest versions are that have draws, and the champion, by rising version.

    Args:
        session: Of the database.
        task: The model.
        champion: Version that serves; 0 where that is not known.
        accuracy: Of the champion, as the loop reckons it.
        consents: What users said, by version.
    """
    statement = (
        select(PredictionRow.version, func.count())
        .where(PredictionRow.model == task.name, PredictionRow.draw.is_not(None))
        .group_by(PredictionRow.version)
        .order_by(PredictionRow.version.desc())
    )
    drawn = dict(iter(session.execute(statement)))
    told = {*sorted(drawn, reverse=True)[:VERSIONS], *([champion] if champion else [])}
    captures = _captures(session, task.name)
    accuracies = []
    for version in sorted(told):
        interval = accuracy if version == champion else _accuracy(session, task, version)
        counts = captures[version]
        accuracies.append(
            VersionAccuracy(
                version=version,
                serves=version == champion,
                estimate=interval.estimate if interval else None,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
                judged=interval.count if interval else 0,
                drawn=drawn.get(version, 0),
                answered=counts.answered,
                captured=dict(counts.captured),
                dropped=dict(counts.dropped),
                consent=consents.get(version),
            )
        )
    return accuracies


def read_consents(session: Session, model: str) -> dict[int | None, Consent]:
    """Return what users said of answers, by the version that gave them; None stands for answers that are forgotten."""
    statement = (
        select(PredictionRow.version, func.count().filter(VoteRow.agreed.is_(True)), func.count())
        .select_from(VoteRow)
        .join(ObservationRow, ObservationRow.number == VoteRow.observation)
        .outerjoin(PredictionRow, PredictionRow.id == VoteRow.prediction)
        .where(ObservationRow.model == model, VoteRow.agreed.is_not(None))
        .group_by(PredictionRow.version)
    )
    return {version: Consent(agreed=agreed, said=said) for version, agreed, said in session.execute(statement)}


def count_quarantined(session: Session, model: str) -> dict[str, int]:
    """Return the pictures in quarantine, by reason."""
    statement = (
        select(ObservationRow.reason, func.count())
        .where(ObservationRow.model == model, ObservationRow.state == State.QUARANTINED)
        .group_by(ObservationRow.reason)
        .order_by(func.count().desc(), ObservationRow.reason)
    )
    return dict(iter(session.execute(statement)))


def read_contributors(session: Session, task: Model) -> list[Contributor]:
    """Return how right contributors are by their newest labels, those first who have given most."""
    accuracy = contributor_accuracies(session, task.name, len(task.labels))
    statement = (
        select(VoteRow.contributor, func.count(), ContributorRow.trusted)
        .join(ObservationRow, ObservationRow.number == VoteRow.observation)
        .outerjoin(ContributorRow, ContributorRow.name == VoteRow.contributor)
        .where(ObservationRow.model == task.name, VoteRow.verdict == VoteKind.LABEL)
        .group_by(VoteRow.contributor, ContributorRow.trusted)
        .order_by(func.count().desc(), VoteRow.contributor)
    )
    return [
        Contributor(name=name, accuracy=accuracy[name], labels=count, trusted=bool(trusted))
        for name, count, trusted in session.execute(statement)
        if name in accuracy
    ][:CONTRIBUTORS]


def _captures(session: Session, model: str) -> defaultdict[int, _Captured]:
    captures: defaultdict[int, _Captured] = defaultdict(_Captured)
    for row in session.scalars(select(CaptureCountRow).where(CaptureCountRow.model == model)):
        counts = captures[row.version]
        counts.answered += row.answered
        counts.captured.update(row.captured)
        counts.dropped.update(row.dropped)
    return captures


def _accuracy(session: Session, task: Model, version: int) -> Interval | None:
    return measure_accuracy(read_judged_draws(session, task, version, asked=False))
