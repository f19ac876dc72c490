"""What gateways have answered, captured and lost, so that what is missing among the captured ones is known."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from services.trainer.clock import now
from services.trainer.data.tables import ModelRow
from services.trainer.feedback.tables import CaptureCountRow
from services.trainer.storage.database import Database

_GONE = ""
"""Stands for all gateways that are no more; none has this name."""


@dataclass(frozen=True)
class VersionCounts:
    """Sums of one version."""

    model: str
    version: int
    answered: int
    captured: Mapping[str, int]
    """By strategy."""
    dropped: Mapping[str, int]
    """By reason."""


def store_counts(database: Database, gateway: str, counts: Sequence[VersionCounts]) -> None:
    """Keep the sums of one process of the gateway; late ones, which are lower, change nothing.

    Raises:
        NotReady: The database does not answer.
    """
    with database.begin(alone=True) as session:
        known = set(session.scalars(select(ModelRow.name)))
        for each in counts:
            if each.model not in known:
                continue
            row = session.get(CaptureCountRow, (gateway, each.model, each.version))
            if row is None:
                row = CaptureCountRow(gateway=gateway, model=each.model, version=each.version, answered=-1)
                session.add(row)
            if each.answered >= row.answered:
                row.answered, row.time = each.answered, now()
                row.captured, row.dropped = dict(each.captured), dict(each.dropped)


def fold_counts(database: Database, model: str, before: str) -> int:
    """Add the sums of gateways that were heard of last before a time up in one row for each version.

    The sums over all gateways stay what they are.

    Args:
        database: Migrated.
        model: Name of the model.
        before: As rows have times; so long ago that a process that has not been heard of since is no more. One that
            lives all the same would be counted twice: it tells its sums from its beginning on.

    Returns:
        How many rows are no more.

    Raises:
        NotReady: The database does not answer.
    """
    with database.begin(alone=True) as session:
        statement = select(CaptureCountRow).where(CaptureCountRow.model == model, CaptureCountRow.time < before)
        rows = list(session.scalars(statement.where(CaptureCountRow.gateway != _GONE)))
        for row in rows:
            total = session.get(CaptureCountRow, (_GONE, model, row.version))
            if total is None:
                total = CaptureCountRow(
                    gateway=_GONE, model=model, version=row.version, answered=0, captured={}, dropped={}, time=row.time
                )
                session.add(total)
            total.answered += row.answered
            total.captured = dict(Counter(total.captured) + Counter(row.captured))
            total.dropped = dict(Counter(total.dropped) + Counter(row.dropped))
            total.time = max(total.time, row.time)
            session.delete(row)
            session.flush()
        return len(rows)


def sum_counts(database: Database, model: str) -> list[VersionCounts]:
    """Return the sums over all gateways, by version.

    Raises:
        NotReady: The database does not answer.
    """
    answered: Counter[int] = Counter()
    captured: dict[int, Counter[str]] = {}
    dropped: dict[int, Counter[str]] = {}
    with database.read() as session:
        for row in session.scalars(select(CaptureCountRow).where(CaptureCountRow.model == model)):
            answered[row.version] += row.answered
            captured.setdefault(row.version, Counter()).update(row.captured)
            dropped.setdefault(row.version, Counter()).update(row.dropped)
    return [
        VersionCounts(model, version, answered[version], captured[version], dropped[version])
        for version in sorted(answered)
    ]
