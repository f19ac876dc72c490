"""Sums of gateways stay what they are, whichever of them are no more."""

import pytest
from sqlalchemy import select, update

from services.trainer.feedback.counting import VersionCounts, fold_counts, store_counts, sum_counts
from services.trainer.feedback.tables import CaptureCountRow
from services.trainer.storage.database import Database

pytestmark = pytest.mark.usefixtures("model")


def counts(version: int, answered: int) -> VersionCounts:
    return VersionCounts("pets", version, answered, {"RANDOM": answered // 2}, {"QUEUE_FULL": answered % 2})


def age(database: Database, gateway: str) -> None:
    with database.begin() as session:
        rows = update(CaptureCountRow).where(CaptureCountRow.gateway == gateway)
        session.execute(rows.values(time="2020-01-01T00:00:00.000Z"))


def gateways(database: Database) -> list[tuple[str, int]]:
    with database.read() as session:
        statement = select(CaptureCountRow.gateway, CaptureCountRow.version).order_by(
            CaptureCountRow.gateway, CaptureCountRow.version
        )
        return [(gateway, version) for gateway, version in session.execute(statement)]


def test_gateways_that_are_no_more_become_one_row_for_each_version(database: Database) -> None:
    store_counts(database, "first", [counts(1, 7), counts(2, 5)])
    store_counts(database, "second", [counts(1, 9)])
    store_counts(database, "third", [counts(1, 3)])
    before = sum_counts(database, "pets")
    age(database, "first")
    assert fold_counts(database, "pets", "2021") == 2
    age(database, "second")

    assert fold_counts(database, "pets", "2021") == 1
    assert fold_counts(database, "pets", "2021") == fold_counts(database, "birds", "2021") == 0

    assert gateways(database) == [("", 1), ("", 2), ("third", 1)]
    assert sum_counts(database, "pets") == before
    assert [(each.answered, each.dropped) for each in before] == [(19, {"QUEUE_FULL": 3}), (5, {"QUEUE_FULL": 1})]
