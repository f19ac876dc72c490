"""Rows of figures: what was measured of a model's traffic, the newest of each kind kept."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from services.trainer.clock import now
from services.trainer.loop.tables import FigureRow

KEPT = 1000
"""Of each kind."""


def add_figure(session: Session, model: str, kind: str, window: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Add what was measured, and forget the oldest of its kind.

    Args:
        session: Its transaction must write.
        model: Name of the model.
        kind: One of `loop.kinds`, or of `loop.refusals`.
        window: Which predictions or pictures it is of.
        values: Figures, without names of anybody.
    """
    number = (session.scalar(select(func.max(FigureRow.number)).where(*_of(model, kind))) or 0) + 1
    session.add(FigureRow(model=model, kind=kind, number=number, window=dict(window), values=dict(values), time=now()))
    session.execute(delete(FigureRow).where(*_of(model, kind), FigureRow.number <= number - KEPT))


def last_figure(session: Session, model: str, kind: str) -> FigureRow | None:
    """Return the newest figure of a kind."""
    statement = select(FigureRow).where(*_of(model, kind)).order_by(FigureRow.number.desc()).limit(1)
    return session.scalar(statement)


def _of(model: str, kind: str) -> tuple[Any, ...]:
    return FigureRow.model == model, FigureRow.kind == kind
