"""Alarms of drift, as the figures of the traffic raise them."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.loop.facts import Alarm
from services.trainer.loop.tables import FigureRow

DETECTORS = ("label_shift", "softmax_shift", "embedding_shift", "error_drift")
"""Kinds of the figures that may raise an alarm: where `alarm` is true, `level` has passed `threshold`."""


def last_looks(session: Session, model: str) -> tuple[tuple[str, int], ...]:
    """Return the number of the newest figure of each detector: where it is the same, the alarms are."""
    statement = (
        select(FigureRow.kind, func.max(FigureRow.number))
        .where(FigureRow.model == model, FigureRow.kind.in_(DETECTORS))
        .group_by(FigureRow.kind)
    )
    return tuple(sorted((kind, number) for kind, number in session.execute(statement)))


def read_alarms(session: Session, model: str) -> tuple[Alarm, ...]:
    """Return the alarms of a model, by rising number.

    Each figure that raises one is an alarm of its own, also where no draw has come since the one before: reviewers may
    have judged older draws meanwhile.
    """
    statement = select(FigureRow).where(
        FigureRow.model == model, FigureRow.kind.in_(DETECTORS), FigureRow.values["alarm"].as_boolean()
    )
    return tuple(
        Alarm(row.number, row.kind, float(row.values["level"]), float(row.values["threshold"]))
        for row in session.scalars(statement.order_by(FigureRow.number, FigureRow.kind))
    )
