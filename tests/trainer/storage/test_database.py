import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from services.common.errors import InvalidInput, NotReady
from services.trainer.runs.table import RunRow
from services.trainer.storage import database as database_module
from services.trainer.storage.database import Base, Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "trainer.db"


@pytest.fixture
def database(path: Path) -> Database:
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with database.begin() as session:
        session.execute(text("CREATE TABLE numbers (number INTEGER)"))
    return database


def numbers(database: Database) -> list[int]:
    with database.read() as session:
        return list(session.scalars(text("SELECT number FROM numbers")))


def add(database: Database, number: int) -> None:
    with database.begin() as session:
        session.execute(text(f"INSERT INTO numbers VALUES ({number})"))


def test_migrations_make_the_tables_that_the_code_has(database: Database, path: Path) -> None:
    with create_engine(f"sqlite:///{path}").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, Base.metadata)

    assert [each for each in differences if RunRow.__tablename__ in str(each)] == []


def test_several_processes_may_migrate_at_once(path: Path) -> None:
    databases = [Database(f"sqlite:///{path}") for _ in range(6)]

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(Database.migrate, databases))

    with databases[0].read() as session:
        assert session.execute(text("SELECT count(*) FROM runs")).scalar() == 0


def test_after_an_error_nothing_of_a_transaction_is_kept(database: Database) -> None:
    def fail() -> None:
        with database.begin() as session:
            session.execute(text("INSERT INTO numbers VALUES (1)"))
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert numbers(database) == []


def test_transactions_that_read_and_then_write_do_not_lose_an_update(database: Database) -> None:
    add(database, 0)

    def count(_: int) -> None:
        with database.begin(alone=True) as session:
            before = session.execute(text("SELECT number FROM numbers")).scalar_one()
            session.execute(text("UPDATE numbers SET number = :next"), {"next": before + 1})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(count, range(40)))

    assert numbers(database) == [40]


def test_a_reader_neither_waits_for_a_writer_nor_sees_what_is_not_kept_yet(database: Database) -> None:
    written, may_end = threading.Event(), threading.Event()

    def write() -> None:
        with database.begin() as session:
            session.execute(text("INSERT INTO numbers VALUES (1)"))
            written.set()
            may_end.wait()

    writer = threading.Thread(target=write)
    writer.start()
    written.wait()
    during = numbers(database)
    may_end.set()
    writer.join()

    assert (during, numbers(database)) == ([], [1])


def test_what_was_kept_is_there_in_the_next_life(database: Database, path: Path) -> None:
    add(database, 7)
    database.close()

    assert numbers(Database(f"sqlite:///{path}")) == [7]


def test_a_database_that_stays_locked_is_not_ready(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "LOCK_SECONDS", 0)
    database = Database(f"sqlite:///{path}")
    database.migrate()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(NotReady, match="the trainer's database does not answer: database is locked; check"):
        add(database, 1)
    other.close()


def test_a_file_that_is_no_folder_for_a_database_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "trainer.db").mkdir()

    with pytest.raises(NotReady, match="unable to open database file"):
        Database(f"sqlite:///{tmp_path / 'trainer.db'}").migrate()


@pytest.mark.parametrize(
    ("url", "words"),
    [("trainer.db", "is not the URL of a database"), ("nosuch://host/db", "is not the URL of a database"),
     ("mysql+pymysql://user:secret@host/db", r"a driver that is not installed: .*; install aimass\[postgresql\]")],
    ids=["path", "kind", "driver"],
)  # fmt: skip
def test_what_is_no_database_is_refused_without_telling_a_password(url: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        Database(url)

    assert "secret" not in caught.value.message


def test_what_was_deleted_is_in_no_file(database: Database, path: Path) -> None:
    with database.begin() as session:
        session.execute(text("CREATE TABLE words (word TEXT)"))
        session.execute(text("INSERT INTO words VALUES ('a secret of ann'), ('a word of ben')"))
    database.truncate_log()
    with database.begin() as session:
        session.execute(text("DELETE FROM words WHERE word LIKE '%ann'"))

    database.truncate_log()

    files = b"".join(each.read_bytes() for each in path.parent.iterdir())
    assert b"a word of ben" in files
    assert b"a secret of ann" not in files


def test_what_is_still_read_cannot_be_truncated_yet(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_LAST_READER_SECONDS", 0)
    add(database, 1)
    with database.read() as session:
        session.execute(text("SELECT number FROM numbers")).all()
        add(database, 2)
        with pytest.raises(NotReady, match="what was deleted is still read in the trainer's database"):
            database.truncate_log()

    database.truncate_log()
    assert numbers(database) == [1, 2]


@pytest.mark.parametrize("begin", [0, 4096])
def test_a_damaged_file_is_named_with_the_way_out(database: Database, path: Path, begin: int) -> None:
    database.truncate_log()
    database.close()
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\x5a" * (path.stat().st_size - begin))

    with pytest.raises(NotReady, match=r"trainer\.db is damaged: .*; stop the suite and put a copy .* in its place"):
        Database(f"sqlite:///{path}").migrate()
