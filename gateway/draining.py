"""Lets a client that is still sending see an early answer: closing at once would reset its connection."""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAIN_SECONDS = 2.0
"""How long the rest of a body is read, and thrown away, after the answer has left."""


class BodyDrain:
    """Holds the end of an answer back until the request has ended, for a while."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        invited = "expect" not in headers  # such a client waits to be asked for the body

        async def watched_receive() -> Message:
            nonlocal unread, invited
            message = await receive()
            unread, invited = message.get("more_body", False), True
            return message

        async def draining_send(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and unread and invited:
                await send({**message, "more_body": True})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_SECONDS):
                        while unread:
                            await watched_receive()
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, watched_receive, draining_send)
