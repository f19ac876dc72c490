"""How the loop of a model stands, in numbers: what waits, what was said, what was counted."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.data.observing import Role, State
from services.trainer.data.tables import ObservationRow, SampleRow, VoteRow
from services.trainer.feedback.queue import count_waiting
from services.trainer.feedback.tables import CaptureCountRow, LoopModelRow
from services.trainer.feedback.trust import WAITS_FOR_EMBEDDING
from services.trainer.loop.holdout import find_holdout
from services.trainer.loop.policy import LoopPolicy
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
    has_holdout: bool
    """Whether candidates can be judged."""


def read_overview(session: Session, state: LoopState, policy: LoopPolicy) -> Overview:
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
        has_holdout=has_holdout(session, model, policy),
    )


def newest_sample(session: Session, model: str) -> int:
    """Return the number of the sample of a model that came last; 0 where there is none."""
    statement = select(SampleRow.number).where(SampleRow.model == model).order_by(SampleRow.number.desc()).limit(1)
    return session.scalar(statement) or 0


def has_holdout(session: Session, model: str, policy: LoopPolicy) -> bool:
    """Whether a model has a set to judge candidates on: its base, or the one that the policy names, once it is read."""
    if policy.judging.holdout:
        return find_holdout(session, model, policy.judging.holdout) is not None
    return bool(base_name(session, model))


def pictures_wait(session: Session, model: str) -> bool:
    """Whether something was sent or said of a picture that no verdict heeds, for want of an analyst."""
    of_model = select(ObservationRow.number).where(ObservationRow.model == model)
    pending = of_model.where(ObservationRow.state == State.PENDING, ObservationRow.reason == WAITS_FOR_EMBEDDING)
    stale = of_model.where(ObservationRow.stale)
    return any(session.scalar(each.limit(1)) is not None for each in (stale, pending))


def base_name(session: Session, model: str) -> str:
    """Return the name of the set that samples of a model are learnt beside; empty where it has none yet."""
    row = session.get(LoopModelRow, model)
    return row.base if row is not None else ""


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
