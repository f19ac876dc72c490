"""Keys: shown once, known by their digests, revoked for good; and what a contributor's word is worth."""

import asyncio
import hashlib
import re

import pytest

from services.common.errors import InvalidInput, NotFound
from services.common.identity import ANONYMOUS, LOCAL, OWNER, Caller, Scope
from services.trainer.data.observing import VoteKind, Word, vote
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.contributors import (
    Standing,
    create_key,
    key_digest,
    list_keys,
    revoke_key,
    set_contributor,
    standing_of,
    watch_keys,
)
from services.trainer.feedback.observations import Intake
from services.trainer.storage.database import Database
from tests.trainer.feedback.conftest import captured, observation, pictures, votes


def say(database: Database, number: int, contributor: str) -> None:
    with database.begin(alone=True) as session:
        vote(session, session.get_one(ObservationRow, number), Word(contributor, VoteKind.LABEL, label=0))
        session.get_one(ObservationRow, number).stale = False


def standing(database: Database, caller: Caller) -> Standing:
    with database.read() as session:
        return standing_of(session, caller)


def test_a_secret_is_shown_once_and_kept_by_nobody(database: Database, tmp_path) -> None:  # type: ignore[no-untyped-def]
    key, secret = create_key(database, "ann", [Scope.PREDICT, Scope.FEEDBACK], trusted=False)
    database.close()

    assert re.fullmatch(rf"am_{key.id}_[A-Za-z0-9_-]{{43}}", secret)
    assert key_digest(secret) == hashlib.sha256(secret.encode()).hexdigest()
    assert list_keys(database) == [key]
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.glob("trainer.db*"))


def test_keys_are_listed_by_contributor_then_by_age(database: Database) -> None:
    made = [create_key(database, name, [Scope.PREDICT], trusted=False)[0].id for name in ("zoe", "ann", "ann")]

    listed = [(each.contributor, each.id) for each in list_keys(database)]

    assert [name for name, _ in listed] == ["ann", "ann", "zoe"]
    assert {each for _, each in listed} == set(made)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, ANONYMOUS, "Anonymous", "ann\n", "ä"])
def test_a_key_for_nobody_is_refused(database: Database, name: str) -> None:
    with pytest.raises(
        InvalidInput, match=r"is not valid; use 1 to 64 letters, digits, .* another name than anonymous"
    ):
        create_key(database, name, [Scope.PREDICT], trusted=False)


def test_a_key_for_nothing_is_refused(database: Database) -> None:
    with pytest.raises(InvalidInput, match="would allow nothing; name at least one scope of predict, feedback"):
        create_key(database, "ann", [], trusted=False)


def test_a_revoked_key_stays_revoked_and_is_listed(database: Database) -> None:
    key, _ = create_key(database, "ann", [Scope.PREDICT], trusted=False)

    once, twice = revoke_key(database, key.id), revoke_key(database, key.id)

    assert once.revoke_time
    assert once == twice == list_keys(database)[0]
    with pytest.raises(NotFound, match="key 'none' is unknown; name one that ListKeys or `aimass keys list` gives"):
        revoke_key(database, "none")


def test_a_second_key_does_not_take_trust_away_and_may_give_it(database: Database) -> None:
    create_key(database, "ann", [Scope.FEEDBACK], trusted=True)
    create_key(database, "ben", [Scope.FEEDBACK], trusted=False)

    assert create_key(database, "ann", [Scope.PREDICT], trusted=False)[0].trusted
    assert create_key(database, "ben", [Scope.PREDICT], trusted=True)[0].trusted


def test_the_table_knows_better_than_the_gateway_what_a_word_is_worth(database: Database) -> None:
    create_key(database, "ann", [Scope.FEEDBACK], trusted=False)
    late = Caller("ann", frozenset(Scope), trusted=True)

    assert standing(database, late) == Standing(trusted=False, blocked=False)
    assert standing(database, OWNER) == Standing(trusted=True, blocked=False)
    assert standing(database, LOCAL) == Standing(trusted=False, blocked=False)
    assert not standing(database, Caller("zoe", frozenset(Scope), trusted=True)).trusted  # her keys are deleted
    set_contributor(database, ANONYMOUS, trusted=True)
    set_contributor(database, "ann", blocked=True)
    assert standing(database, LOCAL) == Standing(trusted=True, blocked=False)
    assert standing(database, late) == Standing(trusted=False, blocked=True)


def test_what_was_said_before_is_worth_what_the_contributor_is_now(database: Database, intake: Intake) -> None:
    intake.take([captured(number, image) for number, image in enumerate(pictures(4))])
    create_key(database, "ann", [Scope.FEEDBACK], trusted=False)
    for number, name in ((1, "ann"), (2, "ben"), (3, "ann")):
        say(database, number, name)

    affected = set_contributor(database, "ann", trusted=True)

    assert affected == 2
    assert [(each.contributor, each.trusted) for each in votes(database)] == [
        ("ann", True),
        ("ben", False),
        ("ann", True),
    ]
    assert [observation(database, number).stale for number in (1, 2, 3, 4)] == [True, False, True, False]
    with pytest.raises(
        NotFound, match="contributor 'zoe' is unknown; name one that ListKeys or `aimass keys list` gives"
    ):
        set_contributor(database, "zoe", blocked=True)


async def test_whoever_watches_learns_of_new_and_of_revoked_keys(database: Database) -> None:
    watching = watch_keys(database)
    assert await anext(watching) == ()
    key, secret = create_key(database, "ann", [Scope.FEEDBACK, Scope.PREDICT], trusted=False)

    async with asyncio.timeout(20):
        seen = await anext(watching)
        assert [(each.digest, each.contributor, each.trusted) for each in seen] == [(key_digest(secret), "ann", False)]
        assert seen[0].scopes == {Scope.FEEDBACK, Scope.PREDICT}
        set_contributor(database, "ann", trusted=True)
        assert [each.trusted for each in await anext(watching)] == [True]
        revoke_key(database, key.id)
        assert await anext(watching) == ()
    await watching.aclose()  # type: ignore[attr-defined]
