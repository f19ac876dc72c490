"""The rows of runs: what shall be. What has happened lies in a run's folder.

A run goes to RUNNING, and from there to any other state, only under the lock of its folder (`RunFolder.locked`), which
its process holds too. So a row says RUNNING without a lock only when both, process and supervisor, are gone; that the
supervisor is, another one knows by the second lock of the folder (`RunFolder.supervised`).
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.common.errors import Conflict, NotFound
from services.trainer.clock import now
from services.trainer.runs.progress import finite
from services.trainer.runs.record import Outcome, Request, RunKind, RunState
from services.trainer.runs.table import FolderRow, RunRow
from services.trainer.storage.database import Database

SHORT_KINDS = frozenset({RunKind.REFIT})
"""Kinds of runs that take seconds: one of them need not wait for the end of a long run."""
LONG_KINDS = frozenset(RunKind) - SHORT_KINDS
MOST_DEATHS = 3
"""Processes of a run that may die in a row without finishing a further epoch."""


@dataclass(frozen=True)
class Run:
    """One run as its row has it; `RunRow` says what each field means."""

    number: int
    id: str
    client_id: str | None
    kind: RunKind
    recipe: str
    dataset: str
    options: dict[str, Any]
    trusted: bool
    state: RunState
    reason: str
    queue: str
    cancel_requested: bool
    attempts: int
    deaths: int
    epochs: int
    metrics: dict[str, float]
    create_time: str
    start_time: str | None
    finish_time: str | None

    def request(self) -> Request:
        """Return what was asked for, as its process reads it.

        Raises:
            ValidationError: An option no longer exists.
        """
        return Request.model_validate(
            {
                "id": self.id,
                "kind": self.kind,
                "options": self.options,
                "trusted": self.trusted,
                "create_time": self.create_time,
            }
        )


@dataclass(frozen=True)
class RunFilter:
    """Selects runs; what is empty selects all."""

    states: Sequence[RunState] = ()
    kind: RunKind | None = None
    recipe: str = ""
    dataset: str = ""
    queue: str = ""


class RunStore:
    """The table of runs. Its methods take milliseconds and may be called from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, request: Request, queue: str, client_id: str = "") -> Run:
        """Add a run, QUEUED; the same *client_id* or id with an equal request gives the run that is there already.

        Raises:
            Conflict: The id or *client_id* belongs to another run.
        """
        row = _new_row(request, queue, client_id)
        try:
            with self._database.begin() as session:
                known = _known(session, row)
                if known is None:
                    session.add(row)
                    session.flush()
                return _run(known or row)
        except IntegrityError:  # another process was faster by a moment
            with self._database.read() as session:
                known = _known(session, row)
                assert known is not None
                return _run(known)

    def adopt(self, request: Request, outcome: Outcome, queue: str) -> None:
        """Add a run that has ended, as when its folder was copied from another machine; one that is there stays."""
        row = _new_row(request, queue, client_id="")
        row.start_time = request.create_time
        _end(row, outcome.state, outcome.reason, outcome.finish_time)
        row.metrics = finite(outcome.metrics)
        with suppress(IntegrityError), self._database.begin() as session:
            session.add(row)

    def bind_folder(self, folder_id: str, path: str) -> tuple[str, str]:
        """Return the id of the folder that the runs lie in, and its path; the first one that asks gives them."""
        with self._database.read() as session:
            row = session.get(FolderRow, 1)
        if row is None:
            row = FolderRow(number=1, id=folder_id, path=path)
            try:
                with self._database.begin() as session:
                    session.add(row)
            except IntegrityError:  # another process was faster by a moment
                with self._database.read() as session:
                    row = session.get_one(FolderRow, 1)
        return row.id, row.path

    def unknown(self, run_ids: Collection[str]) -> set[str]:
        """Return those ids that no run has."""
        with self._database.read() as session:
            return set(run_ids).difference(session.scalars(select(RunRow.id)))

    def find(self, run_id: str, client_id: str) -> Run | None:
        """Return the run of that *client_id* or else of that id, if there is one; what is empty names none."""
        with self._database.read() as session:
            row = _named(session, run_id, client_id)
            return _run(row) if row is not None else None

    def get(self, run_id: str) -> Run:
        """Return one run.

        Raises:
            NotFound: There is none of that id.
        """
        with self._database.read() as session:
            return _run(_row(session, run_id))

    def list(self, selected: RunFilter, limit: int | None = None, before: int | None = None) -> list[Run]:
        """Return runs, newest first, *limit* of them at most.

        Args:
            selected: Which.
            limit: How many.
            before: Only runs that are older than the one of this number.
        """
        query = _selecting(selected).order_by(RunRow.number.desc()).limit(limit)
        if before is not None:
            query = query.where(RunRow.number < before)
        with self._database.read() as session:
            return [_run(row) for row in session.scalars(query)]

    def counts(self) -> dict[RunState, int]:
        """Return how many runs are in each state."""
        with self._database.read() as session:
            counted = session.execute(select(RunRow.state, func.count()).group_by(RunRow.state))
            return {RunState(state): count for state, count in counted}

    def waiting(self, queue: str, kinds: Collection[RunKind]) -> Sequence[str]:
        """Return the ids of the queued runs of these *kinds*, the one that was created first before the others."""
        queued = (RunRow.queue == queue, RunRow.state == RunState.QUEUED, RunRow.kind.in_(kinds))
        query = select(RunRow.id).where(*queued).order_by(RunRow.number)
        with self._database.read() as session:
            return session.scalars(query).all()

    def to_be_cancelled(self, run_ids: Collection[str]) -> Sequence[str]:
        """Return which of the runs are running and somebody wants to end."""
        query = select(RunRow.id).where(
            RunRow.id.in_(run_ids), RunRow.state == RunState.RUNNING, RunRow.cancel_requested
        )
        with self._database.read() as session:
            return session.scalars(query).all()

    def claim(self, run_id: str, queue: str, limit: int) -> Run | None:
        """Make a queued run RUNNING, unless *limit* runs of *queue* are so already; its lock must be held.

        Runs of `SHORT_KINDS` and all others are counted apart.

        Returns:
            The run, or None where that many are running or it is no longer queued.
        """
        with self._database.begin(alone=True) as session:
            row = _row(session, run_id, to_change=True)
            counted = SHORT_KINDS if row.kind in SHORT_KINDS else LONG_KINDS
            running = select(func.count()).where(
                RunRow.queue == queue, RunRow.state == RunState.RUNNING, RunRow.kind.in_(counted)
            )
            if (row.state, row.queue) != (RunState.QUEUED, queue) or session.scalars(running).one() >= limit:
                return None
            row.state, row.reason = RunState.RUNNING, ""
            row.attempts += 1
            row.start_time = row.start_time or now()
            return _run(row)

    def finish(self, run_id: str, outcome: Outcome) -> Run:
        """Take over how a running run ended; its lock must be held."""
        with self._database.begin() as session:
            row = _row(session, run_id, to_change=True)
            if row.state == RunState.RUNNING:
                _end(row, outcome.state, outcome.reason, outcome.finish_time)
                row.metrics = finite(outcome.metrics)
            return _run(row)

    def requeue(self, run_id: str, queue: str | None = None) -> Run:
        """Let a running run go on later, or end it where somebody wants that; its lock must be held.

        Args:
            run_id: The run.
            queue: Whose supervisor shall start it then; by default the present one.
        """
        with self._database.begin() as session:
            row = _row(session, run_id, to_change=True)
            if row.state == RunState.RUNNING:
                _queue_or_cancel(row)
                row.queue = queue or row.queue
            return _run(row)

    def move(self, run: Run, queue: str) -> Run:
        """Give *run* to *queue*, whose supervisor sees it through, unless it has got on since; return it as it is."""
        with self._database.begin() as session:
            row = _row(session, run.id, to_change=True)
            if (row.state, row.attempts, row.queue) == (RunState.RUNNING, run.attempts, run.queue):
                row.queue = queue
            return _run(row)

    def bury(self, run_id: str, epochs: int, cause: str, hint: str = "") -> Run:
        """Count the death of a running run's process, and let the run go on, unless that seems hopeless.

        Its lock must be held.

        Args:
            run_id: The run.
            epochs: Finished so far; more of them than at the death before give the run new hope.
            cause: What happened to the process: `was killed by signal 9`.
            hint: Further words for the reason of a run that fails.
        """
        with self._database.begin() as session:
            row = _row(session, run_id, to_change=True)
            if row.state == RunState.RUNNING:
                row.deaths = 0 if epochs > row.epochs else row.deaths + 1
                row.epochs = epochs
                if row.deaths < MOST_DEATHS or row.cancel_requested:
                    _queue_or_cancel(row)
                else:
                    further = "a further" if epochs else "an"
                    reason = f"its process {cause} {_times(row.deaths)} without finishing {further} epoch{hint}"
                    _end(row, RunState.FAILED, reason, now())
            return _run(row)

    def note(self, run_id: str, reason: str) -> None:
        """Say why a queued run waits."""
        with self._database.begin() as session:
            row = _row(session, run_id, to_change=True)
            if row.state == RunState.QUEUED:
                row.reason = reason

    def request_cancel(self, run_id: str) -> Run:
        """End a queued run, or ask for the end of a running one.

        Raises:
            NotFound: There is none of that id.
            Conflict: It has ended otherwise.
        """
        with self._database.begin() as session:
            row = _row(session, run_id, to_change=True)
            if row.state in (RunState.SUCCEEDED, RunState.FAILED):
                raise Conflict(
                    f"run {run_id!r} has {row.state} already; only a run that has not ended can be cancelled"
                )
            row.cancel_requested = True
            if row.state == RunState.QUEUED:
                _end(row, RunState.CANCELLED, "", now())
            return _run(row)

    def resume(self, run_id: str, queue: str) -> Run:
        """Queue a run that failed or was cancelled again, or move a queued one to *queue*.

        Raises:
            NotFound: There is none of that id.
            Conflict: It has succeeded.
        """
        with self._database.begin() as session:
            row = _row(session, run_id, to_change=True)
            if row.state == RunState.SUCCEEDED:
                raise Conflict(f"run {run_id!r} has succeeded, and nothing is left to do; create a new run")
            if row.state != RunState.RUNNING:
                row.state, row.queue = RunState.QUEUED, queue
                row.reason, row.finish_time = "", None
                row.cancel_requested, row.deaths = False, 0
            return _run(row)


