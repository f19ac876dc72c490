"""What kind of pictures came in."""

from collections import Counter
from typing import Any

import numpy as np
from sqlalchemy import select

from services.trainer.analyst.figures import add_figure
from services.trainer.analyst.stopping import GoOn
from services.trainer.analyst.stored import StoredPictures
from services.trainer.data.collection import OPEN, Collection
from services.trainer.data.models import Model
from services.trainer.data.report import describe
from services.trainer.data.tables import ObservationRow
from services.trainer.loop.kinds import QUALITY
from services.trainer.recipes import make_options
from services.trainer.storage.database import Database

NEWEST = 1000
"""Pictures that are looked at."""
_READ_AT_ONCE = 50
_TOLD = {"sample_count", "formats", "widths", "heights", "sizes", "brightness", "contrast"}
"""Of the report on a data set; the rest of it shows pictures, or is about labels."""


def measure_quality(
    database: Database, pictures: StoredPictures, task: Model, last_draw: int, changed_number: int, go_on: GoOn
) -> None:
    """Describe the newest pictures and keep the figures.

    Args:
        database: Has the rows.
        pictures: Has the files.
        task: The model.
        last_draw: Up to which draws were compared in the same look; 0 for none.
        changed_number: Up to which changes the same look has heeded.
        go_on: As it says.
    """
    statement = (
        select(ObservationRow)
        .where(ObservationRow.model == task.name)
        .order_by(ObservationRow.number.desc())
        .limit(NEWEST)
    )
    with database.read() as session:
        rows = list(session.scalars(statement))[::-1]
    if not rows:
        return
    images = np.zeros((len(rows), *task.spec.shape), np.uint8)
    unreadable: dict[int, str] = {}
    for start in range(0, len(rows), _READ_AT_ONCE):
        go_on()
        block = rows[start : start + _READ_AT_ONCE]
        readable, pixels, _ = pictures.read(block, task.spec)
        positions = {row.number: start + offset for offset, row in enumerate(block)}
        read = [positions.pop(row.number) for row in readable]
        images[read] = pixels
        unreadable |= dict.fromkeys(positions.values(), "the file is gone or damaged")
    values = _describe(task, rows, images, unreadable)
    window = {
        "first": rows[0].number,
        "last": rows[-1].number,
        "last_draw": last_draw,
        "changed_number": changed_number,
    }
    with database.begin(alone=True) as session:
        add_figure(session, task.name, QUALITY, window, values)


def _describe(
    task: Model, rows: list[ObservationRow], images: np.ndarray, unreadable: dict[int, str]
) -> dict[str, Any]:
    collection = Collection(
        task.name,
        task.labels,
        task.spec,
        images,
        np.zeros(len(rows), np.int64),
        np.full(len(rows), OPEN, np.int8),
        [str(row.number) for row in rows],
        np.array([(row.width, row.height) for row in rows], np.int32),
        [row.format for row in rows],
        unreadable,
    )
    report = describe(collection, make_options("quick", {"dataset": task.name, "clean": True}))
    problems = {group.kind: group.count for group in report.problems}
    states = Counter(row.state for row in rows)
    return report.model_dump(mode="json", include=_TOLD) | {"problems": problems, "states": dict(states)}
