"""Keeps foreign web pages from driving a server on this machine or network.

A browser lets any page send requests to 127.0.0.1. Two headers that a page cannot forge give it away: `Origin` (and
`Sec-Fetch-Site`) for a plain cross-site request, and `Host` for a page whose own name was made to resolve to this
machine (DNS rebinding). Programs that are not browsers send neither and are let through.
"""

import ipaddress
import json
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.failures import failure_answer


class OriginGuard:
    """Refuses requests with a foreign `Host` or `Origin` with 403."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._app = app
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http" and (problem := self._problem(Headers(scope=scope))):
            document = failure_answer(scope["path"], "PERMISSION_DENIED", "FOREIGN_ORIGIN", problem)
            await Response(json.dumps(document), 403, media_type="application/json")(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _problem(self, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return f"host {host[:100]!r} is not a name of this server; add it to GATEWAY_ALLOWED_HOSTS"
        origin = headers.get("origin")
        if origin is None:
            foreign = headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate"
            return "a page of another site sent this request" if foreign else None
        if origin in self._origins or _authority(origin) == host.lower():
            return None
        return f"origin {origin[:100]!r} is not this server; add it to GATEWAY_ALLOWED_ORIGINS"

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # an address was not resolved from a name, so no name server can have pointed it here


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