def name_taken(known: Run, client_id: str | None) -> Conflict:
    """Return the error about a request that has a name of the run *known*, of which something else was asked."""
    if client_id and client_id == known.client_id:
        return Conflict(
            f"client id {client_id!r} belongs to run {known.id!r}, of which something else was asked; "
            "give this one another client id",
            field="client_id",
        )
    return Conflict(
        f"run {known.id!r} exists already with other options; go on with it by its id alone, or give this one "
        "another id",
        field="id",
    )


def _new_row(request: Request, queue: str, client_id: str) -> RunRow:
    options = request.options.model_dump(mode="json")
    training = options.get("training") or options
    return RunRow(
        id=request.id,
        client_id=client_id or None,
        kind=request.kind,
        recipe=training.get("recipe", ""),
        dataset=training.get("dataset", ""),
        options=options,
        trusted=request.trusted,
        state=RunState.QUEUED,
        reason="",
        queue=queue,
        cancel_requested=False,
        attempts=0,
        deaths=0,
        epochs=0,
        metrics={},
        create_time=request.create_time,
    )


def _known(session: Session, new: RunRow) -> RunRow | None:
    """Return the run that *new* asks for once more, if it is one.

    Raises:
        Conflict: It has the name of another run.
    """
    known = _named(session, new.id, new.client_id)
    if known is not None and (known.kind, known.options, known.trusted) != (new.kind, new.options, new.trusted):
        raise name_taken(_run(known), new.client_id)
    return known


