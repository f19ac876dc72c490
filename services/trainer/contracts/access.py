"""The access contract: keys, and what a contributor's word is worth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from aimass.trainer.v1 import access_pb2 as pb
from aimass.trainer.v1.access_pb2_grpc import AccessServiceServicer
from services.common.errors import InvalidInput
from services.common.identity import Scope, caller_of
from services.common.server import StopSignal
from services.trainer.contracts.timestamps import timestamp_of
from services.trainer.feedback import contributors
from services.trainer.storage.database import Database

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

_SCOPES = {
    pb.SCOPE_PREDICT: Scope.PREDICT,
    pb.SCOPE_FEEDBACK: Scope.FEEDBACK,
    pb.SCOPE_TRAIN: Scope.TRAIN,
    pb.SCOPE_ADMIN: Scope.ADMIN,
}
_NUMBERS = {scope: number for number, scope in _SCOPES.items()}


class AccessServicer(AccessServiceServicer):
    """Unpacks, calls, packs; all of it is for administrators.

    Args:
        database: Of contributors, migrated.
        stop: Ends watches when the process stops.
    """

    def __init__(self, database: Database, stop: StopSignal) -> None:
        self._database = database
        self._stop = stop

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Context) -> pb.CreateKeyResponse:
        """Make a key."""
        caller_of(context).require(Scope.ADMIN)
        unknown = [number for number in request.scopes if number not in _SCOPES]
        if unknown:
            raise InvalidInput(f"scope {unknown[0]} is unknown here; use one that the contract names", field="scopes")
        scopes = {_SCOPES[number] for number in request.scopes}
        key, secret = await asyncio.to_thread(
            contributors.create_key, self._database, request.contributor, scopes, request.trusted
        )
        return pb.CreateKeyResponse(key=_key(key), secret=secret)

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        """List all keys."""
        caller_of(context).require(Scope.ADMIN)
        keys = await asyncio.to_thread(contributors.list_keys, self._database)
        return pb.ListKeysResponse(keys=[_key(each) for each in keys])

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Context) -> pb.RevokeKeyResponse:
        """Make a key invalid."""
        caller_of(context).require(Scope.ADMIN)
        key = await asyncio.to_thread(contributors.revoke_key, self._database, request.id)
        return pb.RevokeKeyResponse(key=_key(key))

    async def UpdateContributor(
        self, request: pb.UpdateContributorRequest, context: Context
    ) -> pb.UpdateContributorResponse:
        """Change what a contributor's word is worth."""
        caller_of(context).require(Scope.ADMIN)
        affected = await asyncio.to_thread(
            contributors.set_contributor,
            self._database,
            request.contributor,
            trusted=request.trusted if request.HasField("trusted") else None,
            blocked=request.blocked if request.HasField("blocked") else None,
        )
        return pb.UpdateContributorResponse(affected_count=affected)

    async def WatchKeys(self, request: pb.WatchKeysRequest, context: Context) -> AsyncIterator[pb.WatchKeysResponse]:
        """Send all valid keys, now and after each change."""
        caller_of(context).require(Scope.ADMIN)
        async for keys in self._stop.until(contributors.watch_keys(self._database)):
            yield pb.WatchKeysResponse(
                keys=[
                    pb.ValidKey(
                        digest=bytes.fromhex(each.digest),
                        contributor=each.contributor,
                        scopes=sorted(_NUMBERS[scope] for scope in each.scopes),
                        trusted=each.trusted,
                    )
                    for each in keys
                ]
            )


def _key(key: contributors.Key) -> pb.Key:
    return pb.Key(
        id=key.id,
        contributor=key.contributor,
        scopes=sorted(_NUMBERS[scope] for scope in key.scopes),
        trusted=key.trusted,
        blocked=key.blocked,
        create_time=timestamp_of(key.create_time),
        revoke_time=timestamp_of(key.revoke_time) if key.revoke_time else None,
    )
