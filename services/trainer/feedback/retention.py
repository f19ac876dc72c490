"""Forgets what is too old or too much: pictures that are no samples and that no snapshot holds, and files of nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Select, delete, exists, or_, select
from sqlalchemy.orm import Session

from services.trainer.data.blobs import Blobs
from services.trainer.data.observing import State
from services.trainer.data.tables import ObservationRow, PredictionRow, SampleRow, SnapshotSampleRow, VoteRow
from services.trainer.feedback.policy import RetentionPolicy
from services.trainer.feedback.tables import AnswerRow, EmbeddingRow, FindingRow, NeighbourhoodRow
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

    Samples and what a snapshot holds stay, whatever their age.

    Raises:
        NotReady: The database does not answer; what was forgotten before stays forgotten.
    """
    before = (now - timedelta(days=policy.days)).astimezone(UTC).isoformat(timespec="milliseconds")
    removed, files = 0, 0
    while True:
        with database.begin(alone=True) as session:
            surplus = _surplus(session, model, policy.most_observations)
            old = ObservationRow.create_time < before
            statement = _forgettable(model).where(
                old if surplus is None else or_(old, ObservationRow.number <= surplus)
            )
            rows = session.execute(statement.order_by(ObservationRow.number).limit(_AT_ONCE)).all()
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


def _forgettable(model: str) -> Select[int, str]:
    held = exists().where(SnapshotSampleRow.observation == ObservationRow.number)
    return select(ObservationRow.number, ObservationRow.content_digest).where(
        ObservationRow.model == model,
        ObservationRow.sample.is_(None),
        ObservationRow.state != State.ACCEPTED,
        ~held,
    )


def _surplus(session: Session, model: str, most: int) -> int | None:
    """Return the number up to which pictures are too many; None where they are not."""
    mine = select(ObservationRow.number).where(ObservationRow.model == model)
    return session.scalar(mine.order_by(ObservationRow.number.desc()).offset(most).limit(1))


def _claimed(session: Session, digests: Sequence[str]) -> set[str]:
    return {
        digest
        for table in (ObservationRow, SampleRow)
        for digest in session.scalars(select(table.content_digest).where(table.content_digest.in_(digests)))
    }
