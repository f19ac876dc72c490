"""Which versions the gate judges, found in the log."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.trainer.loop.cycle_payloads import CandidatePublished, CycleEnded, CycleStarted
from services.trainer.loop.tables import EventRow

_OF_VERSIONS = (CycleStarted.kind, CandidatePublished.kind, CycleEnded.kind)
"""Kinds of events by which it changes which versions are judged."""


@dataclass(frozen=True)
class Judged:
    """The versions of a cycle that is under way."""

    cycle: int
    champion: int
    candidate: int
    """0 before there is one."""


def find_judged(session: Session, model: str) -> Judged | None:
    """Return which versions of a model are judged; None where no cycle is under way."""
    statement = (
        select(EventRow.cycle, EventRow.kind, EventRow.payload)
        .where(EventRow.model == model, EventRow.kind.in_(_OF_VERSIONS))
        .order_by(EventRow.number.desc())
        .limit(2)
    )
    candidate = 0
    for cycle, kind, payload in session.execute(statement):
        if kind == CycleEnded.kind:
            return None
        if kind == CycleStarted.kind:
            return Judged(cycle, int(payload["champion"]), candidate or int(payload["candidate"]))
        candidate = int(payload["version"])
    return None
