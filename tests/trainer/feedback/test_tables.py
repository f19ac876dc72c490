from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from services.trainer.data import tables as data_tables
from services.trainer.feedback import tables as feedback_tables
from services.trainer.loop import tables as loop_tables
from services.trainer.runs import table as run_tables
from services.trainer.storage.database import Base, Database

ALL = (data_tables, feedback_tables, loop_tables, run_tables)


def test_migrations_make_all_tables_that_the_code_has(tmp_path: Path) -> None:
    names = {row.__tablename__ for module in ALL for row in vars(module).values() if hasattr(row, "__tablename__")}
    database = Database(f"sqlite:///{tmp_path / 'trainer.db'}")
    database.migrate()
    with create_engine(f"sqlite:///{tmp_path / 'trainer.db'}").connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)

    wrong = [each for each in differences if any(name in str(each) for name in names)]
    assert {"observations", "neighbourhoods", "answers", "loop_models"} <= names
    assert wrong == []
