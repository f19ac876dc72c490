"""Calls a servicer in this process the way its stub would: same arguments, same deadline, no socket."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from services.common.tracing import span

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)
Metadata = Sequence[tuple[str, str]]


class UnaryCall(Protocol[Request, Response]):
    """What a stub's method and a direct call have in common."""

    def __call__(
        self, request: Request, *, timeout: float | None = None, metadata: Metadata | None = None
    ) -> Awaitable[Response]:
        """Call with *timeout* seconds to answer."""


class DirectContext:
    """The part of `grpc.aio.ServicerContext` that the suite's servicers read."""

    def __init__(self, timeout: float | None, metadata: Metadata | None) -> None:
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self._metadata = tuple(metadata or ())

    def time_remaining(self) -> float | None:
        """Return the seconds left; None without a deadline."""
        return None if self._deadline is None else max(self._deadline - asyncio.get_running_loop().time(), 0.0)

    def invocation_metadata(self) -> Metadata:
        """Return what the caller sent along."""
        return self._metadata


def direct_call(behavior: Callable[[Any, Any], Awaitable[Response]]) -> UnaryCall[Any, Response]:
    """Return *behavior*, a unary method of a servicer, as something that is called like a stub's method."""
    name = behavior.__name__

    async def call(request: Any, *, timeout: float | None = None, metadata: Metadata | None = None) -> Response:
        with span(name):
            async with asyncio.timeout(timeout):
                return await behavior(request, DirectContext(timeout, metadata))

    return call
