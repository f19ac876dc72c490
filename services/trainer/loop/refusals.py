"""Versions that do not answer what they are to be judged by, as the analyst says."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.trainer.loop.tables import FigureRow

REFUSAL = "refusal"
"""Kind of the figures that say which `version` does not answer in which `cycle`, in the window; `rule` and, in words,
`detail` in the values."""


@dataclass(frozen=True)
class Refusal:
    """A version cannot be judged."""

    version: int
    rule: str


def read_refusal(session: Session, model: str, cycle: int, versions: tuple[int, ...]) -> Refusal | None:
    """Return which of *versions* does not answer in a cycle, the last of them where several do not; None for none."""
    statement = select(FigureRow).where(
        FigureRow.model == model, FigureRow.kind == REFUSAL, FigureRow.window["cycle"].as_integer() == cycle
    )
    rules = {row.window["version"]: row.values["rule"] for row in session.scalars(statement)}
    return next((Refusal(each, str(rules[each])) for each in reversed(versions) if each in rules), None)
