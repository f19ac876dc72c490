"""The log of events on its table, and the leases that say who may write to it.

Events of a model have numbers without gaps, so that two writers cannot both believe that theirs is the next. The loop
writes under a lease; what is asked for by hand is written by anybody, and heeded by whoever has the lease.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.common.errors import Conflict
from services.trainer.clock import as_row
from services.trainer.feedback.beginnings import begin_gate
from services.trainer.loop.cycle_payloads import CycleEnded, GateBegun, GateDecided
from services.trainer.loop.events import Event, parse_payload
from services.trainer.loop.payloads import DeletionRequested, Wish
from services.trainer.loop.reducer import fold
from services.trainer.loop.state import LoopState
from services.trainer.loop.tables import EventRow, LoopLeaseRow
from services.trainer.storage.database import Database

NOT_ALONE = "NOT_ALONE"
"""Reason of the error about an event that somebody else's came before, or whose writer has lost its lease."""
LEASE_SECONDS = 15.0
"""After which another process takes a loop over whose holder is not heard of."""
_ENOUGH = 2 / 3
"""Share of a lease with which it is not renewed."""
_READ_AT_ONCE = 1000

Clock = Callable[[], datetime]
"""Returns the present time, in UTC."""


def utc_now() -> datetime:
    """Return the present time."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Lease:
    """The right to drive the loop of a model."""

    model: str
    fence: int
    """Rises with every holder."""


class EventLog:
    """The events of all models; any thread may use it.

    Args:
        database: Migrated.
        clock: Gives the time of what is asked for by hand.
    """

    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    def append(self, event: Event, lease: Lease) -> None:
        """Write *event* as the next one.

        Raises:
            Conflict: With reason `NOT_ALONE`: another one was written meanwhile, or somebody else has the lease.
            NotReady: The database does not answer.
        """
        with self._database.begin(alone=True) as session:
            self.append_in(session, event, lease)

    def append_in(self, session: Session, event: Event, lease: Lease) -> None:
        """Write *event* as the next one together with what else *session* writes; its transaction must be alone.

        Raises:
            Conflict: As `append`.
        """
        row = session.get(LoopLeaseRow, lease.model)
        if row is None or row.fence != lease.fence:
            raise _not_alone(f"another process has taken over the loop of model {event.model!r}")
        if event.key is not None and _by_key(session, event.model, event.key) is not None:
            return
        last = _last(session, event.model)
        if (last.number if last else 0) != event.number - 1:
            raise _not_alone(f"event {event.number} of model {event.model!r} was written meanwhile")
        session.add(_row(event))
        if isinstance(event.payload, GateBegun):
            begin_gate(session, event.model)

    def ask(self, model: str, payload: Wish | DeletionRequested) -> Event:
        """Write what is asked for by hand; asked for again, nothing happens.

        Returns:
            The event that says so, which may be that of an earlier call.

        Raises:
            Conflict: The same id was given to something else that was asked for.
            NotReady: The database does not answer.
        """
        with self._database.begin(alone=True) as session:
            found = _by_key(session, model, payload.key(0) or "")
            if found is not None:
                if _event(found).payload != payload:
                    raise Conflict(
                        f"event {found.number} of model {model!r} has the same request_id and asks for {found.kind} "
                        "with other values; give this one another request_id",
                        field="request_id",
                    )
                return _event(found)
            last = _last(session, model)
            event = Event(
                model,
                last.number + 1 if last else 1,
                last.cycle if last and last.kind != "cycle.ended" else 0,
                _to_milliseconds(self._clock()),
                payload,
            )
            session.add(_row(event))
            return event

    def was_asked(self, model: str, wish: Wish) -> bool:
        """Whether something was asked for with the id of *wish*, so that this asks for nothing new."""
        with self._database.read() as session:
            return _by_key(session, model, wish.key(0) or "") is not None

    def read(self, model: str, after: int = 0, limit: int = _READ_AT_ONCE, kind: str = "") -> list[Event]:
        """Return *limit* events at most of a model that come after number *after*, in their order.

        Args:
            model: Name of the model.
            after: Number of the event before the first.
            limit: Most that are returned.
            kind: Only events of this kind; empty for all.
        """
        statement = select(EventRow).where(EventRow.model == model, EventRow.number > after)
        if kind:
            statement = statement.where(EventRow.kind == kind)
        with self._database.read() as session:
            return [_event(row) for row in session.scalars(statement.order_by(EventRow.number).limit(limit))]

    def last(self, model: str, kind: str = "", count: int = 1) -> list[Event]:
        """Return the newest events of a model, newest first; of *kind* alone where it is given."""
        statement = select(EventRow).where(EventRow.model == model)
        if kind:
            statement = statement.where(EventRow.kind == kind)
        with self._database.read() as session:
            return [_event(row) for row in session.scalars(statement.order_by(EventRow.number.desc()).limit(count))]

    def catch_up(self, state: LoopState) -> LoopState:
        """Return *state* after all events that were written since.

        Raises:
            InvalidLog: They do not follow.
            NotReady: The database does not answer.
        """
        while events := self.read(state.model, state.number):
            for event in events:
                state = fold(state, event)
        return state


class Leases:
    """The leases of one process; any thread may use it.

    Args:
        database: Migrated.
        holder: Stands for the process; no other one has the same.
        seconds: How long a lease lasts without being held again.
        clock: Must agree within a second among all processes.
    """

    def __init__(self, database: Database, holder: str, seconds: float = LEASE_SECONDS, clock: Clock = utc_now) -> None:
        self._database = database
        self._holder = holder
        self._clock = clock
        self.seconds = seconds

    def hold(self, model: str) -> Lease | None:
        """Take or keep the lease of a model, which must be a task; None while another process has it.

        Nothing is written while most of the lease is left: it is asked for at each look of each loop.

        Raises:
            NotReady: The database does not answer.
        """
        time = self._clock()
        with self._database.read() as session:
            row = session.get(LoopLeaseRow, model)
            held = row is not None and row.holder == self._holder
            least = timedelta(seconds=self.seconds * _ENOUGH if held else 0.0)
            if row is not None and row.expire_time > as_row(time + least):
                return Lease(model, row.fence) if held else None
        until = as_row(time + timedelta(seconds=self.seconds))
        with self._database.begin(alone=True) as session:
            row = session.get(LoopLeaseRow, model)
            if row is None:
                row = LoopLeaseRow(model=model, holder=self._holder, fence=1, expire_time=until)
                session.add(row)
            elif row.holder != self._holder:
                if row.expire_time > as_row(time):
                    return None
                row.holder, row.fence = self._holder, row.fence + 1
            row.expire_time = until
            return Lease(model, row.fence)

    def release(self, lease: Lease) -> None:
        """Let another process take the lease at once."""
        with self._database.begin(alone=True) as session:
            row = session.get(LoopLeaseRow, lease.model)
            if row is not None and row.fence == lease.fence:
                row.expire_time = as_row(self._clock())


def gate_is_open(session: Session, model: str) -> bool:
    """Return whether the gate of a model that began last has neither decided nor ended with its cycle."""
    begun = select(EventRow.cycle).where(EventRow.model == model, EventRow.kind == GateBegun.kind)
    cycle = session.scalar(begun.order_by(EventRow.number.desc()).limit(1))
    endings = [f"{each.kind}-{cycle}" for each in (GateDecided, CycleEnded)]
    ended = select(EventRow.number).where(EventRow.model == model, EventRow.key.in_(endings))
    return cycle is not None and session.scalar(ended.limit(1)) is None


def _by_key(session: Session, model: str, key: str) -> EventRow | None:
    return session.scalar(select(EventRow).where(EventRow.model == model, EventRow.key == key))


def _last(session: Session, model: str) -> EventRow | None:
    return session.scalar(select(EventRow).where(EventRow.model == model).order_by(EventRow.number.desc()).limit(1))


def _row(event: Event) -> EventRow:
    return EventRow(
        model=event.model,
        number=event.number,
        cycle=event.cycle,
        kind=event.kind,
        key=event.key,
        time=as_row(event.time),
        payload=event.payload.model_dump(mode="json"),
    )


def _event(row: EventRow) -> Event:
    payload = parse_payload(row.kind, row.payload)
    return Event(row.model, row.number, row.cycle, datetime.fromisoformat(row.time), payload)


def _to_milliseconds(time: datetime) -> datetime:
    return datetime.fromisoformat(as_row(time))


def _not_alone(problem: str) -> Conflict:
    return Conflict(f"{problem}; read the log again before the next step", reason=NOT_ALONE)
