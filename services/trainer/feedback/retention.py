"""Forgets what is too old or too much: pictures that are no samples and that no snapshot holds, and files of nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Select, case, delete, exists, func, select
from sqlalchemy.orm import Session

from services.trainer.data.blobs import Blobs
from services.trainer.data.observing import State
from services.trainer.data.tables import ObservationRow, PredictionRow, SampleRow, SnapshotSampleRow, VoteRow
from services.trainer.feedback.policy import RetentionPolicy
from services.trainer.feedback.tables import AnswerRow, EmbeddingRow, FindingRow, LoopModelRow, NeighbourhoodRow
from services.trainer.storage.database import Database

_AT_ONCE = 500
_UNCLAIMED_SECONDS = 3600
"""So old is a file that no row names when it is removed: rows are written within seconds of their files."""


@dataclass(frozen=True)
class ExpiredCounts:
    """What was forgotten."""

    observations: int
    blobs: int


def expire(database: Database, blobs: Path, model: str, policy: RetentionPolicy, now: datetime) -> ExpiredCounts:
    """Forget pictures of a model, with all that is known of them, that are older than they may be or too many.

    A picture is as old as its newest answer. Samples and what a snapshot holds stay, whatever their age; so what is
    left of a time of which pictures were forgotten was chosen, and the streams that judge versions begin after it.

    Raises:
        NotReady: The database does not answer; what was forgotten before stays forgotten.
    """
    with database.read() as session:
        before = _oldest_kept(session, model, policy, now)
    removed, files = 0, 0
    while True:
        with database.begin(alone=True) as session:
            rows = session.execute(_forgettable(model, before)).all()
            if rows:
                _begin_streams_after(session, model, before)
            forget(session, [number for number, _ in rows])
        files += remove_unclaimed(database, blobs, [digest for _, digest in rows])
        removed += len(rows)
        if len(rows) < _AT_ONCE:
            return ExpiredCounts(removed, files)


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


def _oldest_kept(session: Session, model: str, policy: RetentionPolicy, now: datetime) -> str:
    """Return the time before which pictures are forgotten, as rows have times."""
    before = (now - timedelta(days=policy.days)).astimezone(UTC).isoformat(timespec="milliseconds")
    mine = select(ObservationRow.number).where(ObservationRow.model == model)
    if session.scalar(mine.offset(policy.most_observations).limit(1)) is None:
        return before
    newest = (
        select(PredictionRow.observation, func.max(PredictionRow.time).label("time"))
        .where(PredictionRow.model == model)
        .group_by(PredictionRow.observation)
        .subquery()
    )
    answered = newest.c.time > ObservationRow.create_time
    time = case((answered, newest.c.time), else_=ObservationRow.create_time)
    times = select(time).outerjoin(newest, newest.c.observation == ObservationRow.number)
    times = times.where(ObservationRow.model == model).order_by(time.desc())
    return max(before, session.scalar(times.offset(policy.most_observations - 1).limit(1)) or before)


def _forgettable(model: str, before: str) -> Select[int, str]:
    held = exists().where(SnapshotSampleRow.observation == ObservationRow.number)
    answered = exists().where(PredictionRow.observation == ObservationRow.number, PredictionRow.time >= before)
    return (
        select(ObservationRow.number, ObservationRow.content_digest)
        .where(
            ObservationRow.model == model,
            ObservationRow.create_time < before,
            ObservationRow.sample.is_(None),
            ObservationRow.state != State.ACCEPTED,
            ~held,
            ~answered,
        )
        .order_by(ObservationRow.number)
        .limit(_AT_ONCE)
    )


def _begin_streams_after(session: Session, model: str, before: str) -> None:
    """Let streams begin after the draws from before a time, those that were judged too: by their age, not by chance."""
    drawn = select(func.max(PredictionRow.draw)).where(PredictionRow.model == model, PredictionRow.time < before)
    row = session.get(LoopModelRow, model)
    if row is not None:
        row.incomplete_draw = max(row.incomplete_draw, session.scalar(drawn) or 0)


def _claimed(session: Session, digests: Sequence[str]) -> set[str]:
    return {
        digest
        for table in (ObservationRow, SampleRow)
        for digest in session.scalars(select(table.content_digest).where(table.content_digest.in_(digests)))
    }
