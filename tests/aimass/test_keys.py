"""Keys on the command line: on this machine's database, and at a gateway."""

import re

import pytest

from aimass.client import PredictionError
from aimass.feedback_commands import KeyScope
from services.common.errors import InvalidInput, NotFound
from services.common.identity import Scope
from services.common.settings import load_settings
from services.trainer.feedback.contributors import list_keys
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from tests.end_to_end.suite import eventually
from tests.gateway.door import LearningTrainer, open_door


@pytest.fixture
def known(typed):
    """A function that returns the keys of this machine's database, which the command has made."""

    def known():
        database = Database(load_settings(TrainerSettings).database.get_secret_value())
        try:
            return list_keys(database)
        finally:
            database.close()

    return known


async def test_a_key_is_made_without_a_suite_and_its_secret_alone_is_written(typed, known):
    secret = await typed("keys", "make", "ann")

    (key,) = known()
    assert re.fullmatch(rf"am_{key.id}_[\w-]{{43}}\n", secret)
    assert (key.contributor, key.scopes, key.trusted) == ("ann", {Scope.PREDICT, Scope.FEEDBACK}, False)


async def test_a_key_allows_what_is_asked_for(typed, known):
    await typed("keys", "make", "rex", "--scope", "feedback", "--scope", "admin", "--trusted")

    (key,) = known()
    assert (key.scopes, key.trusted) == ({Scope.FEEDBACK, Scope.ADMIN}, True)


async def test_keys_are_listed_with_what_a_word_is_worth(typed, known):
    for name in ("ann", "ben"):
        await typed("keys", "make", name, "--scope", "train")
    await typed("keys", "trust", "ann")
    await typed("keys", "block", "ben")
    ann, ben = known()
    told = await typed("keys", "revoke", ben.id)
    listed = await typed("keys", "list")

    rows = [line.split() for line in listed.splitlines()]
    assert told == f"key {ben.id} of ben is not valid any more\n"
    assert rows[0] == ["key", "contributor", "allows", "word", "made", "revoked"]
    assert rows[1][:4] == [ann.id, "ann", "train", "decides"]
    assert rows[1][-1] == "-"
    assert rows[2][:4] == [ben.id, "ben", "train", "blocked"]
    assert rows[2][-1] != "-"


async def test_trust_and_block_end(typed, known):
    await typed("keys", "make", "ann", "--trusted")
    await typed("keys", "block", "ann")
    again = await typed("keys", "block", "ann", "--end")
    one = await typed("keys", "trust", "ann", "--end")

    (key,) = known()
    assert (key.trusted, key.blocked) == (False, False)
    assert (again, one) == (
        "the word of ann counts again from now on\n",
        "the word of ann is one of several from now on\n",
    )


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("make", "a b"), InvalidInput, "'a b' is not valid"),
        (("revoke", "nothing"), NotFound, "'nothing' is unknown"),
        (("trust", "nobody"), NotFound, "'nobody' is unknown"),
    ],
)
async def test_a_refusal_is_the_services_sentence(typed, arguments, kind, words):
    with pytest.raises(kind, match=words):
        await typed("keys", *arguments)


async def test_at_an_address_it_is_the_suite_that_is_asked_and_told_who_asks(typed, serve, inference):
    async with open_door(serve, inference, LearningTrainer()) as door:
        await door.trainer.give("am_ada", "ada", "admin")
        await eventually(lambda: door.access_knows("am_ada"))
        await typed("keys", "make", "ann", "--scope", "train", "--address", door.address, "--key", "am_ada")
        with pytest.raises(PredictionError, match="the key that was sent is not valid"):
            await typed("keys", "make", "ann", "--address", door.address, "--key", "am_eve")

    (heard,) = door.trainer.heard
    assert (heard.request.contributor, heard.caller.contributor) == ("ann", "ada")


async def test_the_suite_may_be_named_by_variables(typed, serve, inference, monkeypatch):
    async with open_door(serve, inference, LearningTrainer()) as door:
        await door.trainer.give("am_ada", "ada", "admin")
        await eventually(lambda: door.access_knows("am_ada"))
        monkeypatch.setenv("AIMASS_ADDRESS", door.address)
        monkeypatch.setenv("AIMASS_KEY", "am_ada")
        await typed("keys", "make", "ann")

    assert door.trainer.heard[0].caller.contributor == "ada"


def test_a_key_can_be_given_every_scope() -> None:
    assert {each.value for each in KeyScope} == {each.value for each in Scope}
