"""Forgets what is too old or too much: pictures that are no samples and that nothing holds, and files of nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, Subquery, and_, case, delete, exists, func, select, true
from sqlalchemy.orm import Session

from services.trainer.clock import as_row
from services.trainer.data.blobs import Blobs
from services.trainer.data.observing import State
from services.trainer.data.tables import (
    ObservationRow,
    PredictionRow,
    SampleRow,
    SnapshotSampleRow,
    VoteRow,
    total_bytes,
)
from services.trainer.feedback.beginnings import GateIsOpen, begin_after, held_for_gate, limit_gate
from services.trainer.feedback.capturing import stored_bytes
from services.trainer.feedback.policy import CapturePolicy, RetentionPolicy
from services.trainer.feedback.tables import AnswerRow, EmbeddingRow, FindingRow, NeighbourhoodRow
from services.trainer.storage.database import Database

_AT_ONCE = 500
_FULL, _FREED = 0.95, 0.9
"""Of the bytes that pictures may have: from the first on room is made, until they have the second."""
_OF_GATE = 0.5
"""Of the bytes that pictures may have, about so much is held for a gate that is open."""
_UNCLAIMED_SECONDS = 3600
"""So old is a file that no row names when it is removed: rows are written within seconds of their files."""
_HAS_WORDS = exists().where(VoteRow.observation == ObservationRow.number)


@dataclass(frozen=True)
class ExpiredCounts:
    """What was forgotten."""

    observations: int
    blobs: int

    def __add__(self, other: "ExpiredCounts") -> "ExpiredCounts":
        """Return both together."""
        return ExpiredCounts(self.observations + other.observations, self.blobs + other.blobs)


def expire(
    database: Database, blobs: Path, model: str, policy: RetentionPolicy, now: datetime, gate_is_open: GateIsOpen
) -> ExpiredCounts:
    """Forget pictures of a model, with all that is known of them, that are older than they may be or too many.

    A picture is as old as its newest answer. Samples stay, whatever their age, and so does what a snapshot holds or the
    gate that is open needs; so what is left of a time of which pictures were forgotten was chosen, and the streams that
    judge versions begin after it.

    Raises:
        NotReady: The database does not answer; what was forgotten before stays forgotten.
    """
    with database.read() as session:
        before = _oldest_kept(session, model, policy, now)
    return _forget_before(database, blobs, model, before, true(), gate_is_open)


def make_room(
    database: Database, blobs: Path, model: str, policy: CapturePolicy, now: datetime, gate_is_open: GateIsOpen
) -> ExpiredCounts | None:
    """Forget the oldest pictures of a model where all of them hardly have room, so that more can come; as `expire`.

    Those of which somebody has said something go after those of which nobody has: other pictures come by themselves,
    words do not. Of either about half of what nobody holds goes at most: where there is hardly room beside what is
    held, the newest ones stay until somebody can say what they are.

    Returns:
        What went; None where there is room.

    Raises:
        NotReady: The database does not answer; what was forgotten before stays forgotten.
    """
    with database.read() as session:
        stored = stored_bytes(session, model)
    if stored < _FULL * policy.max_bytes:
        return None
    limit_gate(database, model, int(_OF_GATE * policy.max_bytes), gate_is_open)
    too_many, gone = stored - int(_FREED * policy.max_bytes), ExpiredCounts(0, 0)
    for which in (~_HAS_WORDS, _HAS_WORDS):
        with database.read() as session:
            free = (*_nobody_holds(session, model, gate_is_open), which)
            before, size = _oldest_fitting(session, model, free, too_many, now)
        gone += _forget_before(database, blobs, model, before, which, gate_is_open)
        too_many -= size
        if too_many <= 0:
            break
    return gone


def forget(session: Session, observations: Sequence[int]) -> None:
    """Delete the rows of pictures that are no samples, and all rows about them; their files stay.

    The session's transaction must be alone.
    """
    for table in (PredictionRow, VoteRow, FindingRow, EmbeddingRow, NeighbourhoodRow, AnswerRow):
        session.execute(delete(table).where(table.observation.in_(observations)))
    session.execute(delete(ObservationRow).where(ObservationRow.number.in_(observations)))


def remove_unclaimed(database: Database, blobs: Path, digests: Sequence[str]) -> int:
    """Remove those of *digests* that no row names; return how many there were."""
    store = Blobs(blobs)
    with database.begin(alone=True) as session:  # so that nobody writes a row for one of them meanwhile
        claimed = _claimed(session, digests)
        return sum(store.remove(digest) for digest in set(digests) - claimed)


def sweep(database: Database, blobs: Path, now: datetime) -> int:
    """Remove all files that no row names and that are older than an hour; return how many there were.

    What a process that was killed had stored, and pictures that came a second time as another file.
    """
    store, batch, removed = Blobs(blobs), [], 0
    for digest, written in store.digests():
        if now.timestamp() - written > _UNCLAIMED_SECONDS:
            batch.append(digest)
        if len(batch) == _AT_ONCE:
            removed += remove_unclaimed(database, blobs, batch)
            batch = []
    return removed + remove_unclaimed(database, blobs, batch)


def _forget_before(
    database: Database, blobs: Path, model: str, before: str, which: ColumnElement[bool], gate_is_open: GateIsOpen
) -> ExpiredCounts:
    """Forget those of *which* that are older than *before*: they are looked for while others write."""
    with database.read() as session:
        free = (*_nobody_holds(session, model, gate_is_open), _is_older(before), which)
        found = session.scalars(select(ObservationRow.number).where(*free).order_by(ObservationRow.number)).all()
    gone = ExpiredCounts(0, 0)
    for begin in range(0, len(found), _AT_ONCE):
        with database.begin(alone=True) as session:
            free = (*_nobody_holds(session, model, gate_is_open), _is_older(before), which)  # still
            statement = select(ObservationRow.number, ObservationRow.content_digest)
            rows = session.execute(
                statement.where(ObservationRow.number.in_(found[begin : begin + _AT_ONCE]), *free)
            ).all()
            numbers = [number for number, _ in rows]
            begin_after(session, model, numbers, before)
            forget(session, numbers)
        gone += ExpiredCounts(len(rows), remove_unclaimed(database, blobs, [digest for _, digest in rows]))
    return gone


def _oldest_kept(session: Session, model: str, policy: RetentionPolicy, now: datetime) -> str:
    """Return the time before which pictures are forgotten, as rows have times."""
    before = as_row(now - timedelta(days=policy.days))
    mine = select(ObservationRow.number).where(ObservationRow.model == model)
    if session.scalar(mine.offset(policy.most_observations).limit(1)) is None:
        return before
    newest, time = _ages(model)
    times = select(time).outerjoin(newest, newest.c.observation == ObservationRow.number)
    times = times.where(ObservationRow.model == model).order_by(time.desc())
    return max(before, session.scalar(times.offset(policy.most_observations - 1).limit(1)) or before)


def _oldest_fitting(
    session: Session, model: str, free: Sequence[ColumnElement[bool]], too_many: int, now: datetime
) -> tuple[str, int]:
    """Return the time before which pictures are forgotten that take *too_many* bytes, as rows have times, and how many.

    They are about half of those that are *free* at most.
    """
    newest, time = _ages(model)
    of_moments = (
        select(time, total_bytes())
        .outerjoin(newest, newest.c.observation == ObservationRow.number)
        .where(*free)
        .group_by(time)
        .order_by(time)
    )
    too_many, passed = min(too_many, (session.scalar(select(total_bytes()).where(*free)) or 0) // 2), 0
    with session.execute(of_moments, execution_options={"yield_per": _AT_ONCE}) as moments:
        for begin, size in moments:
            if passed >= too_many:
                return str(begin), passed
            passed += size
    return as_row(now), passed


def _ages(model: str) -> tuple[Subquery, ColumnElement[str]]:
    """Return the newest answers by picture, and the time of a picture that is outer-joined with them."""
    newest = (
        select(PredictionRow.observation, func.max(PredictionRow.time).label("time"))
        .where(PredictionRow.model == model)
        .group_by(PredictionRow.observation)
        .subquery()
    )
    answered = newest.c.time > ObservationRow.create_time
    return newest, case((answered, newest.c.time), else_=ObservationRow.create_time)


def _nobody_holds(session: Session, model: str, gate_is_open: GateIsOpen) -> tuple[ColumnElement[bool], ...]:
    held = exists().where(SnapshotSampleRow.observation == ObservationRow.number)
    return (
        ObservationRow.model == model,
        ObservationRow.sample.is_(None),
        ObservationRow.state != State.ACCEPTED,
        ~held,
        ~held_for_gate(session, model, gate_is_open),
    )


def _is_older(before: str) -> ColumnElement[bool]:
    answered = exists().where(PredictionRow.observation == ObservationRow.number, PredictionRow.time >= before)
    return and_(ObservationRow.create_time < before, ~answered)


def _claimed(session: Session, digests: Sequence[str]) -> set[str]:
    return {
        digest
        for table in (ObservationRow, SampleRow)
        for digest in session.scalars(select(table.content_digest).where(table.content_digest.in_(digests)))
    }
