"""What stands for a name says nothing without the key that the database draws once."""

import hashlib
import json
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from services.trainer.feedback.pseudonyms import read_pseudonyms
from services.trainer.storage.database import MIGRATIONS, Database

TIME = "2026-01-02T03:04:05.000Z"


def pseudonym(database: Database, name: str) -> str:
    with database.read() as session:
        return read_pseudonyms(session)(name)


def test_a_name_has_one_pseudonym_for_the_life_of_a_database_and_another_elsewhere(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'trainer.db'}"
    database, other = Database(url), Database(f"sqlite:///{tmp_path / 'other.db'}")
    for each in (database, other):
        each.migrate()

    found = pseudonym(database, "ada")
    Database(url).migrate()

    assert len(found) == 64
    assert pseudonym(Database(url), "ada") == found
    assert found not in {pseudonym(other, "ada"), pseudonym(database, "bob"), hashlib.sha256(b"ada").hexdigest()}


def test_digests_of_names_from_before_become_pseudonyms(tmp_path: Path) -> None:
    url, digest = f"sqlite:///{tmp_path / 'trainer.db'}", hashlib.sha256(b"ada").hexdigest()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with create_engine(url).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004_loop")
        columns = "name, labels, preprocess_spec, create_time"
        connection.execute(text(f"INSERT INTO models ({columns}) VALUES ('pets', '[]', '', '')"))
        connection.execute(text("INSERT INTO loop_models VALUES ('pets', 'salt', 'model:pets@5', '')"))
        connection.execute(
            text("INSERT INTO deletions VALUES ('deletion-1', 'CONTRIBUTOR', :subject, 'COMPLETED', '', '{}')"),
            {"subject": digest},
        )
        for number, payload in enumerate(({"subject_digest": digest}, {"by_hash": digest}, {"by_hash": ""}), 1):
            connection.execute(
                text("INSERT INTO events VALUES ('pets', :number, 0, 'kind', NULL, :time, :payload)"),
                {"number": number, "time": TIME, "payload": json.dumps(payload | {"rule": "AS_IT_WAS"})},
            )
    database = Database(url)

    database.migrate()

    ada = pseudonym(database, "ada")
    with database.read() as session:
        payloads = [json.loads(each) for each in session.scalars(text("SELECT payload FROM events ORDER BY number"))]
        subject = session.scalar(text("SELECT subject FROM deletions"))
    assert subject == ada
    assert payloads == [
        {"subject_digest": ada, "rule": "AS_IT_WAS"}, {"by_hash": ada, "rule": "AS_IT_WAS"},
        {"by_hash": "", "rule": "AS_IT_WAS"},
    ]  # fmt: skip
    assert digest not in "".join(map(json.dumps, payloads))
