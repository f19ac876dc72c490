"""Deletions as they are asked for: written down once, handed to the loops of all models that they touch, and told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from services.common.errors import Conflict, InvalidInput, NotFound
from services.trainer.clock import as_row
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.pseudonyms import read_pseudonyms
from services.trainer.feedback.tables import ContributorRow, DeletionRow, KeyRow
from services.trainer.loop.log import Clock, EventLog, utc_now
from services.trainer.loop.payloads import DeletionRequested
from services.trainer.loop.policy import LoopPolicy
from services.trainer.provenance.folders import Folders
from services.trainer.provenance.record import (
    Kind,
    Part,
    Record,
    State,
    read_record,
    write_record,
)
from services.trainer.provenance.references import find_references
from services.trainer.provenance.subjects import models_of
from services.trainer.storage.database import Database


@dataclass(frozen=True)
class Deletion:
    """How far a deletion is."""

    id: str
    kind: Kind
    state: State
    deadline: datetime
    record: Record

    @property
    def versions(self) -> list[int]:
        """Versions that have learnt what goes, of all models."""
        return sorted({version for part in self.record.parts.values() for version in part.versions})

    @property
    def runs(self) -> list[str]:
        """Runs that have."""
        return sorted({run for part in self.record.parts.values() for run in part.runs})


class Deletions:
    """Takes deletions in and tells how they stand; any thread may ask.

    Args:
        database: Migrated.
        events: Which the loops read.
        folders: Where files of users lie.
        policy_of: Returns the policy of a model as it is now.
        clock: Gives the present time.
    """

    def __init__(
        self,
        database: Database,
        events: EventLog,
        folders: Folders,
        policy_of: Callable[[str], LoopPolicy],
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._events = events
        self._folders = folders
        self._policy_of = policy_of
        self._clock = clock

    def delete_sample(self, observation: int, request_id: str) -> Deletion:
        """Begin to forget one picture, and what has learnt from it; asked again with the same id, it is the same one.

        Raises:
            NotFound: There is no such picture.
            Conflict: The id belongs to another deletion.
            NotReady: The database does not answer.
        """

        def begin(session: Session) -> dict[str, Part]:
            row = session.get(ObservationRow, observation)
            if row is None:
                raise NotFound(
                    f"picture {observation} is unknown; name one that ListObservations or `aimass review` gives",
                    reason="OBSERVATION_NOT_FOUND",
                    field="observation_id",
                )
            return {row.model: Part(observations=(observation,))}

        return self._begin(request_id, Kind.SAMPLE, str(observation), begin)

    def delete_contributor(self, contributor: str, request_id: str) -> Deletion:
        """Begin to forget all that somebody has given; keys and name go at once.

        What is kept of it has no name. Asked again with the same id and the same name it is the same deletion, and with
        another name it is refused, at any time: so it can be shown whose it is.

        Raises:
            InvalidInput: No name is given.
            NotFound: Nobody of that name has given anything.
            Conflict: The id belongs to another deletion.
            NotReady: The database does not answer.
        """
        if not contributor:
            raise InvalidInput(
                "no contributor is named, and what has none may be anybody's; give the name that ListKeys or "
                "`aimass keys list` tells",
                field="contributor",
            )

        def begin(session: Session) -> dict[str, Part]:
            models = models_of(session, contributor)
            known = session.get(ContributorRow, contributor)
            if known is None and not models:
                raise NotFound(
                    f"contributor {contributor[:100]!r} is unknown; name one that ListKeys or `aimass keys list` gives",
                    reason="CONTRIBUTOR_NOT_FOUND",
                    field="contributor",
                )
            session.execute(delete(KeyRow).where(KeyRow.contributor == contributor))
            session.execute(delete(ContributorRow).where(ContributorRow.name == contributor))
            return {model: Part() for model in models}

        return self._begin(request_id, Kind.CONTRIBUTOR, contributor, begin)

    def find(self, deletion_id: str) -> Deletion:
        """Return a deletion.

        Raises:
            NotFound: There is none of that id.
        """
        with self._database.read() as session:
            row = session.get(DeletionRow, deletion_id)
            if row is None:
                raise NotFound(
                    f"deletion {deletion_id[:100]!r} is unknown; give the request_id that it was asked for with",
                    reason="DELETION_NOT_FOUND",
                    field="id",
                )
            return _deletion(row)

    def report(self, deletion_id: str) -> dict[str, Any]:
        """Return what was removed, and what a search through all tables and files finds of it at this moment.

        That may be something where the same picture has come again since.

        Raises:
            NotFound: There is no such deletion.
        """
        found = self.find(deletion_id)
        with self._database.read() as session:
            subject = session.get_one(DeletionRow, deletion_id).subject if found.kind is Kind.CONTRIBUTOR else ""
        search = find_references(self._database, self._folders.all, found.record.fingerprints, subject)
        return {
            "kind": found.kind,
            "request_time": found.record.request_time.isoformat(),
            "models": {model: part.model_dump(mode="json") for model, part in found.record.parts.items()},
            "search": {
                "digests": len(found.record.fingerprints),
                "tables": search.tables,
                "rows": search.rows,
                "files": search.files,
                "found": search.found,
            },
        }

    def renew(self) -> None:
        """Hand all deletions that are not completed to the loops, as when the process died before it did."""
        with self._database.read() as session:
            rows = list(session.scalars(select(DeletionRow).where(DeletionRow.state != State.COMPLETED)))
        for row in rows:
            ask_loops(self._events, row)

    def overdue(self, seconds: float) -> list[tuple[str, str]]:
        """Return deletion and model where rows are still there so long after they should go: no loop drives it."""
        before = self._clock() - timedelta(seconds=seconds)
        with self._database.read() as session:
            rows = list(session.scalars(select(DeletionRow).where(DeletionRow.state == State.ERASING)))
        records = [(row.id, read_record(row)) for row in rows]
        return [
            (deletion_id, model)
            for deletion_id, record in records
            for model, part in record.parts.items()
            if record.request_time <= before and not part.rows_gone
        ]

    def _begin(self, request_id: str, kind: Kind, name: str, begin: Callable[[Session], dict[str, Part]]) -> Deletion:
        with self._database.begin(alone=True) as session:
            row, subject = session.get(DeletionRow, request_id), read_pseudonyms(session)(name)
            if row is None:
                time = self._clock()
                record = Record(request_time=time, parts=begin(session))
                row = DeletionRow(
                    id=request_id, kind=kind, subject=subject, deadline=self._deadline(time, list(record.parts))
                )
                write_record(row, record)
                session.add(row)
            elif (row.kind, row.subject) != (kind, subject):
                raise Conflict(
                    f"deletion {request_id!r} is of something else; give this one another request_id",
                    field="request_id",
                )
        ask_loops(self._events, row)
        return _deletion(row)

    def _deadline(self, time: datetime, models: Sequence[str]) -> str:
        """Return by when tainted versions must be gone: the earliest that the policies of *models* ask for."""
        hours = [self._policy_of(model).deletion.deadline_hours for model in models]
        return as_row(time + timedelta(hours=min(hours, default=0)))


def ask_loops(events: EventLog, row: DeletionRow) -> None:
    """Tell the loops of the models of a deletion that is not completed; one that knows is told nothing.

    Raises:
        NotReady: The database does not answer.
    """
    payload = DeletionRequested(
        deletion_id=row.id, subject_digest=row.subject, deadline=datetime.fromisoformat(row.deadline)
    )
    for model, part in read_record(row).parts.items():
        if not part.completed:
            events.ask(model, payload)


def _deletion(row: DeletionRow) -> Deletion:
    record = read_record(row)
    return Deletion(row.id, Kind(row.kind), record.state, datetime.fromisoformat(row.deadline), record)
