"""Where streams begin, and what databases from before know of it."""

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from services.trainer.feedback.beginnings import next_beginning
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.storage.database import MIGRATIONS, Database


@pytest.mark.parametrize(
    ("beginning", "gone", "newest", "then"),
    [(0, 0, 100, 0), (30, 30, 100, 30), (0, 1, 100, 20), (30, 31, 131, 51), (30, 90, 131, 90), (30, 31, 31, 31)],
)
def test_judged_draws_begin_a_fifth_further_on_or_stay(beginning: int, gone: int, newest: int, then: int) -> None:
    assert next_beginning(beginning, gone, newest) == then


def test_draws_go_on_after_the_highest_number_that_rows_from_before_tell_of(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'trainer.db'}"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with create_engine(url).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0006_pseudonyms")
        for model in ("pets", "birds"):
            columns = "name, labels, preprocess_spec, create_time"
            connection.execute(text(f"INSERT INTO models ({columns}) VALUES (:model, '[]', '', '')"), {"model": model})
            connection.execute(
                text("INSERT INTO loop_models VALUES (:model, 'salt', '', '', :draw)"),
                {"model": model, "draw": 7 if model == "birds" else 3},
            )
        for kind, last in (("quality", 99), ("label_shift", 12)):
            connection.execute(
                text("INSERT INTO figures VALUES ('pets', :kind, 1, :window, '{}', '')"),
                {"kind": kind, "window": f'{{"first": 1, "last": {last}}}'},
            )
    database = Database(url)

    database.migrate()

    with database.read() as session:
        rows = [session.get_one(LoopModelRow, model) for model in ("pets", "birds")]
        assert [(row.last_draw, row.gate_begin_draw, row.gate_end_draw) for row in rows] == [
            (12, 3, None),
            (7, 7, None),
        ]
        assert [row.restarts for row in rows] == [{}, {}]
    database.close()
