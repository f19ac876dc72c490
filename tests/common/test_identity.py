import contextvars
from dataclasses import dataclass

import pytest

from services.common.errors import NotAllowed, Unauthenticated
from services.common.identity import (
    LOCAL,
    OWNER,
    STRANGER,
    Caller,
    Scope,
    bind_caller,
    caller_metadata,
    caller_of,
)

ANNA = Caller("anna", frozenset({Scope.FEEDBACK}), trusted=True)


@dataclass(frozen=True)
class Call:
    """What came with a request."""

    metadata: tuple[tuple[str, str | bytes], ...] = ()

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata


@pytest.mark.parametrize("caller", [ANNA, OWNER, LOCAL, STRANGER])
def test_a_caller_is_the_same_behind_the_gateway(caller: Caller) -> None:
    assert caller_of(Call((("other", "value"), caller_metadata(caller)))) == caller


def test_whoever_comes_past_the_gateway_is_the_owner() -> None:
    assert caller_of(Call()) == OWNER


def test_in_the_same_process_the_bound_caller_counts() -> None:
    def call() -> Caller:
        bind_caller(ANNA)
        return caller_of(Call((caller_metadata(OWNER),)))

    assert contextvars.copy_context().run(call) == ANNA
    assert caller_of(Call()) == OWNER  # it was bound there only


def test_a_scope_that_a_key_has_is_allowed() -> None:
    ANNA.require(Scope.FEEDBACK)


def test_a_scope_that_a_key_has_not_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(NotAllowed, match=r"the key of anna has the scopes feedback, and this needs admin; ask"):
        ANNA.require(Scope.ADMIN)


def test_a_stranger_is_asked_for_a_key() -> None:
    with pytest.raises(Unauthenticated, match=r"this needs a key with scope feedback; .* `authorization: Bearer"):
        STRANGER.require(Scope.FEEDBACK)
