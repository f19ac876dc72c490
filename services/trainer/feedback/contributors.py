"""Who gives feedback: keys by which contributors are known, and what their word is worth."""

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from services.common.errors import InvalidInput, NotAllowed, NotFound
from services.common.identity import ANONYMOUS, Caller, Scope
from services.trainer.clock import now
from services.trainer.data.observing import mark_changed
from services.trainer.data.tables import VoteRow
from services.trainer.feedback.forgotten import forgotten_until
from services.trainer.feedback.tables import ContributorRow, KeyRow
from services.trainer.storage.database import Database

LOOK_SECONDS = 0.5
"""Between two looks at the keys; the contract states that gateways know of a change within a second."""

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_ID_BYTES, _SECRET_BYTES = 6, 32


@dataclass(frozen=True)
class Key:
    """A key, without its secret, which nobody keeps."""

    id: str
    contributor: str
    scopes: frozenset[Scope]
    trusted: bool
    blocked: bool
    create_time: str
    revoke_time: str
    """Empty where it is valid."""


@dataclass(frozen=True)
class ValidKey:
    """What a gateway must know of a key."""

    digest: str
    """SHA-256 of the secret, 64 hexadecimal digits."""
    contributor: str
    scopes: frozenset[Scope]
    trusted: bool


@dataclass(frozen=True)
class Standing:
    """What somebody's word is worth."""

    trusted: bool
    """It decides by itself."""
    blocked: bool
    """It counts for nothing."""


def create_key(database: Database, contributor: str, scopes: Collection[Scope], trusted: bool) -> tuple[Key, str]:
    """Make a key, and its contributor where the name is new; return it with its secret, which is shown this once.

    Args:
        database: Of contributors.
        contributor: 1 to 64 letters, digits, `.`, `_`, `@` and `-`; not `anonymous` in any case.
        scopes: What the key allows.
        trusted: Whether the contributor's word decides. One that is trusted already stays so.

    Raises:
        InvalidInput: The name is malformed, or there are no scopes.
    """
    if not _NAME.fullmatch(contributor) or contributor.casefold() == ANONYMOUS:
        raise InvalidInput(
            f"contributor {contributor[:100]!r} is not valid; use 1 to 64 letters, digits, '.', '_', '@' and '-', and "
            f"another name than {ANONYMOUS}, in whatever case",
            field="contributor",
        )
    if not scopes:
        raise InvalidInput(
            f"the key of {contributor} would allow nothing; name at least one scope of {', '.join(Scope)}",
            field="scopes",
        )
    key_id = secrets.token_hex(_ID_BYTES)
    secret = f"am_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    with database.begin(alone=True) as session:
        person = _person(session, contributor)
        if trusted and not person.trusted:
            _change(session, person, trusted=True)
        row = KeyRow(
            id=key_id,
            digest=key_digest(secret),
            contributor=contributor,
            scopes=sorted(scopes),
            create_time=now(),
            revoke_time=None,
        )
        session.add(row)
        return _key(row, person), secret


