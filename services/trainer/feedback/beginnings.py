"""Where the streams that judge versions begin, and what retention leaves them.

Of draws that were forgotten for their age those are left that reviewers had chosen, so streams begin after them. But
whoever looks at a stream, takes its first draws away and looks again has two chances to be misled. Therefore contents
that a gate judges by are held, and begin where they began, as long as it is open. Judged draws, which tell a version's
accuracy for as long as it serves, begin anew rarely, a good way further on, and it is counted how often: each time has
its share of the error.
"""

import math
from collections.abc import Callable, Sequence

from sqlalchemy import ColumnElement, exists, false, func, select
from sqlalchemy.orm import Session

from services.trainer.data.observing import Role
from services.trainer.data.tables import ObservationRow, PredictionRow, total_bytes
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.storage.database import Database

GateIsOpen = Callable[[Session, str], bool]
"""Says of a model, by its name, whether a gate judges one of its candidates now."""
_PARTS = 5


def next_beginning(beginning: int, gone: int, newest: int) -> int:
    """Return the draw that judged draws begin after when those up to *gone* are forgotten.

    Where it moves at all it passes a fifth of what there is, so that it moves about five times until all has gone once.

    Args:
        beginning: Draw that they begin after now.
        gone: Last draw of the time of which pictures are forgotten.
        newest: Newest draw.
    """
    if gone <= beginning:
        return beginning
    return max(gone, beginning + math.ceil((newest - beginning) / _PARTS))


def begin_gate(session: Session, model: str) -> None:
    """Let the contents that a new gate judges by begin where streams may, and end nowhere.

    The session's transaction must be alone, and be the one that says that the gate has begun.
    """
    row = session.get(LoopModelRow, model)
    if row is not None:
        row.gate_begin_draw, row.gate_end_draw = row.incomplete_draw, None


def held_for_gate(session: Session, model: str, gate_is_open: GateIsOpen) -> ColumnElement[bool]:
    """Return the condition that a picture is one of those that the gate which is open judges by."""
    row = session.get(LoopModelRow, model)
    if row is None or not gate_is_open(session, model):
        return false()
    return _of_gate(row)


def limit_gate(database: Database, model: str, most_bytes: int, gate_is_open: GateIsOpen) -> None:
    """Let the contents that an open gate judges by end with the newest draw, where they take *most_bytes* or more.

    When that happens does not depend on how they were judged. Later ones are then free to go, and capture goes on.

    Raises:
        NotReady: The database does not answer.
    """
    with database.read() as session:  # first, as writers wait while the sizes are added up below
        if _full_gate(session, model, most_bytes, gate_is_open) is None:
            return
    with database.begin(alone=True) as session:
        row = _full_gate(session, model, most_bytes, gate_is_open)
        if row is not None:
            row.gate_end_draw = row.last_draw


def begin_after(session: Session, model: str, forgotten: Sequence[int], before: str) -> None:
    """Let streams begin where they may, before the rows of pictures are deleted.

    Judged draws begin after all those from before a time, those that reviewers had chosen too: by their age, not by
    chance. The next gate begins there, as `begin_gate` has it; one that is open goes on as it is.

    Args:
        session: Its transaction must be alone.
        model: Name of the model.
        forgotten: Numbers of the pictures, no more than fit into one statement.
        before: They came, and were answered, before that time, as rows have times.
    """
    row = session.get(LoopModelRow, model)
    if row is None:
        return
    mine = select(func.max(PredictionRow.draw)).where(PredictionRow.model == model)
    lost = session.scalar(mine.where(PredictionRow.observation.in_(forgotten))) or 0
    if lost > row.incomplete_draw:
        old = mine.join(ObservationRow, ObservationRow.number == PredictionRow.observation)
        old = old.where(PredictionRow.time < before, ObservationRow.create_time < before)
        _begin_anew(session, row, session.scalar(old) or 0)


def _begin_anew(session: Session, row: LoopModelRow, gone: int) -> None:
    beginning = next_beginning(row.incomplete_draw, gone, row.last_draw)
    passed = select(PredictionRow.version).where(
        PredictionRow.model == row.model, PredictionRow.draw > row.incomplete_draw, PredictionRow.draw <= beginning
    )
    counts = dict(row.restarts)
    for version in session.scalars(passed.distinct()):
        counts[str(version)] = counts.get(str(version), 0) + 1
    row.incomplete_draw, row.restarts = beginning, counts


def _full_gate(session: Session, model: str, most_bytes: int, gate_is_open: GateIsOpen) -> LoopModelRow | None:
    """Return the row of a model whose open gate has no end yet and holds *most_bytes* or more."""
    row = session.get(LoopModelRow, model)
    if row is None or row.gate_end_draw is not None or not gate_is_open(session, model):
        return None
    held = select(total_bytes()).where(ObservationRow.model == model, _of_gate(row))
    return row if (session.scalar(held) or 0) >= most_bytes else None


def _of_gate(row: LoopModelRow) -> ColumnElement[bool]:
    drawn = (PredictionRow.observation == ObservationRow.number) & (PredictionRow.draw > row.gate_begin_draw)
    if row.gate_end_draw is not None:
        drawn &= PredictionRow.draw <= row.gate_end_draw
    return (ObservationRow.role == Role.JUDGE) & exists().where(drawn)
