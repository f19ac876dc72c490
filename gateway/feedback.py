"""What users say of predictions, on its way to the trainer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.trainer.v1 import feedback_pb2
from gateway.callers import backend_metadata
from gateway.capture import Capture

if TYPE_CHECKING:
    from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceAsyncStub


class Feedback:
    """The trainer's feedback in the words of the gateway's contract.

    Args:
        stub: Of the trainer.
        capture: Has predictions that are on their way to it.
    """

    def __init__(self, stub: FeedbackServiceAsyncStub, capture: Capture) -> None:
        self._stub = stub
        self._capture = capture

    async def send(self, request: pb.SendFeedbackRequest, timeout: float) -> pb.SendFeedbackResponse:
        """Send one verdict in the name of who calls.

        Args:
            request: As it came.
            timeout: Seconds until it is given up.

        Raises:
            AioRpcError, ServiceError: As the trainer ends the call.
        """
        message = feedback_pb2.SendFeedbackRequest(
            prediction_id=request.prediction_id, comment=request.comment, image=request.image, model=request.model
        )
        if request.HasField("label"):
            message.label = request.label
        elif request.HasField("correct"):
            message.correct = request.correct
        async with asyncio.timeout(timeout):
            await self._capture.settle(request.prediction_id)  # a word can be faster than the picture
            answer = await self._stub.SendFeedback(message, timeout=timeout, metadata=backend_metadata())
        state = feedback_pb2.Observation.State.Name(answer.state)
        return pb.SendFeedbackResponse(
            state=state.removeprefix("STATE_").lower(), state_reason=answer.state_reason, created=answer.created
        )