def _named(session: Session, run_id: str, client_id: str | None) -> RunRow | None:
    """Return the run of that *client_id*, else of that id."""
    if client_id:
        known = session.scalars(select(RunRow).where(RunRow.client_id == client_id)).one_or_none()
        if known is not None:
            return known
    return session.scalars(select(RunRow).where(RunRow.id == run_id)).one_or_none()


def _row(session: Session, run_id: str, *, to_change: bool = False) -> RunRow:
    query = select(RunRow).where(RunRow.id == run_id)
    row = session.scalars(query.with_for_update() if to_change else query).one_or_none()
    if row is None:
        raise NotFound(f"run {run_id!r} is unknown; ListRuns names those that exist", field="id")
    return row


def _selecting(selected: RunFilter) -> Select[RunRow]:
    query = select(RunRow)
    if selected.states:
        query = query.where(RunRow.state.in_(selected.states))
    for column, value in (
        (RunRow.kind, selected.kind),
        (RunRow.recipe, selected.recipe),
        (RunRow.queue, selected.queue),
    ):
        if value:
            query = query.where(column == value)
    if selected.dataset:
        named = RunRow.dataset == selected.dataset
        if selected.dataset.startswith("model:"):  # some of its samples or all
            begin = f"{selected.dataset}@"
            named |= func.substr(RunRow.dataset, 1, len(begin)) == begin  # LIKE of SQLite knows no case
        query = query.where(named)
    return query


def _queue_or_cancel(row: RunRow) -> None:
    if row.cancel_requested:
        _end(row, RunState.CANCELLED, "", now())
    else:
        row.state = RunState.QUEUED


def _end(row: RunRow, state: RunState, reason: str, time: str) -> None:
    row.state, row.reason, row.finish_time = state, reason, time


def _times(count: int) -> str:
    return {1: "once", 2: "twice", 3: "three times"}.get(count, f"{count} times")


def _run(row: RunRow) -> Run:
    values = {field.name: getattr(row, field.name) for field in fields(Run)}
    return Run(**values | {"kind": RunKind(row.kind), "state": RunState(row.state)})
