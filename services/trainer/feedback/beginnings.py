"""Where the streams that judge versions begin, and what retention leaves them.

Of draws that were forgotten for their age those are left that reviewers had chosen, so streams begin after them. But
whoever looks at a stream, takes its first draws away and looks again has two chances to be misled. Therefore contents
that a gate judges by are held, and begin where they began, as long as it is open. Judged draws, which tell a version's
accuracy for as long as it serves, begin anew rarely, a good way further on, and it is counted how often: each time has
its share of the error.
"""

import math
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Integer, String, column, exists, false, func, select, table
from sqlalchemy.orm import Session

from services.trainer.data.observing import Role
from services.trainer.data.tables import ObservationRow, PredictionRow, total_bytes
from services.trainer.feedback.tables import LoopModelRow

_EVENTS = table(
    "events", column("model", String), column("number", Integer), column("cycle", Integer), column("kind", String),
    column("key", String),
)  # fmt: skip
"""Belongs to `loop.tables`, which builds on this package; it is only read here."""
_BEGUN, _ENDINGS = "gate.begun", ("gate.decided", "cycle.ended")
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


def held_for_gate(session: Session, model: str) -> ColumnElement[bool]:
    """Return the condition that a picture is one of those that the gate which is open judges by."""
    row = session.get(LoopModelRow, model)
    if row is None or not _gate_is_open(session, model):
        return false()
    return _of_gate(row)


def limit_gate(session: Session, model: str, most_bytes: int) -> None:
    """Let the contents that an open gate judges by end with the newest draw, where they take *most_bytes* or more.

    When that happens does not depend on how they were judged. Later ones are then free to go, and capture goes on. The
    session's transaction must be alone.
    """
    row = session.get(LoopModelRow, model)
    if row is None or row.gate_end_draw is not None or not _gate_is_open(session, model):
        return
    held = select(total_bytes()).where(ObservationRow.model == model, _of_gate(row))
    if (session.scalar(held) or 0) >= most_bytes:
        row.gate_end_draw = row.last_draw


def begin_after(session: Session, model: str, forgotten: Sequence[int], before: str) -> None:
    """Let streams begin where they may, before the rows of pictures are deleted.

    Judged draws begin after all those from before a time, those that reviewers had chosen too: by their age, not by
    chance. The next gate begins there; one that is open goes on as it is.

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
    if not _gate_is_open(session, model):
        row.gate_begin_draw, row.gate_end_draw = row.incomplete_draw, None


def _begin_anew(session: Session, row: LoopModelRow, gone: int) -> None:
    beginning = next_beginning(row.incomplete_draw, gone, row.last_draw)
    passed = select(PredictionRow.version).where(
        PredictionRow.model == row.model, PredictionRow.draw > row.incomplete_draw, PredictionRow.draw <= beginning
    )
    counts = dict(row.restarts)
    for version in session.scalars(passed.distinct()):
        counts[str(version)] = counts.get(str(version), 0) + 1
    row.incomplete_draw, row.restarts = beginning, counts


def _of_gate(row: LoopModelRow) -> ColumnElement[bool]:
    drawn = (PredictionRow.observation == ObservationRow.number) & (PredictionRow.draw > row.gate_begin_draw)
    if row.gate_end_draw is not None:
        drawn &= PredictionRow.draw <= row.gate_end_draw
    return (ObservationRow.role == Role.JUDGE) & exists().where(drawn)


def _gate_is_open(session: Session, model: str) -> bool:
    events = select(_EVENTS.c.cycle).where(_EVENTS.c.model == model)
    begun = events.where(_EVENTS.c.kind == _BEGUN).order_by(_EVENTS.c.number.desc()).limit(1)
    cycle = session.scalar(begun)
    if cycle is None:
        return False
    ended = events.where(_EVENTS.c.key.in_([f"{kind}-{cycle}" for kind in _ENDINGS]))
    return session.scalar(ended.limit(1)) is None
