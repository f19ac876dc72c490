"""A call that nobody waits for any more stops the work behind it, whatever way it came."""

import asyncio

import grpc
import httpx
import numpy as np
import pytest

from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.end_to_end.pictures import plain

# Images per kind of call: powers of two, so that the sum of what was run tells the kind.
UNARY, STREAM, HTTP, TENSORS, LATE_UNARY, LATE_HTTP = 1, 2, 4, 8, 16, 32
RED = plain((255, 0, 0))


def slow_request(*images):
    images = np.stack(images)
    request = pb.ModelInferRequest(model_name="slow", raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    return request


WHITE = slow_request(np.full((4, 4, 3), 255, np.uint8))
QUICK = slow_request(np.zeros((4, 4, 3), np.uint8))


class Slow:
    """The model `slow`, kept busy by a white picture."""

    def __init__(self, channel):
        self._stub = GRPCInferenceServiceStub(channel)
        self._answered = 0

    async def samples(self):
        (statistics,) = (await self._stub.ModelStatistics(pb.ModelStatisticsRequest(name="slow"))).model_stats
        return statistics.inference_count

    async def is_busy(self):
        """Whether a quick request has to wait; it is given up then, and so never run."""
        try:
            await self._stub.ModelInfer(QUICK, timeout=0.2)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return True
        self._answered += 1
        return False

    async def occupy(self):
        """Send the white picture and return its call as soon as it is being run."""
        call = self._stub.ModelInfer(WHITE)
        self._answered += 1
        while not await self.is_busy():
            assert not call.done()
        return call

    async def finish(self, call):
        """Wait until all that was sent before is run or dropped; return how many samples were asked for here."""
        await call
        await self._stub.ModelInfer(QUICK)
        return self._answered + 1


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
            GRPCInferenceServiceStub(channel).ModelInfer(slow_request(*[np.zeros((4, 4, 3), np.uint8)] * TENSORS)),
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
