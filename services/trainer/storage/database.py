"""The trainer's database: SQLite in a file by default, PostgreSQL where several trainers share one."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session

from services.common.errors import InvalidInput, NotReady

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_SECONDS = 30
"""How long one process waits until another's transaction is over."""
_LAST_READER_SECONDS = 5
"""How long `truncate_log` waits for those that still read what was deleted; writers wait meanwhile."""
_GONE_SECONDS = 60
"""After which PostgreSQL ends the transaction of a machine that is not heard of: others wait for it."""
_POSTGRESQL_DISK_FULL = "53100"
_NOT_ALLOWED = "42501"
_FULL = (sqlite3.SQLITE_FULL, _POSTGRESQL_DISK_FULL)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, "XX001", "XX002")
_PRIMARY_CODE = 0xFF
"""The bits of SQLite's codes that say what has failed; those above say where."""
_READING = "reading"
_READS = {"postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}}
"""Options of connections that only read; in SQLite a transaction sees one state by itself."""
_MIGRATING = threading.Lock()
"""Alembic keeps what it works on in a variable of its module."""


class Base(DeclarativeBase):
    """What all tables derive from; each lies beside the code that owns its rows."""


class Database:
    """Opened once for a process; any thread may use it.

    Args:
        url: As SQLAlchemy takes it, such as `sqlite:////var/lib/aimass/trainer.db` or `postgresql+psycopg://…`.

    Raises:
        InvalidInput: It is not a URL of a database, or its driver is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            is_server = parsed.get_backend_name() != "sqlite"
            self._engine = create_engine(parsed, pool_pre_ping=is_server)  # a file never hangs up
        except ArgumentError as error:  # does not name the URL, which may hold a password
            raise InvalidInput(f"TRAINER_DATABASE is not the URL of a database that is known: {error}") from error
        except ImportError as error:
            raise InvalidInput(
                f"TRAINER_DATABASE needs a driver that is not installed: {error}; install aimass[postgresql] and name "
                "a database as postgresql+psycopg://…, or use SQLite"
            ) from error
        self._place = f"on {parsed.host or 'its server'}"
        self._name = self._place
        if self._engine.dialect.name == "sqlite":
            folder = Path(parsed.database or "").parent
            folder.mkdir(parents=True, exist_ok=True)
            self._place = f"in {folder.absolute()}"
            self._name = str(Path(parsed.database or "").absolute())
            _prepare_sqlite(self._engine)
        elif self._engine.dialect.name == "postgresql":
            _prepare_postgresql(self._engine)
        self._reading = self._engine.execution_options(**{_READING: True}, **_READS.get(self._engine.dialect.name, {}))

    def migrate(self) -> None:
        """Bring the tables to the newest form; several processes may do so at once.

        Raises:
            NotReady: The database cannot be reached.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with _MIGRATING, self._answering(), self._engine.begin() as connection:
            _exclude_others(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def begin(self, *, alone: bool = False) -> Iterator[Session]:
        """Open a session whose block is one transaction: all of it is kept, or after an error none.

        Args:
            alone: No other transaction that asks for the same goes on meanwhile, whatever the rows that it touches.

        Raises:
            NotReady: The database cannot be reached.
            InvalidInput: A value is none that PostgreSQL can keep.
        """
        with self._answering(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            if alone:
                _exclude_others(session.connection())
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session that only reads; it sees one state, and neither waits for a writer nor holds one up.

        Raises:
            NotReady: The database cannot be reached.
            InvalidInput: A value that is looked for is none that PostgreSQL can keep.
        """
        with self._answering(), Session(self._reading, expire_on_commit=False) as session, session.begin():
            yield session

    def truncate_log(self) -> None:
        """Leave nothing in SQLite's write-ahead log, which has pages as they were before something was deleted.

        What was deleted is then in no file of the database. PostgreSQL shows it to nobody, but keeps it in its files
        until it has vacuumed and used their room again, and in its log until that is recycled: both are its
        administrator's to arrange.

        Raises:
            NotReady: Somebody still reads, or the database cannot be reached.
        """
        if self._engine.dialect.name != "sqlite":
            return
        with self._answering(), closing(self._engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout = {_LAST_READER_SECONDS * 1000}")
            try:
                (busy, _, _) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                cursor.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}")
        if busy:
            raise NotReady(
                f"what was deleted is still read in the trainer's database after {_LAST_READER_SECONDS} seconds; try "
                "again when that has ended"
            )

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Say in a sentence why the database fails, without a password."""
        try:
            yield
        except DatabaseError as error:
            if _code(error) in _FULL:
                raise NotReady(
                    f"the disk of the trainer's database is full; make room {self._place} and try again",
                    reason="DISK_FULL",
                ) from error
            if _code(error) in _DAMAGED:
                raise NotReady(
                    f"the trainer's database {self._name} is damaged: {error.orig}; stop the suite and put a copy from "
                    "before in its place, or move it away to begin with an empty one",
                    reason="DATABASE_DAMAGED",
                ) from error
            if isinstance(error, DataError):
                raise InvalidInput(
                    f"a value cannot be kept in the trainer's database: {_first_line(error)}; leave out what it does "
                    "not take",
                    reason="NOT_STORABLE",
                ) from error
            if _code(error) == _NOT_ALLOWED:
                raise NotReady(
                    f"the trainer's database {self._name} does not let its user in: {_first_line(error)}; make that "
                    "user the owner of the database",
                    reason="DATABASE_REFUSES",
                ) from error
            if not isinstance(error, OperationalError):
                raise
            raise NotReady(
                f"the trainer's database does not answer: {error.orig}; check TRAINER_DATABASE and try again"
            ) from error


def _code(error: DatabaseError) -> int | str | None:
    code: int | str | None = getattr(error.orig, "sqlite_errorcode", getattr(error.orig, "sqlstate", None))
    return code & _PRIMARY_CODE if isinstance(code, int) else code


def _first_line(error: DatabaseError) -> str:
    """Return what is the matter without the details, which may tell what rows hold."""
    return str(error.orig).partition("\n")[0]


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where `begin` below says so
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}")
        cursor.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
        cursor.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only unlinked
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that first reads and later writes could otherwise meet another one's write in between and fail.
        reading = connection.get_execution_options().get(_READING)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
        cursor.execute(f"SET tcp_keepalives_idle = {_GONE_SECONDS // 2}")
        cursor.execute(f"SET tcp_keepalives_interval = {_GONE_SECONDS // 6}")
        cursor.execute("SET tcp_keepalives_count = 3")
        cursor.close()
        connection.commit()  # a transaction in which a setting was made takes it away when it is rolled back


def _exclude_others(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7301)")
