"""A call that nobody waits for any more stops the work behind it, whatever way it came."""

import asyncio

import grpc
import httpx
import pytest

from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.end_to_end.pictures import plain
from tests.end_to_end.slow import Slow, quick_request

# Images per kind of call: powers of two, so that the sum of what was run tells the kind.
UNARY, STREAM, HTTP, TENSORS, LATE_UNARY, LATE_HTTP = 1, 2, 4, 8, 16, 32
RED = plain((255, 0, 0))


async def test_nothing_is_run_for_callers_that_went_away(suite):
    images = [RED] * 32
    async with (
        grpc.aio.insecure_channel(suite.address) as channel,
        httpx.AsyncClient(base_url=f"{suite.url}/v1/models/slow", trust_env=False, timeout=30) as http,
    ):
        stub, slow = GatewayServiceStub(channel), Slow(channel)
        before = await slow.samples()
        white = await slow.occupy()

        def predict(count):
            return gateway_pb2.PredictRequest(model="slow", images=images[:count])

        def form(count):
            return {"files": [("image", ("image.png", image)) for image in images[:count]]}

        late = [
            asyncio.ensure_future(stub.Predict(predict(LATE_UNARY), timeout=0.5)),
            asyncio.ensure_future(http.post("/predict", **form(LATE_HTTP), headers={"X-Request-Timeout": "0.5"})),
        ]
        stream = stub.PredictStream()
        for _ in range(2):
            await stream.write(gateway_pb2.PredictStreamRequest(request=predict(STREAM)))
        gone = [
            stub.Predict(predict(UNARY)),
            stream,
            asyncio.create_task(http.post("/predict", **form(HTTP))),
            GRPCInferenceServiceStub(channel).ModelInfer(quick_request(TENSORS)),
        ]
        assert await slow.is_busy()  # which they are queued behind now
        for call in gone:
            call.cancel()
        too_late, gateway_timeout = await asyncio.gather(*late, return_exceptions=True)
        asked = await slow.finish(white)

        assert too_late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert gateway_timeout.status_code == 504
        assert await slow.samples() - before - asked == 0
    with pytest.raises(asyncio.CancelledError):
        await gone[2]
