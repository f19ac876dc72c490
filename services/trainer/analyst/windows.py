"""The two stretches of randomly drawn predictions that are compared: how the traffic was, and how it is."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.data.tables import PredictionRow
from services.trainer.loop.kinds import SHIFTS
from services.trainer.loop.streams import last_incomplete
from services.trainer.loop.tables import FigureRow


@dataclass(frozen=True)
class Window:
    """Draws from the first to the last, both included."""

    first: int
    last: int


@dataclass(frozen=True)
class Windows:
    """Two stretches of equally many draws, without one in common."""

    reference: Window
    recent: Window


def find_windows(session: Session, model: str, size: int) -> Windows | None:
    """Return the first draws since the last alarm and the newest ones, *size* of each; None where there are too few.

    After an alarm the reference begins anew, so that one change raises one alarm; and after draws of which some were
    forgotten for their age, since what is left of them was chosen.
    """
    begin = max(_last_alarm(session, model), last_incomplete(session, model))
    draws = select(PredictionRow.draw).where(PredictionRow.model == model, PredictionRow.draw > begin)
    reference, recent = (
        [draw for draw in session.scalars(draws.order_by(order).limit(size)) if draw is not None]
        for order in (PredictionRow.draw, PredictionRow.draw.desc())
    )
    if len(reference) < size or reference[-1] >= recent[-1]:
        return None
    return Windows(Window(reference[0], reference[-1]), Window(recent[-1], recent[0]))


def _last_alarm(session: Session, model: str) -> int:
    """Return the last draw of the newest window that raised an alarm; 0 for none."""
    statement = select(func.max(FigureRow.window["last"].as_integer())).where(
        FigureRow.model == model, FigureRow.kind.in_(SHIFTS), FigureRow.values["alarm"].as_boolean()
    )
    return session.scalar(statement) or 0
