"""A PostgreSQL server of its own, and what the tests of it share with those of deletion."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from services.trainer.storage.database import Database
from tests.trainer.provenance.conftest import blobs, house, intake, model, policies, sifter

__all__ = ["blobs", "house", "intake", "model", "policies", "sifter"]
_PROGRAMS = Path("/usr/lib/postgresql")
"""Where Debian installs them, by version."""
_USER = "aimass"
_SETTINGS = "-c fsync=off -c listen_addresses='' -c unix_socket_directories='{folder}'"


@dataclass
class PostgreSQL:
    """A running server that listens on a socket in a folder."""

    folder: Path
    _numbers: Iterator[int] = field(default_factory=count)

    def url(self, name: str) -> str:
        """Return what `Database` opens."""
        return f"postgresql+psycopg://{_USER}@/{name}?host={self.folder}"

    def execute(self, statement: str, name: str = "postgres") -> None:
        """Do what an administrator does, outside of a transaction."""
        engine = create_engine(self.url(name), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def create(self, template: str = "template1") -> str:
        """Make a database, and return its URL."""
        name = f"trainer_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A server with a database `migrated` to copy."""
    programs = _find_programs()
    if programs is None:
        pytest.skip("initdb is neither on the path nor in /usr/lib/postgresql: install a PostgreSQL server")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: install aimass[postgresql]")
    with tempfile.TemporaryDirectory(prefix="pg") as name:  # short, as a socket's path must be; and not only root's
        folder = Path(name)
        user = _give_away(folder)
        data, log = folder / "data", folder / "log"

        def call(program: str, *arguments: str) -> None:
            command = [str(programs / program), "--pgdata", str(data), *arguments]
            subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

        call("initdb", "--username", _USER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
        call("pg_ctl", "start", "--wait", "--log", str(log), "--options", _SETTINGS.format(folder=folder))
        try:
            server = PostgreSQL(folder)
            server.execute("CREATE DATABASE migrated")
            with closing(Database(server.url("migrated"))) as database:
                database.migrate()
            yield server
        finally:
            call("pg_ctl", "stop", "--mode", "immediate")


def _find_programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    return max(_PROGRAMS.glob("*/bin"), key=lambda path: int(path.parent.name), default=None)


def _give_away(folder: Path) -> str | None:
    """Return whom the server must run as, since it refuses root, and give that user the folder; None is as we are."""
    if os.geteuid() != 0:
        return None
    user = next(each for each in pwd.getpwall() if each.pw_uid != 0 and each.pw_name in ("postgres", "nobody"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    return user.pw_name
