"""Which pictures are listed, in what order, and which of them wait for a reviewer."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Double, Select, and_, case, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from services.trainer.data.models import Model
from services.trainer.data.observing import Role, State
from services.trainer.data.tables import ObservationRow, PredictionRow, VoteRow
from services.trainer.feedback.blinding import HELD_UP, hides_words, is_decided, is_drawn
from services.trainer.feedback.tables import AnswerRow
from services.trainer.feedback.views import Versions

Statement = Select[*tuple[Any, ...]]

_AGREED = 10**12
"""Added to the draws of pictures on which candidate and champion agree, so that they come last."""


class Order(StrEnum):
    """In which pictures are listed."""

    NEWEST = "NEWEST"
    UNCERTAIN = "UNCERTAIN"
    """Those first of which the model was least sure; only those that it has answered."""
    DISAGREEMENT = "DISAGREEMENT"
    """Draws that judge and that no reviewer has decided on; those first on which candidate and champion differ."""
    DRAWN = "DRAWN"
    """Draws that no reviewer has decided on, in their order."""


@dataclass(frozen=True)
class ObservationFilter:
    """Which pictures are listed; what is empty does not matter."""

    states: frozenset[State] = frozenset()
    label: str = ""
    """Accepted or leading; one of the model's. Pictures of which reviewers may not see it are left out."""
    contributor: str = ""
    """Has said something of it."""
    role: Role | None = None


def ordered(task: Model, order: Order, versions: Versions | None) -> tuple[ColumnElement[Any], Statement]:
    """Return what pictures of a model are listed by, rising, and the statement that gives them with it."""
    mine = ObservationRow.model == task.name
    if order is Order.NEWEST:
        key: ColumnElement[Any] = ObservationRow.number * -1
        return key, select(ObservationRow, key).where(mine)
    if order is Order.UNCERTAIN:
        probability = PredictionRow.labels[(0, 1)].as_float()
        least = _each(func.min(probability), PredictionRow.model == task.name)
        key = least.c.value.cast(Double)
        return key, select(ObservationRow, key).join(least, least.c.observation == ObservationRow.number).where(mine)
    draws = _each(func.min(PredictionRow.draw), PredictionRow.model == task.name, PredictionRow.draw.is_not(None))
    key = draws.c.value
    undecided = and_(mine, ~is_decided())
    if order is Order.DRAWN:
        return key, select(ObservationRow, key).join(draws, draws.c.observation == ObservationRow.number).where(
            undecided
        )
    differing = _is_disputed(task.name, versions) if versions else None
    key = key + (_AGREED if differing is None else case((differing, 0), else_=_AGREED))
    statement = select(ObservationRow, key).join(draws, draws.c.observation == ObservationRow.number)
    return key, statement.where(undecided, ObservationRow.role == Role.JUDGE)


def _each(value: ColumnElement[Any], *conditions: ColumnElement[bool]) -> Any:
    """Return a table of one value for each picture."""
    statement = select(PredictionRow.observation, value.label("value")).where(*conditions)
    return statement.group_by(PredictionRow.observation).subquery()


def _is_disputed(model: str, versions: Versions) -> ColumnElement[bool]:
    ours, theirs = aliased(AnswerRow), aliased(AnswerRow)
    return exists().where(
        ours.model == model,
        ours.version == versions.champion,
        ours.observation == ObservationRow.number,
        theirs.model == model,
        theirs.version == versions.candidate,
        theirs.observation == ObservationRow.number,
        ours.best != theirs.best,
    )


def filtered(task: Model, statement: Statement, wanted: ObservationFilter) -> Statement:
    """Return *statement* for those pictures alone that are wanted.

    Raises:
        InvalidInput: The label is not one of the model's.
    """
    if wanted.states:
        statement = statement.where(ObservationRow.state.in_(sorted(wanted.states)))
    if wanted.label:
        statement = statement.where(ObservationRow.label == task.label_number(wanted.label), ~hides_words())
    if wanted.contributor:
        said = exists().where(VoteRow.observation == ObservationRow.number, VoteRow.contributor == wanted.contributor)
        statement = statement.where(said)
    return statement if wanted.role is None else statement.where(ObservationRow.role == wanted.role)


def count_waiting(session: Session, model: str) -> int:
    """Return how many pictures wait for a reviewer: those held up, and draws that nobody has decided on."""
    waits = or_(ObservationRow.state.in_(HELD_UP), and_(is_drawn(), ~is_decided()))
    return session.scalar(select(func.count()).where(ObservationRow.model == model, waits)) or 0
