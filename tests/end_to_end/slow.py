"""Keeps the model `slow` busy, so that what is sent to it meanwhile has to wait."""

import grpc
import numpy as np

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.end_to_end.pictures import plain

WHITE, PALE, BLACK = 255, 214, 0
"""Shades of pictures that take about two seconds, half of one, and none."""


def picture(shade: int) -> bytes:
    """Return a picture of one shade, as a file."""
    return plain((shade, shade, shade))


def _request(shade: int, count: int) -> pb.ModelInferRequest:
    images = np.full((count, 4, 4, 3), shade, np.uint8)
    request = pb.ModelInferRequest(model_name="slow", raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    return request


def quick_request(count: int = 1) -> pb.ModelInferRequest:
    """Return a request of *count* samples that takes no time."""
    return _request(BLACK, count)


class Slow:
    """The model `slow`, and how many samples it was asked for here."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = GRPCInferenceServiceStub(channel)
        self._asked = 0

    async def samples(self) -> int:
        """Return how many samples the model has run."""
        (statistics,) = (await self._stub.ModelStatistics(pb.ModelStatisticsRequest(name="slow"))).model_stats
        return int(statistics.inference_count)

    async def is_busy(self) -> bool:
        """Whether a quick request has to wait; it is given up then, and so never run."""
        try:
            await self._stub.ModelInfer(quick_request(), timeout=0.2)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            return True
        self._asked += 1
        return False

    async def occupy(self, shade: int = WHITE) -> grpc.aio.UnaryUnaryCall[pb.ModelInferRequest, pb.ModelInferResponse]:
        """Send a pale picture and return its call as soon as it is being run."""
        while True:
            call = self._stub.ModelInfer(_request(shade, 1))
            self._asked += 1
            while not call.done():
                if await self.is_busy():
                    return call
            await call  # it had run before anybody could look, on a machine that held us up; once more

    async def finish(self, call: grpc.aio.UnaryUnaryCall[pb.ModelInferRequest, pb.ModelInferResponse]) -> int:
        """Wait until all that was sent before is run or dropped; return how many samples were asked for here."""
        await call
        await self._stub.ModelInfer(quick_request())
        return self._asked + 1
