"""What the analyst has not done yet, found in rows alone, in pieces that are done in seconds."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from services.trainer.analyst.figures import last_figure
from services.trainer.analyst.windows import Windows, find_windows
from services.trainer.data.observing import Role, State
from services.trainer.data.tables import ObservationRow, PredictionRow
from services.trainer.feedback.tables import AnswerRow, EmbeddingRow, FindingRow, NeighbourhoodRow
from services.trainer.feedback.trust import LIKELY_WRONG, WAITS_FOR_EMBEDDING
from services.trainer.loop.cycle_payloads import CanaryEnded, CanaryIntended, CanaryMoved, CycleEnded
from services.trainer.loop.kinds import QUALITY, SCREENING
from services.trainer.loop.policy import AlarmPolicy
from services.trainer.loop.tables import EventRow, SetAnswersRow

EMBEDDED_AT_ONCE = 64
ANSWERED_AT_ONCE = 32
SCREENED_AFTER = 20
"""Accepted pictures that have changed, or a twentieth of all where that is more: then all are screened again."""
SCREENED_AFTER_SECONDS = 60.0
"""The same where any has."""
_DAY_SECONDS = 86_400.0
_CANARY_KINDS = {CanaryIntended.kind: True, CanaryMoved.kind: True, CanaryEnded.kind: False, CycleEnded.kind: False}
"""Events by which a canary begins or goes on, and those by which it ends."""


@dataclass(frozen=True)
class Embed:
    """Pictures have no features by an encoder."""

    encoder: str
    observations: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A version has not said what it makes of pictures, or of the hold-out."""

    version: int
    observations: tuple[int, ...]
    set_digest: str = ""
    """Of the hold-out, where that is what it has to answer."""


@dataclass(frozen=True)
class Sift:
    """It is not known what lies next to pictures, or something was said or found that no verdict heeds yet."""

    encoder: str
    observations: tuple[int, ...]
    """Whose neighbours are to be found; may be none."""


@dataclass(frozen=True)
class Screen:
    """Samples have come since all of them were last looked at together."""

    encoder: str
    changed_number: int
    """Of the newest change that this takes in."""


@dataclass(frozen=True)
class Drift:
    """It is time to compare the traffic with what it was."""

    windows: Windows | None
    """None where there are too few draws to compare."""
    newest: int
    """Picture."""
    changed_number: int
    """Of the newest change of a picture: reviews, among others, which errors follow from."""


Work = Embed | Answer | Sift | Screen | Drift


@dataclass(frozen=True)
class Wanted:
    """What work depends on beside the rows."""

    encoder: str = ""
    """Digest of the encoder at hand; empty for none."""
    champion: int = 0
    """Version that serves; 0 for none."""
    candidate: int = 0
    """Version that is judged beside it; 0 for none."""
    ready: frozenset[int] = frozenset()
    """Versions that can answer."""
    holdout: str = ""
    """Digest of the hold-out; empty for none."""
    without: Collection[int] = field(default=frozenset(), compare=False)
    """Pictures that cannot be read."""

    @property
    def judged(self) -> tuple[int, ...]:
        """The versions that are compared, the candidate first: it is waited for."""
        return tuple(each for each in (self.candidate, self.champion) if each in self.ready)


def find_work(session: Session, model: str, wanted: Wanted, alarm: AlarmPolicy, now: datetime) -> Work | None:
    """Return the next piece of work for a model: embed, answer, sift, screen, then drift; None where all is done.

    Args:
        session: Of the database; only read.
        model: Name of the model.
        wanted: Versions and encoder.
        alarm: How often the traffic is looked at, and how much of it at once.
        now: With its time zone.
    """
    return (
        _find_embed(session, model, wanted)
        or _find_answer(session, model, wanted, alarm)
        or _find_sift(session, model, wanted)
        or _find_screen(session, model, wanted, now)
        or _find_drift(session, model, alarm, now)
    )


def _find_embed(session: Session, model: str, wanted: Wanted) -> Embed | None:
    if not wanted.encoder:
        return None
    embedded = exists().where(EmbeddingRow.encoder == wanted.encoder, EmbeddingRow.observation == ObservationRow.number)
    waits = ObservationRow.reason == WAITS_FOR_EMBEDDING
    statement = _of(model, wanted).where(~embedded).order_by(waits.desc(), ObservationRow.number)
    numbers = tuple(session.scalars(statement.limit(EMBEDDED_AT_ONCE)))
    return Embed(wanted.encoder, numbers) if numbers else None


def _find_answer(session: Session, model: str, wanted: Wanted, alarm: AlarmPolicy) -> Answer | None:
    """Return what a version has not answered; nothing while a canary is tried out.

    Both versions are compared then by the requests that inference has counted, and times and failures of ours, up to
    32 pictures at once, would count as those of users.
    """
    if _has_canary(session, model):
        return None
    for version in wanted.judged:
        row = (model, version, wanted.holdout)
        if wanted.holdout and session.get(SetAnswersRow, row) is None:
            return Answer(version, (), wanted.holdout)
        numbers = _unanswered(session, model, wanted, version, ObservationRow.role == Role.JUDGE)
        if numbers:
            return Answer(version, numbers)
    return _find_drawn(session, model, wanted) or _find_compared(session, model, wanted, alarm)


def _has_canary(session: Session, model: str) -> bool:
    """Whether the loop tries a version out with a share of the traffic."""
    statement = (
        select(EventRow.kind)
        .where(EventRow.model == model, EventRow.kind.in_(_CANARY_KINDS))
        .order_by(EventRow.number.desc())
        .limit(1)
    )
    last = session.scalar(statement)
    return last is not None and _CANARY_KINDS[last]


