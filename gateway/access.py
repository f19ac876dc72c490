"""Settles at the door who calls, by a key or by the place that a call comes from, and whether they may."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Literal

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from aimass.trainer.v1 import access_pb2
from gateway.callers import peer_of
from gateway.scopes import INNER, PUBLIC_PATHS, scopes_of_method, scopes_of_request
from services.common.errors import NotAllowed, NotReady, Unauthenticated
from services.common.identity import ANONYMOUS, LOCAL, STRANGER, Caller, Scope, bind_caller
from services.common.peers import is_local
from services.common.statuses import status_of
from services.common.tasks import end

if TYPE_CHECKING:
    from services.common.interceptor import Context

log = structlog.get_logger(__name__)

AUTHORIZATION = "authorization"
"""Metadata key and HTTP header that carry `Bearer <key>`."""
FORWARDED = frozenset({"forwarded", "x-forwarded-for", "x-real-ip"})
"""What proxies add: behind one that runs on this machine, everybody would seem to be here."""
BESIDE_KEYS = Caller(ANONYMOUS, frozenset({Scope.PREDICT, Scope.FEEDBACK}))
"""Whoever calls from this machine without a key, once there may be one that administrates: it may be a proxy that does
not say so, with everybody behind it."""
UNTOLD = Caller(STRANGER.contributor, STRANGER.scopes)
"""Whoever sends a key to a gateway that has not heard of keys: nothing is kept of them, since nobody knows in whose
name. Told from a stranger by being this object."""
NEW_KEY_SECONDS = 1.5
"""How long a key that was made just now may take to the door; whoever guesses keys waits as long for each."""
FIRST_KEYS_SECONDS = 3.0
"""How long a call that the keys decide on waits for a trainer that has just started to tell of them."""
RECONNECT_SECONDS = 0.2
"""Wait before a book asks again after it lost its stream; doubled by each that brings nothing, up to the longest."""
LONGEST_RECONNECT_SECONDS = 1.0
_SCOPES = {
    access_pb2.SCOPE_PREDICT: Scope.PREDICT,
    access_pb2.SCOPE_FEEDBACK: Scope.FEEDBACK,
    access_pb2.SCOPE_TRAIN: Scope.TRAIN,
    access_pb2.SCOPE_ADMIN: Scope.ADMIN,
}


class KeyBook:
    """The valid keys, as the trainer streams them; the last ones stay while it is away.

    Args:
        watch: Asks the trainer for all valid keys, now and after each change.
    """

    def __init__(self, watch: Callable[[], AsyncIterable[access_pb2.WatchKeysResponse]]) -> None:
        self._watch = watch
        self._callers: dict[bytes, Caller] | None = None
        self._has_administrator = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def known(self) -> bool:
        """Whether the trainer has told of keys yet."""
        return self._callers is not None

    @property
    def has_administrator(self) -> bool:
        """Whether one of the keys that are known has scope admin; nobody can say before they are."""
        return self._has_administrator

    def find(self, secret: str) -> Caller | None:
        """Return whose key *secret* is; None where it is none that is valid."""
        return (self._callers or {}).get(hashlib.sha256(secret.encode(errors="replace")).digest())

    async def hear(self) -> None:
        """Wait a moment for the first keys, where the trainer has not told of them yet."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_KEYS_SECONDS):
                while not self.known:
                    await self._changed.wait()

    async def look_up(self, secret: str) -> None:
        """Wait a moment for a key that is not there: it may have been made just now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NEW_KEY_SECONDS):
                while self.known and self.find(secret) is None:
                    await self._changed.wait()

    def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            await end(self._task)

    async def _follow(self) -> None:
        wait = RECONNECT_SECONDS
        while True:
            try:
                async for response in self._watch():
                    wait = RECONNECT_SECONDS
                    self._callers = {each.digest: _caller_of(each) for each in response.keys}
                    self._has_administrator = any(Scope.ADMIN in each.scopes for each in self._callers.values())
                    self._changed.set()
                    self._changed = asyncio.Event()
            except Exception as error:  # whatever ends the stream, the book must go on
                log.debug("lost the stream of keys, asking again", message=status_of(error).message)
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_RECONNECT_SECONDS)


class Access:
    """Who calls, and whether they may.

    Args:
        book: The valid keys.
        authentication: `auto`: callers of this machine need no key, but for training and administration once there is
            one with scope admin, and until it is known whether there is; others need one for all but predictions.
            `required`: everybody needs one.
    """

    def __init__(self, book: KeyBook, authentication: Literal["auto", "required"]) -> None:
        self._book = book
        self._required = authentication == "required"

    def caller(
        self, scopes: frozenset[Scope], peer: str, authorization: str = "", *, forwarded: bool = False
    ) -> Caller:
        """Return who calls, where they may.

        Args:
            scopes: Of which they need one; empty where they need none.
            peer: The other end of the connection, as grpc writes it.
            authorization: What was sent under that name; other schemes than `Bearer` are not for us.
            forwarded: Whether a proxy says that it passes on somebody else's call.

        Raises:
            Unauthenticated: A key is needed, or the one that was sent is not valid.
            NotAllowed: The key has none of *scopes*.
            NotReady: The trainer has not told of keys yet, and they decide.
        """
        secret = _secret(authorization)
        if secret is not None:
            known = self._book.known or not self._is_open(scopes)
            caller = self._holder(secret) if known else UNTOLD
        elif self._required:
            raise Unauthenticated(
                "this server answers nobody without a key (GATEWAY_AUTHENTICATION=required); ask the owner for one "
                "(`aimass keys make`) and send it as `authorization: Bearer <key>`"
            )
        elif is_local(peer) and not forwarded:
            caller = self._here(scopes)
        else:
            caller = STRANGER
        if scopes and not self._is_open(scopes):
            caller.require(*scopes)
        return caller

    async def guard(self, method: str, context: "Context") -> None:
        """Let a gRPC call in, and let what answers it know who calls.

        Raises:
            ServiceError: As `caller` does; NotAllowed for what is spoken behind the gateway only.
        """
        if method.lstrip("/") in INNER:
            raise NotAllowed(f"{method} is spoken between services of the suite; ask them, not the gateway")
        metadata = [(key, str(value)) for key, value in context.invocation_metadata() or () if not key.endswith("-bin")]
        bind_caller(await self._named_by(scopes_of_method(method), context.peer(), metadata))

    async def http_caller(self, request: Request) -> Caller:
        """Return who sends an HTTP request, where they may.

        Raises:
            ServiceError: As `caller` does.
        """
        scopes = scopes_of_request(request.method, request.scope["path"])
        return await self._named_by(scopes, peer_of(request), request.headers.items())

    async def _named_by(self, scopes: frozenset[Scope], peer: str, metadata: Iterable[tuple[str, str]]) -> Caller:
        sent = dict(metadata)
        authorization = sent.get(AUTHORIZATION, "")
        secret = _secret(authorization)
        forwarded = not FORWARDED.isdisjoint(sent)
        if secret is not None:
            if not self._is_open(scopes):
                await self._book.hear()
            await self._book.look_up(secret)
        elif _is_beyond(scopes) and is_local(peer) and not forwarded and not self._required:
            await self._book.hear()
        return self.caller(scopes, peer, authorization, forwarded=forwarded)

    def _is_open(self, scopes: frozenset[Scope]) -> bool:
        """Whether nobody needs a key for *scopes*: then a book that is empty yet keeps nobody out."""
        return not self._required and (not scopes or Scope.PREDICT in scopes)

    def _here(self, scopes: frozenset[Scope]) -> Caller:
        """Return who calls from this machine without a key."""
        if self._book.known and not self._book.has_administrator:
            return LOCAL
        if not _is_beyond(scopes):
            return BESIDE_KEYS
        if not self._book.known:
            raise _not_told()
        raise Unauthenticated(
            f"there is a key with scope {Scope.ADMIN}, so that this needs a key with scope "
            f"{' or '.join(sorted(scopes))} on this machine too; send one as `authorization: Bearer <key>`, or in "
            "AIMASS_KEY"
        )

    def _holder(self, secret: str) -> Caller:
        caller = self._book.find(secret)
        if caller is not None:
            return caller
        if not self._book.known:
            raise _not_told()
        raise Unauthenticated(
            "the key that was sent is not valid, or not any more; ask the owner for a new one (`aimass keys make`), or "
            "send none"
        )


class CallerBinding:
    """Lets routes, and what they call, know who sends a request; refuses those that may not."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Pass the request on.

        Raises:
            ServiceError: As `Access.caller` does.
        """
        if scope["type"] == "http" and not _is_public(scope):
            bind_caller(await self._access.http_caller(Request(scope)))
        await self._app(scope, receive, send)


def _is_public(scope: Connection) -> bool:
    return scope["method"] in ("GET", "HEAD") and PUBLIC_PATHS.fullmatch(scope["path"]) is not None


def _is_beyond(scopes: frozenset[Scope]) -> bool:
    """Whether *scopes* allow what a caller of this machine may not do without a key beside one that administrates."""
    return bool(scopes) and scopes.isdisjoint(BESIDE_KEYS.scopes)


def _not_told() -> NotReady:
    return NotReady("the trainer has not told of its keys yet, and they say who may do this; try again in a moment")


def _secret(authorization: str) -> str | None:
    """Return the key of a header; None where it is of another scheme."""
    scheme, _, secret = authorization.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def _caller_of(key: access_pb2.ValidKey) -> Caller:
    return Caller(key.contributor, frozenset(_SCOPES[each] for each in key.scopes if each in _SCOPES), key.trusted)
