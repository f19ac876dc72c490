"""What a caller says with its connection: how long it waits, where it is, that it has gone; and what is passed on."""

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar, cast

from fastapi import Request
from starlette.requests import ClientDisconnect

from services.common.direct import Metadata
from services.common.errors import InvalidInput
from services.common.identity import STRANGER, bound_caller, caller_metadata
from services.common.tracing import call_metadata

TIMEOUT_HEADER = "x-request-timeout"
ENDLESS_SECONDS = 365 * 24 * 3600.0
"""A longer timeout is as good as none; what is far longer, grpc takes for one that has passed."""
ROUTING_KEY_HEADER = "x-routing-key"

T = TypeVar("T")


def stated_timeout(header: str | None) -> float | None:
    """Return the seconds that the timeout header gives; None without one, and for one that never ends.

    Raises:
        InvalidInput: It is no number.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        raise InvalidInput(f"{TIMEOUT_HEADER} is {header[:40]!r}; give seconds, such as 2.5")
    return seconds if seconds < ENDLESS_SECONDS else None


def backend_metadata() -> Metadata:
    """Return what a call to the trainer takes along: the request's id, its trace, and who calls."""
    return cast("Metadata", (*call_metadata(), caller_metadata(bound_caller() or STRANGER)))


def peer_of(request: Request) -> str:
    """Return the other end of the connection as grpc writes it: `ipv4:192.0.2.7:40123`."""
    if request.client is None:
        return "unknown"
    host, port = request.client
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


async def unless_disconnected(request: Request, answering: Awaitable[T]) -> T:
    """Await *answering*, but cancel it, and with it the work behind it, when the client goes away.

    Raises:
        ClientDisconnect: The client went away.

    """
    task = asyncio.ensure_future(answering)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
