"""Gives every HTTP request an id, the caller's own where it has one, and returns it with the answer."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.logs import REQUEST_ID_KEY, bind_request_id


class RequestIds:
    """Binds the id for logs and for the calls behind, and adds the header to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_KEY, "")
        # What gRPC metadata cannot carry is left out.
        identity = bind_request_id([(REQUEST_ID_KEY, "".join(each for each in given if "!" <= each <= "~"))])

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_KEY] = identity
            await send(message)

        await self._app(scope, receive, send_with_id)