def key_digest(secret: str) -> str:
    """Return by what a key is known: SHA-256. It has 256 random bits, so neither salt nor stretching is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def list_keys(database: Database) -> list[Key]:
    """Return all keys by contributor, then by age."""
    statement = (
        select(KeyRow, ContributorRow)
        .join(ContributorRow, KeyRow.contributor == ContributorRow.name)
        .order_by(KeyRow.contributor, KeyRow.create_time, KeyRow.id)
    )
    with database.read() as session:
        return [_key(row, person) for row, person in session.execute(statement)]


def revoke_key(database: Database, key_id: str) -> Key:
    """Make a key invalid; one that is stays as it is.

    Raises:
        NotFound: There is no such key.
    """
    with database.begin(alone=True) as session:
        row = session.get(KeyRow, key_id)
        if row is None:
            raise NotFound(
                f"key {key_id[:50]!r} is unknown; name one that ListKeys or `aimass keys list` gives",
                reason="KEY_NOT_FOUND",
                field="id",
            )
        row.revoke_time = row.revoke_time or now()
        return _key(row, session.get_one(ContributorRow, row.contributor))


def set_contributor(database: Database, name: str, *, trusted: bool | None = None, blocked: bool | None = None) -> int:
    """Change what a contributor's word is worth, that which was said already too.

    Args:
        database: Of contributors.
        name: Who; `anonymous` for all on this machine without a key.
        trusted: Whether the word decides by itself; None leaves it.
        blocked: Whether it counts for nothing; None leaves it.

    Returns:
        How many pictures must be judged again.

    Raises:
        NotFound: There is no such contributor.
    """
    with database.begin(alone=True) as session:
        if name != ANONYMOUS and session.get(ContributorRow, name) is None:
            raise NotFound(
                f"contributor {name[:100]!r} is unknown; name one that ListKeys or `aimass keys list` gives",
                reason="CONTRIBUTOR_NOT_FOUND",
                field="contributor",
            )
        return _change(session, _person(session, name), trusted=trusted, blocked=blocked)


def standing_of(session: Session, caller: Caller) -> Standing:
    """Return what the word of *caller* is worth, as the table has it.

    Who has no row is not trusted, whatever the gateway says: the row goes with the keys. The owner needs none.
    """
    row = session.get(ContributorRow, caller.contributor)
    if row is None:
        return Standing(caller.trusted and not caller.contributor, False)
    return Standing(row.trusted, row.blocked)


def is_trusted(session: Session, caller: Caller, began: datetime) -> bool:
    """Return whether the word of *caller* decides by itself.

    It is to be asked in the transaction that writes the word: a call may last while the contributor is distrusted,
    blocked or deleted.

    Args:
        session: Of that transaction.
        caller: Who speaks.
        began: When the call did; what began before a contributor was deleted is not taken under a new key either.

    Raises:
        NotAllowed: Nothing is taken of them.
    """
    until = forgotten_until(session, [caller.contributor]).get(caller.contributor)
    if until is not None and began < until:
        raise NotAllowed(
            f"what {caller.contributor} has given is deleted, and what was under way is not taken; begin again once "
            "the deletion is completed, with a new key where there was one",
            reason="CONTRIBUTOR_DELETED",
        )
    standing = standing_of(session, caller)
    if standing.blocked:
        raise NotAllowed(
            f"what {caller.contributor} says is not taken; ask the owner to unblock the contributor",
            reason="CONTRIBUTOR_BLOCKED",
        )
    return standing.trusted


def check_reader(database: Database, caller: Caller) -> None:
    """Return where *caller* may see what others have sent.

    Raises:
        NotAllowed: They are neither trusted nor an administrator.
    """
    if Scope.ADMIN in caller.scopes:
        return
    with database.read() as session:
        standing = standing_of(session, caller)
    if standing.blocked or not standing.trusted:
        raise NotAllowed(
            f"{caller.contributor or 'the caller'} is not trusted to see the pictures of others; ask the owner for a "
            f"key that is trusted, or one with scope {Scope.ADMIN}",
            reason="NOT_TRUSTED",
        )


async def watch_keys(database: Database) -> AsyncIterator[tuple[ValidKey, ...]]:
    """Yield all valid keys, now and after each change, whichever trainer made it; without an end.

    Raises:
        NotReady: The database does not answer.
    """
    told: tuple[ValidKey, ...] | None = None
    while True:
        keys = await asyncio.to_thread(_valid_keys, database)
        if keys != told:
            yield keys
            told = keys
        await asyncio.sleep(LOOK_SECONDS)


def _valid_keys(database: Database) -> tuple[ValidKey, ...]:
    statement = (
        select(KeyRow, ContributorRow.trusted)
        .join(ContributorRow, KeyRow.contributor == ContributorRow.name)
        .where(KeyRow.revoke_time.is_(None))
        .order_by(KeyRow.id)
    )
    with database.read() as session:
        return tuple(
            ValidKey(row.digest, row.contributor, frozenset(map(Scope, row.scopes)), trusted)
            for row, trusted in session.execute(statement)
        )


def _person(session: Session, name: str) -> ContributorRow:
    row = session.get(ContributorRow, name)
    if row is None:
        row = ContributorRow(name=name, trusted=False, blocked=False, create_time=now())
        session.add(row)
        session.flush()
    return row


def _change(
    session: Session, person: ContributorRow, *, trusted: bool | None = None, blocked: bool | None = None
) -> int:
    person.trusted = person.trusted if trusted is None else trusted
    person.blocked = person.blocked if blocked is None else blocked
    said = list(session.scalars(select(VoteRow.observation).where(VoteRow.contributor == person.name)))
    session.execute(update(VoteRow).where(VoteRow.contributor == person.name).values(trusted=person.trusted))
    mark_changed(session, said)
    return len(said)


def _key(row: KeyRow, person: ContributorRow) -> Key:
    return Key(
        row.id,
        row.contributor,
        frozenset(map(Scope, row.scopes)),
        person.trusted,
        person.blocked,
        row.create_time,
        row.revoke_time or "",
    )
