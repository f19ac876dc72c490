"""Carries deletions out: first rows and files, then all that has learnt from them. Each step may be repeated."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from services.common.errors import Conflict, NotFound, NotReady
from services.trainer.data.models import find_model
from services.trainer.data.tables import ModelRow, ObservationRow, SnapshotRow, SnapshotSampleRow
from services.trainer.feedback.pseudonyms import fingerprint
from services.trainer.feedback.tables import DeletionRow
from services.trainer.loop.actions import Erased
from services.trainer.loop.log import Clock, EventLog, utc_now
from services.trainer.loop.tables import PublicationRow
from services.trainer.provenance.deletion import ask_loops
from services.trainer.provenance.encoders import find_copies, move_encoders
from services.trainer.provenance.folders import Folders
from services.trainer.provenance.lineage import Graphs, Lineage, Taint, describe_lost
from services.trainer.provenance.record import Kind, Part, Record, State, read_record, write_record
from services.trainer.provenance.references import find_references
from services.trainer.provenance.subjects import find_subjects, in_batches, remove_subjects
from services.trainer.provenance.tainting import forget_marks, mark_tainted
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.record import RunState
from services.trainer.runs.store import RunStore
from services.trainer.runs.table import RunRow
from services.trainer.sets import SNAPSHOT_PREFIX
from services.trainer.storage.database import Database

SETTLE_SECONDS = 10.0
"""From the end of a contributor's keys to the removal: what gateways still hold of theirs arrives meanwhile, which they
send every five seconds; one that was away for longer is told when it does that the contributor is deleted."""

log = structlog.get_logger(__name__)


class Erasure:
    """Removes what must be forgotten, as the loop asks for it; any thread may.

    Args:
        database: Migrated.
        events: Which the loops read.
        store: The table of runs.
        lineage: Finds what has learnt from pictures.
        folders: Where files of users lie.
        graphs: Says what inference has.
        sift: Judges the pictures of a model again of which a word is gone.
        clock: Gives the present time.
    """

    def __init__(
        self,
        database: Database,
        events: EventLog,
        store: RunStore,
        lineage: Lineage,
        folders: Folders,
        graphs: Graphs,
        sift: Callable[[str], object],
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._events = events
        self._store = store
        self._lineage = lineage
        self._folders = folders
        self._graphs = graphs
        self._sift = sift
        self._clock = clock

    def rows(self, model: str, deletion_id: str) -> Erased:
        """Remove rows and pictures of a model, and find out which of its versions have learnt from them.

        Rows go in one transaction, which writes down what has seen them; the rest can be found from that again. Where
        another model has learnt from them too, its loop is told.

        Raises:
            NotFound: There is no such deletion.
            NotReady: The contributor's last pictures may still be on their way, inference does not answer, or what went
                is still read in the database.
            Overloaded: The disk does not let a folder go.
        """
        record, part = self._read(model, deletion_id)
        if not part.rows_gone:
            self._erase_rows(model, deletion_id)
            record, part = self._read(model, deletion_id)
        self._erase_files(model, deletion_id, record)
        self._sift(model)
        taint = self._taint(part)
        self._spread(model, deletion_id, taint)
        self._database.truncate_log()
        record, part = self._read(model, deletion_id)
        return Erased(part.removed, part.versions)

    def runs(self, model: str, deletion_id: str, versions: Sequence[int]) -> Mapping[str, int]:
        """Remove the runs that have learnt from what went, and the snapshots that held it.

        Runs whose versions another model still has to replace are left to the end of the deletion there.

        Args:
            model: Name of the model.
            deletion_id: Whose rows are gone.
            versions: That are gone.

        Returns:
            What was removed in all of the deletion's course, and as `references_left` how much of it a search finds.

        Raises:
            NotFound: There is no such deletion.
            NotReady: A process is still at work on such a run, inference does not answer, or what went is still read in
                the database.
            Conflict: A further version was made from such a run meanwhile, or is one of a model that has no loop.
            Overloaded: The disk does not let a folder go.
        """
        record, part = self._read(model, deletion_id)
        if not part.completed:
            taint = self._taint(part)
            self._refuse_late(model, taint, versions, record)
            others = [each for other, each in record.parts.items() if other != model and not each.completed]
            left = {run_id for each in others for run_id in each.runs}
            gone = sorted(taint.runs - left)
            self._cancel(gone)
            self._check_at_rest(gone)
            counts = {
                "run_folders": sum(self._folders.remove_run(run_id) for run_id in gone),
                # Again: whoever was decoding when the rows went has written what was gone already.
                "prepared": self._folders.remove_prepared() if gone or record.fingerprints else 0,
            }
            self._complete(model, deletion_id, gone, counts)
            record, part = self._read(model, deletion_id)
        self._database.truncate_log()
        found = 0
        if record.state is State.COMPLETED:
            search = find_references(self._database, self._folders.all, record.fingerprints)
            found = sum(search.found.values())
        return part.removed | {"references_left": found}

    def _read(self, model: str, deletion_id: str) -> tuple[Record, Part]:
        with self._database.read() as session:
            return _find(session, model, deletion_id)[1:]

    def _erase_rows(self, model: str, deletion_id: str) -> None:
        task = find_model(self._database, model)
        with self._database.read() as session:
            row, record, part = _find(session, model, deletion_id)
            self._wait_for_last(row, record)
            pictures = find_subjects(session, model, row, part).pictures
        contents = self._lineage.contents(task, pictures)
        with self._database.begin(alone=True) as session:
            row, record, part = _find(session, model, deletion_id)
            subjects = find_subjects(session, model, row, part)
            lost = describe_lost(session, subjects, contents)
            learners = self._lineage.learners(model, lost)
            digests = _digests(session, subjects.pictures)
            changes = {
                "observations": subjects.pictures,
                "rows_gone": True,
                "learners": tuple(learners),
                "snapshots": tuple(sorted({digest for each in lost for digest in each.snapshots})),
            }
            part = part.with_removed(remove_subjects(session, subjects)).model_copy(update=changes)
            fingerprints = tuple(sorted({*record.fingerprints, *map(fingerprint, digests)}))
            record = record.model_copy(update={"fingerprints": fingerprints, "erase_time": self._clock()})
            write_record(row, record.with_part(model, part))
        log.info("rows were erased", model=model, deletion=deletion_id, learners=len(learners), **part.removed)

    def _wait_for_last(self, row: DeletionRow, record: Record) -> None:
        if row.kind != Kind.CONTRIBUTOR:
            return
        left = SETTLE_SECONDS - (self._clock() - record.request_time).total_seconds()
        if left > 0:
            raise NotReady(
                f"what gateways still hold of a contributor may arrive for {left:.1f} more seconds; try again then",
                retry_after_seconds=left,
            )

    def _erase_files(self, model: str, deletion_id: str, record: Record) -> None:
        if not record.fingerprints:
            return
        counts = {
            "blobs": self._folders.remove_files(self._database, record.fingerprints),
            "prepared": self._folders.remove_prepared(),
        }
        with self._database.begin(alone=True) as session:
            row, record, part = _find(session, model, deletion_id)
            write_record(row, record.with_part(model, part.with_removed(counts)))

    def _taint(self, part: Part) -> Taint:
        return self._lineage.taint(part.learners, self._graphs) if part.learners else Taint(frozenset(), {})

    def _spread(self, model: str, deletion_id: str, taint: Taint) -> None:
        """Write down what is tainted, tell the loops of other models that have such versions, and stop such runs."""
        with self._database.begin(alone=True) as session:
            row, record, part = _find(session, model, deletion_id)
            mark_tainted(session, deletion_id, model, taint)
            versions = tuple(sorted(taint.versions.get(model, ())))
            part = part.model_copy(update={"runs": tuple(sorted(taint.runs)), "versions": versions})
            record = record.with_part(model, part)
            for other in sorted(set(taint.versions) - {model}):
                theirs = record.parts.get(other) or Part(rows_gone=True)
                if not theirs.completed and session.get(ModelRow, other) is not None:
                    learners = tuple(sorted({*theirs.learners, *part.learners}))
                    runs = tuple(sorted({*theirs.runs, *part.runs}))
                    record = record.with_part(other, theirs.model_copy(update={"learners": learners, "runs": runs}))
            write_record(row, record)
        ask_loops(self._events, row)
        self._cancel(sorted(taint.runs))

    def _cancel(self, runs: Sequence[str]) -> None:
        for run_id in runs:
            run = self._store.find(run_id, "")
            if run is not None and not run.state.final:
                with suppress(Conflict, NotFound):  # it has just ended
                    self._store.request_cancel(run_id)

    def _refuse_late(self, model: str, taint: Taint, versions: Sequence[int], record: Record) -> None:
        """Refuse tainted versions that no loop removes: published since, or under a name that no model here has."""
        if not taint.runs:
            return
        served = self._graphs()
        for name in sorted({model, *taint.versions} - (record.parts.keys() - {model})):
            gone = versions if name == model else ()
            for version in sorted(set(taint.versions.get(name, ())) & set(served.get(name, {})) - set(gone)):
                raise Conflict(
                    f"version {version} of model {name!r} was made from run {taint.versions[name][version]!r}, which "
                    "has learnt what is deleted; let another version serve and remove this one with DeleteVersion",
                    reason="TAINTED",
                )

    def _check_at_rest(self, runs: Sequence[str]) -> None:
        for run_id in runs:
            run = self._store.find(run_id, "")
            running = run is not None and run.state is RunState.RUNNING
            if running or RunFolder(self._folders.runs / run_id).is_held:
                raise NotReady(
                    f"a process is still at work on run {run_id!r}, which is to be removed; wait for its end"
                )

    def _complete(self, model: str, deletion_id: str, gone: Sequence[str], counts: Mapping[str, int]) -> None:
        copies = find_copies(self._folders.runs, gone) if gone else {}
        with self._database.begin(alone=True) as session:
            row, record, part = _find(session, model, deletion_id)
            move_encoders(session, gone, copies)
            result: Any = session.execute(delete(RunRow).where(RunRow.id.in_(gone)))
            forget_marks(session, gone)
            snapshots = _remove_snapshots(session, part.snapshots)
            counts = {**counts, "runs": result.rowcount, "snapshots": snapshots}
            part = part.with_removed(counts).model_copy(update={"completed": True})
            write_record(row, record.with_part(model, part))


def _find(session: Session, model: str, deletion_id: str) -> tuple[DeletionRow, Record, Part]:
    row = session.get(DeletionRow, deletion_id)
    part = read_record(row).parts.get(model) if row is not None else None
    if row is None or part is None:
        raise NotFound(
            f"deletion {deletion_id!r} of model {model!r} is unknown; ask for one with DeleteSample",
            reason="DELETION_NOT_FOUND",
        )
    return row, read_record(row), part


def _digests(session: Session, pictures: Sequence[int]) -> set[str]:
    """Return the digests of files and pixels of pictures."""
    columns = select(ObservationRow.content_digest, ObservationRow.pixel_digest)
    return {
        digest
        for numbers in in_batches(pictures)
        for pair in session.execute(columns.where(ObservationRow.number.in_(numbers)))
        for digest in pair
    }


def _remove_snapshots(session: Session, digests: Sequence[str]) -> int:
    """Remove snapshots of which no run is left; return how many there were.

    One that a run has is of the same contents, since what was deleted has come again.
    """
    removed = 0
    for digest in digests:
        run = session.scalar(select(RunRow.id).where(RunRow.dataset == SNAPSHOT_PREFIX + digest).limit(1))
        if run is None and session.get(SnapshotRow, digest) is not None:
            session.execute(update(PublicationRow).where(PublicationRow.snapshot == digest).values(snapshot=None))
            session.execute(delete(SnapshotSampleRow).where(SnapshotSampleRow.snapshot == digest))
            session.execute(delete(SnapshotRow).where(SnapshotRow.digest == digest))
            removed += 1
    return removed
