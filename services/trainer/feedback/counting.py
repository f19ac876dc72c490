"""What gateways have answered, captured and lost, so that what is missing among the captured ones is known."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from services.trainer.clock import now
from services.trainer.data.tables import ModelRow
from services.trainer.feedback.tables import CaptureCountRow
from services.trainer.storage.database import Database


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
    with database.begin() as session:
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
