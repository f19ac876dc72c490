"""Gives every HTTP request an id, the caller's own where it has one, and a span; counts how it was answered."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.logs import REQUEST_ID_KEY, bind_request_id
from services.common.metrics import LabelledCounts
from services.common.server import StopSignal
from services.common.tracing import TRACEPARENT, call_span


class RequestTracking:
    """Binds the id for logs and for the calls behind, and adds the header to every answer."""

    def __init__(self, app: ASGIApp, responses: LabelledCounts, stop: StopSignal) -> None:
        self._app = app
        self._responses = responses
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # What gRPC metadata cannot carry is left out.
        given = "".join(each for each in headers.get(REQUEST_ID_KEY, "") if "!" <= each <= "~")
        identity = bind_request_id([(REQUEST_ID_KEY, given)])

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered[REQUEST_ID_KEY] = identity
                if self._stop.is_set:  # else a client may send its next request while the connection is being closed
                    answered["connection"] = "close"
                self._responses.add((str(message["status"]),))
            await send(message)

        traceparent = [(TRACEPARENT, headers.get(TRACEPARENT, ""))]
        with call_span(scope["method"], traceparent, {"url.path": scope["path"]}):
            await self._app(scope, receive, send_with_id)
