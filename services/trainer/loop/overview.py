"""How the loop of a model stands, in numbers: what waits, what was said, what was counted."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.data.observing import Role, State
from services.trainer.data.tables import ObservationRow, SampleRow, VoteRow
from services.trainer.feedback.queue import count_waiting
from services.trainer.feedback.tables import CaptureCountRow
from services.trainer.loop.state import LoopState


@dataclass(frozen=True)
class Overview:
    """Numbers of one model at one moment."""

    accepted: int
    """Samples to learn from."""
    accepted_since: int
    """Of these, the ones that no candidate has learnt which was promoted or refused."""
    states: dict[str, int]
    """Pictures by state."""
    waiting: int
    """Pictures that wait for a reviewer."""
    agreed: float | None
    """Share of what users said of answers that was consent; None where nothing was said."""
    lost: dict[int, int]
    """By version: answers that were to be captured and were dropped."""


def read_overview(session: Session, state: LoopState) -> Overview:
    """Return the numbers of the model of *state*."""
    model = state.model
    accepted, since = count_accepted(session, model, state.last_sample)
    states = select(ObservationRow.state, func.count()).where(ObservationRow.model == model)
    consent = (
        select(func.count().filter(VoteRow.agreed.is_(True)), func.count())
        .select_from(VoteRow)
        .join(ObservationRow, ObservationRow.number == VoteRow.observation)
        .where(ObservationRow.model == model, VoteRow.agreed.is_not(None))
    )
    agreed, said = session.execute(consent).one()
    lost: dict[int, int] = {}
    for row in session.scalars(select(CaptureCountRow).where(CaptureCountRow.model == model)):
        lost[row.version] = lost.get(row.version, 0) + sum(row.dropped.values())
    return Overview(
        accepted=accepted,
        accepted_since=since,
        states={str(State(name)): count for name, count in session.execute(states.group_by(ObservationRow.state))},
        waiting=count_waiting(session, model),
        agreed=agreed / said if said else None,
        lost=lost,
    )


def count_accepted(session: Session, model: str, after: int) -> tuple[int, int]:
    """Return how many samples of a model a snapshot may choose, and how many of them come after number *after*.

    Those to judge by are none of them, nor are samples of an earlier release that no picture stands for.
    """
    statement = (
        select(func.count(), func.count().filter(SampleRow.number > after))
        .select_from(SampleRow)
        .join(ObservationRow, ObservationRow.number == SampleRow.observation)
        .where(SampleRow.model == model, ObservationRow.role == Role.TRAIN)
    )
    accepted, since = session.execute(statement).one()
    return accepted, since
