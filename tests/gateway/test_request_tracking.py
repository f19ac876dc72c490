"""What a collector of traces learns of an HTTP request."""

import httpx
import pytest
from fastapi import FastAPI, Response
from starlette.routing import Route

from gateway.failures import handle_failures
from gateway.request_tracking import RequestTracking
from services.common.errors import NotFound
from services.common.metrics import LabelledCounts
from services.common.server import StopSignal
from services.common.tracing import exporting_spans
from tests.collector import attributes_of, running_collector


@pytest.fixture
async def trace(monkeypatch):
    """A function that sends a request and returns its span."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    app = FastAPI()

    @app.get("/models/{model}")
    async def model(model: str) -> Response:
        if model == "broken":
            raise ZeroDivisionError("secret")
        raise NotFound(f"no model {model}")

    async def plain(_request) -> Response:
        return Response()

    app.router.routes.append(Route("/plain/{name}", plain))
    handle_failures(app)
    app.add_middleware(RequestTracking, responses=LabelledCounts("r", "By status.", ("code",)), stop=StopSignal())

    async def trace(method, path):
        transport = httpx.ASGITransport(app)
        with running_collector() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
            with exporting_spans("test"):
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                    await client.request(method, path)
        (span,) = collector.spans
        return span

    return trace


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/plain/x", "/plain/{name}", 200),
        ("GET", "/models/x", "/models/{model}", 404),
        ("POST", "/models/x", "/models/{model}", 405),
        ("GET", "/other", None, 404),
        ("GET", "/models/broken", "/models/{model}", 500),
    ],
)
async def test_a_request_is_named_by_its_route_and_marked_where_the_fault_is_ours(trace, method, path, route, status):
    span = await trace(method, path)

    facts = attributes_of(span)
    assert span.name == (f"{method} {route}" if route else method)
    assert (facts["http.request.method"], facts["url.path"]) == (method, path)
    assert (facts.get("http.route"), facts["http.response.status_code"]) == (route, status)
    assert (span.status.code == span.status.STATUS_CODE_ERROR) == (status == 500)
    assert facts.get("error.type") == ("500" if status == 500 else None)
    assert not span.events
