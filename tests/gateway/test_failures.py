"""An unexpected exception, over HTTP."""

import httpx
import pytest
from fastapi import FastAPI

from gateway.failures import handle_failures
from gateway.request_tracking import RequestTracking
from services.common.metrics import LabelledCounts
from services.common.server import StopSignal


@pytest.fixture
async def client():
    app = FastAPI()

    @app.get("/")
    async def fail() -> None:
        raise ZeroDivisionError("secret")

    handle_failures(app)
    responses = LabelledCounts("responses", "By status.", ("code",))
    app.add_middleware(RequestTracking, responses=responses, stop=StopSignal())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


async def test_a_fault_of_ours_is_answered_in_our_form_with_the_request_id_and_without_its_text(client):
    response = await client.get("/", headers={"x-request-id": "mine"})

    assert response.status_code == 500
    assert response.json() == {"error": {"code": "INTERNAL", "reason": "INTERNAL", "message": "internal error"}}
    assert response.headers["x-request-id"] == "mine"
