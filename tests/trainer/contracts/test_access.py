"""The access contract over a real server."""

import asyncio
from pathlib import Path

import grpc
import pytest

from aimass.trainer.v1 import access_pb2 as pb
from aimass.trainer.v1.access_pb2_grpc import AccessServiceStub
from services.common.identity import Scope
from services.trainer.feedback.contributors import key_digest
from tests.conftest import Serve, Served
from tests.trainer.contracts.collecting import Component, called_by, refused

USER = called_by("ann", Scope.FEEDBACK, Scope.TRAIN)


@pytest.fixture
async def served(serve: Serve, tmp_path: Path) -> Served:
    return await serve(lambda stop: Component(tmp_path, stop))


@pytest.fixture
def stub(served: Served) -> AccessServiceStub:
    return AccessServiceStub(served.channel)


async def test_a_key_is_made_listed_and_revoked(stub: AccessServiceStub) -> None:
    request = pb.CreateKeyRequest(contributor="ann", scopes=[pb.SCOPE_TRAIN, pb.SCOPE_PREDICT], trusted=True)
    made = await stub.CreateKey(request)
    listed = await stub.ListKeys(pb.ListKeysRequest())
    revoked = await stub.RevokeKey(pb.RevokeKeyRequest(id=made.key.id))

    assert made.secret.startswith(f"am_{made.key.id}_")
    assert list(listed.keys) == [made.key]
    assert (made.key.contributor, made.key.trusted, made.key.blocked) == ("ann", True, False)
    assert list(made.key.scopes) == [pb.SCOPE_PREDICT, pb.SCOPE_TRAIN]
    assert not made.key.HasField("revoke_time")
    assert revoked.key.revoke_time.seconds >= made.key.create_time.seconds > 0


async def test_a_gateway_learns_of_each_change_and_of_the_end(served: Served, stub: AccessServiceStub) -> None:
    watching = stub.WatchKeys(pb.WatchKeysRequest())
    async with asyncio.timeout(30):
        assert list((await watching.read()).keys) == []
        made = await stub.CreateKey(pb.CreateKeyRequest(contributor="ann", scopes=[pb.SCOPE_FEEDBACK]))
        [key] = (await watching.read()).keys
        await stub.UpdateContributor(pb.UpdateContributorRequest(contributor="ann", trusted=True))
        [trusted] = (await watching.read()).keys
        served.stop.set()
        served.stop.set_drained()
        code, _ = await refused(watching.read())

    assert (key.digest.hex(), key.contributor, key.trusted) == (key_digest(made.secret), "ann", False)
    assert list(key.scopes) == [pb.SCOPE_FEEDBACK]
    assert trusted.trusted
    assert code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("method", "request_", "code", "words"),
    [
        (
            "CreateKey",
            pb.CreateKeyRequest(contributor="a b", scopes=[1]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "'a b' is not",
        ),
        (
            "CreateKey",
            pb.CreateKeyRequest(contributor="a"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "name at least one scope",
        ),
        ("CreateKey", pb.CreateKeyRequest(contributor="a", scopes=[9]), grpc.StatusCode.INVALID_ARGUMENT, "scope 9 is"),
        ("CreateKey", pb.CreateKeyRequest(contributor="a", scopes=[0]), grpc.StatusCode.INVALID_ARGUMENT, "scope 0 is"),
        ("RevokeKey", pb.RevokeKeyRequest(id="x"), grpc.StatusCode.NOT_FOUND, "key 'x' is unknown"),
        (
            "UpdateContributor",
            pb.UpdateContributorRequest(contributor="x"),
            grpc.StatusCode.NOT_FOUND,
            "'x' is unknown",
        ),
    ],
)
async def test_what_cannot_be_is_refused(
    stub: AccessServiceStub, method: str, request_: object, code: grpc.StatusCode, words: str
) -> None:
    found = await refused(getattr(stub, method)(request_))

    assert found[0] is code
    assert words in found[1]


async def test_only_administrators_have_a_say(stub: AccessServiceStub) -> None:
    calls = [
        stub.CreateKey(pb.CreateKeyRequest(contributor="x", scopes=[pb.SCOPE_ADMIN]), metadata=USER),
        stub.ListKeys(pb.ListKeysRequest(), metadata=USER),
        stub.RevokeKey(pb.RevokeKeyRequest(id="x"), metadata=USER),
        stub.UpdateContributor(pb.UpdateContributorRequest(contributor="ann", trusted=True), metadata=USER),
        stub.WatchKeys(pb.WatchKeysRequest(), metadata=USER).read(),
    ]

    for call in calls:
        code, words = await refused(call)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "the key of ann has the scopes feedback, train, and this needs admin" in words
