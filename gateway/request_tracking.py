"""Gives every HTTP request an id, the caller's own where it has one, and a span; counts how it was answered."""

from opentelemetry.trace import Span, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.logs import REQUEST_ID_KEY, bind_request_id
from services.common.metrics import LabelledCounts
from services.common.server import StopSignal
from services.common.tracing import TRACEPARENT, http_span


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
                if traced is not None:
                    _mark_answered(traced, message["status"])
            await send(message)

        with http_span(scope["method"], scope["path"], headers.get(TRACEPARENT, "")) as traced:
            if traced is not None and (route := _route_of(scope)) is not None:
                traced.set_attribute("http.route", route)
                traced.update_name(f"{scope['method']} {route}")
            await self._app(scope, receive, send_with_id)


def _route_of(scope: Scope) -> str | None:
    """Return the template of the path; looked up here, since not every route leaves it in the scope."""
    routes: list[BaseRoute] = scope["app"].routes
    matches = [(route.matches(scope)[0], route) for route in routes]
    for wanted in (Match.FULL, Match.PARTIAL):  # as routing does
        for match, route in matches:
            if match is wanted:
                return getattr(route, "path", None)
    return None


def _mark_answered(traced: Span, status: int) -> None:
    """Add how a request was answered; only a fault of ours is an error of the server."""
    traced.set_attribute("http.response.status_code", status)
    if status >= 500:
        traced.set_attribute("error.type", str(status))
        traced.set_status(StatusCode.ERROR)
