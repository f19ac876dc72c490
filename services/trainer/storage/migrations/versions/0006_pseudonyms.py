"""A key, without which digests of names cannot be guessed; those that are there get it too."""

import hashlib
import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006_pseudonyms"
down_revision = "0005_scale"

_BYTES = 32
_OF_NAMES = ("subject_digest", "by_hash")
"""Fields of events that hold a digest of a name."""


def upgrade() -> None:
    """Draw the key, and put the keyed digest of each digest of a name in its place."""
    table = op.create_table(
        "pseudonym_keys",
        sa.Column("number", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(2 * _BYTES), nullable=False),
    )
    key = secrets.token_bytes(_BYTES)
    op.bulk_insert(table, [{"number": 1, "key": key.hex()}])
    connection = op.get_bind()
    deletions = sa.table("deletions", sa.column("id", sa.String), sa.column("subject", sa.String))
    for row in connection.execute(sa.select(deletions)).all():
        changed = {"subject": _keyed(row.subject, key)}
        connection.execute(sa.update(deletions).where(deletions.c.id == row.id).values(changed))
    events = sa.table(
        "events", sa.column("model", sa.String), sa.column("number", sa.BigInteger), sa.column("payload", sa.JSON)
    )
    for event in connection.execute(sa.select(events)).all():
        payload = _with_keyed(event.payload, key)
        if payload != event.payload:
            this = (events.c.model == event.model) & (events.c.number == event.number)
            connection.execute(sa.update(events).where(this).values(payload=payload))


def _with_keyed(payload: dict[str, Any], key: bytes) -> dict[str, Any]:
    return payload | {name: _keyed(payload[name], key) for name in _OF_NAMES if payload.get(name)}


def _keyed(digest: str, key: bytes) -> str:
    return hashlib.blake2b(digest.encode(), digest_size=_BYTES, key=key).hexdigest()
