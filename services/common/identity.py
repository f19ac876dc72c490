"""Who calls, and what they may do.

The gateway finds out, once, at its door. In the same process servicers read it from a context variable; over sockets it
travels as metadata that only the gateway writes, since services listen where users do not come.
"""

import json
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from services.common.errors import NotAllowed, Unauthenticated

ANONYMOUS = "anonymous"
"""All who call from this machine without a key, counted as one contributor."""
CALLER_KEY = "x-aimass-caller-bin"
_CALLER: ContextVar["Caller | None"] = ContextVar("caller", default=None)


class Scope(StrEnum):
    """What a key allows."""

    PREDICT = "predict"
    FEEDBACK = "feedback"
    TRAIN = "train"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Somebody who calls."""

    contributor: str
    """Name; `anonymous` for all on this machine without a key, empty for the owner and for strangers."""
    scopes: frozenset[Scope]
    trusted: bool = False
    """Whether their word on a label decides by itself."""

    def require(self, *scopes: Scope) -> None:
        """Return where one of *scopes* is allowed.

        Raises:
            Unauthenticated: None is, and the caller has no key.
            NotAllowed: The caller's key has none of them.
        """
        if not self.scopes.isdisjoint(scopes):
            return
        wanted = " or ".join(sorted(scopes))
        if not self.contributor:
            raise Unauthenticated(
                f"this needs a key with scope {wanted}; ask the owner for one (`aimass keys make`) and send it as "
                "`authorization: Bearer <key>`"
            )
        raise NotAllowed(
            f"the key of {self.contributor} has the scopes {', '.join(sorted(self.scopes)) or 'none'}, and this needs "
            f"{wanted}; ask the owner for a key that has it"
        )


OWNER = Caller("", frozenset(Scope), trusted=True)
"""Whoever reaches a service behind the gateway by themselves."""
LOCAL = Caller(ANONYMOUS, frozenset(Scope))
"""Whoever calls the gateway from its own machine without a key."""
STRANGER = Caller("", frozenset({Scope.PREDICT}))
"""Whoever calls the gateway from another machine without a key."""


class _Call(Protocol):
    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Return what came beside the request."""


def bind_caller(caller: Caller) -> None:
    """Let what runs in this task, and what it starts, know who calls."""
    _CALLER.set(caller)


def bound_caller() -> Caller | None:
    """Return who calls, where that was bound."""
    return _CALLER.get()


def caller_of(context: _Call) -> Caller:
    """Return who makes the call of *context*: as bound here, else as the gateway says, else the owner."""
    bound = _CALLER.get()
    if bound is not None:
        return bound
    for key, value in context.invocation_metadata() or ():
        if key == CALLER_KEY:
            return _read(value if isinstance(value, bytes) else value.encode())
    return OWNER


def allowed_caller(context: _Call, scope: Scope) -> Caller:
    """Return who makes the call of *context*, where they may.

    Raises:
        ServiceError: As `Caller.require`.
    """
    caller = caller_of(context)
    caller.require(scope)
    return caller


def caller_metadata(caller: Caller) -> tuple[str, bytes]:
    """Return the metadata by which a service behind the gateway knows *caller*."""
    fields = {"contributor": caller.contributor, "scopes": sorted(caller.scopes), "trusted": caller.trusted}
    return CALLER_KEY, json.dumps(fields).encode()


def _read(text: bytes) -> Caller:
    fields = json.loads(text)
    return Caller(fields["contributor"], frozenset(map(Scope, fields["scopes"])), fields["trusted"])
