"""The gateway contract over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceServicer
from gateway.feedback import Feedback
from gateway.models import describe_models
from gateway.prediction import Predictor
from services.common.server import StopSignal
from services.common.statuses import log_failure, status_of
from services.common.streaming import answer_in_order
from services.common.tracing import record_failure
from services.common.traffic import TrafficFollower

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class GatewayServicer(GatewayServiceServicer):
    """Unpacks, calls, packs."""

    def __init__(
        self,
        predictor: Predictor,
        feedback: Feedback,
        follower: TrafficFollower,
        stop: StopSignal,
        stream_window: int,
    ) -> None:
        self._predictor = predictor
        self._feedback = feedback
        self._follower = follower
        self._stop = stop
        self._stream_window = stream_window

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Predict the labels of images."""
        return await self._predictor.predict(request, self._predictor.deadline(context.time_remaining()))

    async def PredictStream(
        self, request_iterator: AsyncIterator[pb.PredictStreamRequest], context: Context
    ) -> AsyncIterator[pb.PredictStreamResponse]:
        """Answer requests in their order, several of them being worked on at once."""
        requests = self._stop.until(request_iterator)
        answer = partial(self._answer, context=context)
        async with aclosing(answer_in_order(requests, answer, self._stream_window)) as responses:
            async for response in responses:
                yield response

    async def _answer(self, request: pb.PredictStreamRequest, context: Context) -> pb.PredictStreamResponse:
        try:
            deadline = self._predictor.deadline(context.time_remaining())
            response = await self._predictor.predict(request.request, deadline)
        except Exception as failure:  # one failed request must not end the stream
            status = status_of(failure)
            log_failure(status, failure, method="PredictStream")
            record_failure(failure)
            error = pb.Error(code=status.code.name, reason=status.reason, message=status.message)
            return pb.PredictStreamResponse(id=request.id, error=error)
        return pb.PredictStreamResponse(id=request.id, response=response)

    async def SendFeedback(self, request: pb.SendFeedbackRequest, context: Context) -> pb.SendFeedbackResponse:
        """Say what a prediction should have been."""
        deadline = self._predictor.deadline(context.time_remaining())
        return await self._feedback.send(request, deadline.remaining())

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List the models that the suite serves."""
        return pb.ListModelsResponse(models=describe_models(self._follower.models))