def _find_drawn(session: Session, model: str, wanted: Wanted) -> Answer | None:
    """Return draws whose version has told its best labels alone."""
    answered = exists().where(
        AnswerRow.model == model,
        AnswerRow.version == PredictionRow.version,
        AnswerRow.observation == PredictionRow.observation,
    )
    statement = (
        select(PredictionRow.version, PredictionRow.observation)
        .where(
            PredictionRow.model == model,
            PredictionRow.draw.is_not(None),
            PredictionRow.version.in_(sorted(wanted.ready)),
            PredictionRow.observation.not_in(sorted(wanted.without)),
            ~answered,
        )
        .order_by(PredictionRow.version.desc(), PredictionRow.draw)
        .limit(ANSWERED_AT_ONCE)
    )
    rows = session.execute(statement).all()
    if not rows:
        return None
    version = rows[0][0]
    return Answer(version, tuple(dict.fromkeys(number for other, number in rows if other == version)))


def _find_compared(session: Session, model: str, wanted: Wanted, alarm: AlarmPolicy) -> Answer | None:
    """Return draws of the two windows that the champion has not answered: both are compared by its answers."""
    windows = find_windows(session, model, alarm.window) if wanted.champion in wanted.ready else None
    if windows is None:
        return None
    drawn = [PredictionRow.draw.between(each.first, each.last) for each in (windows.recent, windows.reference)]
    in_window = exists().where(
        PredictionRow.observation == ObservationRow.number, PredictionRow.model == model, or_(*drawn)
    )
    numbers = _unanswered(session, model, wanted, wanted.champion, in_window)
    return Answer(wanted.champion, numbers) if numbers else None


def _unanswered(
    session: Session, model: str, wanted: Wanted, version: int, condition: ColumnElement[bool]
) -> tuple[int, ...]:
    answered = exists().where(
        AnswerRow.model == model, AnswerRow.version == version, AnswerRow.observation == ObservationRow.number
    )
    statement = _of(model, wanted).where(condition, ~answered).order_by(ObservationRow.number)
    return tuple(session.scalars(statement.limit(ANSWERED_AT_ONCE)))


def _find_sift(session: Session, model: str, wanted: Wanted) -> Sift | None:
    numbers = tuple(_unplaced(session, model, wanted)) if wanted.encoder else ()
    stale = select(ObservationRow.number).where(ObservationRow.model == model, ObservationRow.stale).limit(1)
    return Sift(wanted.encoder, numbers) if numbers or session.scalar(stale) is not None else None


def _unplaced(session: Session, model: str, wanted: Wanted) -> Iterator[int]:
    """Yield pictures with features whose neighbours are not known, or not with regard to what was said since."""
    placed = and_(NeighbourhoodRow.observation == ObservationRow.number, NeighbourhoodRow.encoder == wanted.encoder)
    statement = (
        select(ObservationRow.number)
        .join(EmbeddingRow, EmbeddingRow.observation == ObservationRow.number)
        .outerjoin(NeighbourhoodRow, placed)
        .where(
            ObservationRow.model == model,
            EmbeddingRow.encoder == wanted.encoder,
            or_(
                NeighbourhoodRow.observation.is_(None),
                and_(ObservationRow.reason == WAITS_FOR_EMBEDDING, ~ObservationRow.stale),
            ),
        )
        .order_by(ObservationRow.number)
        .limit(EMBEDDED_AT_ONCE)
    )
    return iter(session.scalars(statement))


def _find_screen(session: Session, model: str, wanted: Wanted, now: datetime) -> Screen | None:
    if not wanted.encoder:
        return None
    last = last_figure(session, model, SCREENING)
    screened = int(last.window["changed_number"]) if last is not None else 0
    accepted = and_(
        ObservationRow.model == model,
        ObservationRow.role == Role.TRAIN,
        or_(
            ObservationRow.state == State.ACCEPTED,
            exists().where(FindingRow.observation == ObservationRow.number, FindingRow.kind == LIKELY_WRONG),
        ),
    )
    count = func.count()
    total = session.scalar(select(count).select_from(ObservationRow).where(accepted)) or 0
    changes = select(count, func.max(ObservationRow.changed_number)).where(
        accepted, ObservationRow.changed_number > screened
    )
    changed, newest = session.execute(changes).one()
    if not changed:
        return None
    long_ago = last is None or _passed(last.time, SCREENED_AFTER_SECONDS, now)
    due = long_ago or changed >= max(SCREENED_AFTER, total // 20)
    return Screen(wanted.encoder, newest) if due else None


def _find_drift(session: Session, model: str, alarm: AlarmPolicy, now: datetime) -> Drift | None:
    last = last_figure(session, model, QUALITY)
    if last is not None and not _passed(last.time, _DAY_SECONDS / alarm.looks_per_day, now):
        return None
    of_all = select(func.max(ObservationRow.number), func.max(ObservationRow.changed_number))
    newest, changed = session.execute(of_all.where(ObservationRow.model == model)).one()
    if newest is None:
        return None
    windows = find_windows(session, model, alarm.window)
    drawn = windows.recent.last if windows is not None else 0
    heeded = tuple(last.window[name] for name in ("last", "last_draw", "changed_number")) if last is not None else ()
    if heeded == (newest, drawn, changed):
        return None
    return Drift(windows, newest, changed)


def _of(model: str, wanted: Wanted) -> Select[int]:
    return select(ObservationRow.number).where(
        ObservationRow.model == model, ObservationRow.number.not_in(sorted(wanted.without))
    )


def _passed(since: str, seconds: float, now: datetime) -> bool:
    return now - datetime.fromisoformat(since) >= timedelta(seconds=seconds)
