"""Writes down what has learnt from something that goes, where the loop and all who would use it look for it."""

from collections.abc import Collection

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from services.trainer.clock import now
from services.trainer.data.tables import ModelRow
from services.trainer.feedback.pseudonyms import fingerprint
from services.trainer.feedback.tables import DeletionRow
from services.trainer.loop.tables import PublicationRow
from services.trainer.provenance.lineage import Taint
from services.trainer.provenance.record import State
from services.trainer.storage.database import Database

_RUN_PREFIX = "run:"
_MARK = "tainted-"
"""Begins the ids of rows that stand for no publication of the loop."""


def mark_tainted(session: Session, deletion_id: str, model: str, taint: Taint) -> None:
    """Let the table of publications say which versions and runs are tainted; the session's transaction must be alone.

    Versions that were published by hand, and runs that were never published, get rows of their own: else a successor
    could be made from one of them.
    """
    runs = sorted(taint.runs)
    session.execute(
        update(PublicationRow)
        .where(PublicationRow.run.in_(runs), PublicationRow.tainted_time.is_(None))
        .values(tainted_time=now(), deletion=deletion_id)
    )
    statement = select(PublicationRow.model, PublicationRow.run, PublicationRow.version)
    known = {tuple(each) for each in session.execute(statement.where(PublicationRow.run.in_(runs)))}
    marks: list[tuple[str, str, int | None]] = [
        (each, run_id, version)
        for each, versions in taint.versions.items()
        for version, run_id in versions.items()
        if (each, run_id, version) not in known and session.get(ModelRow, each) is not None
    ]
    covered = {(each, run_id) for each, run_id, _ in known | set(marks)}
    marks += [(model, run_id, None) for run_id in runs if (model, run_id) not in covered]
    for each, run_id, version in marks:
        session.add(
            PublicationRow(
                id=_MARK + fingerprint(f"{each} {run_id} {version}")[:48],
                model=each,
                run=run_id,
                version=version,
                tainted_time=now(),
                deletion=deletion_id,
            )
        )


def find_deletion(database: Database, source: str) -> str:
    """Return the id of the deletion by which a model is tainted; empty where it is clean.

    Once a deletion is completed its runs are gone and others may have their ids; numbers of versions stay theirs.

    Args:
        database: Migrated.
        source: `run:<id>` or `<model>@<version>`.

    Raises:
        NotReady: The database does not answer.
    """
    statement = select(PublicationRow.deletion).where(PublicationRow.tainted_time.is_not(None))
    if source.startswith(_RUN_PREFIX):
        statement = statement.join(DeletionRow, DeletionRow.id == PublicationRow.deletion).where(
            PublicationRow.run == source.removeprefix(_RUN_PREFIX), DeletionRow.state != State.COMPLETED
        )
    else:
        model, _, version = source.rpartition("@")
        statement = statement.where(PublicationRow.model == model, PublicationRow.version == int(version))
    with database.read() as session:
        return session.scalar(statement.limit(1)) or ""


def forget_marks(session: Session, runs: Collection[str]) -> None:
    """Remove the rows of runs that are gone and of which no version ever was."""
    session.execute(
        delete(PublicationRow).where(
            PublicationRow.run.in_(runs), PublicationRow.version.is_(None), PublicationRow.id.startswith(_MARK)
        )
    )
