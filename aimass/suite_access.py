"""Reaches a running suite, and at its gateway what the trainer offers to users."""

from __future__ import annotations  # stubs' types have parameters for type checkers alone

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from aimass.client import call_error, channel_options, key_metadata
from aimass.trainer.v1.access_pb2_grpc import AccessServiceStub
from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceStub
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceStub

Request = TypeVar("Request")
Answer = TypeVar("Answer")
CALL_SECONDS = 60.0
"""A wish of the loop waits up to half of that for what becomes of it."""


class Suite:
    """Calls services of a suite, and says who calls.

    Args:
        channel: To the gateway.
        key: Of the caller; empty for none.

    Attributes:
        access: Stub of `AccessService`.
        feedback: Stub of `FeedbackService`.
        loop: Stub of `LoopService`.
    """

    def __init__(self, channel: grpc.Channel, key: str) -> None:
        self.access = AccessServiceStub(channel)
        self.feedback = FeedbackServiceStub(channel)
        self.loop = LoopServiceStub(channel)
        self._metadata = key_metadata(key)

    def ask(self, method: grpc.UnaryUnaryMultiCallable[Request, Answer], request: Request) -> Answer:
        """Return the answer."""
        return method(request, timeout=CALL_SECONDS, metadata=self._metadata)

    def receive(self, method: grpc.UnaryStreamMultiCallable[Request, Answer], request: Request) -> Iterator[Answer]:
        """Return the answers, for as long as there are some."""
        return method(request, metadata=self._metadata)

    def send(self, method: grpc.StreamUnaryMultiCallable[Request, Answer], requests: Iterator[Request]) -> Answer:
        """Return the answer to all *requests*, however long they take."""
        return method(requests, metadata=self._metadata)


@contextmanager
def open_suite(address: str, key: str) -> Iterator[Suite]:
    """Open a connection to the gateway at *address*.

    Raises:
        PredictionError: A call of the block was refused, or nobody answers.
    """
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        try:
            yield Suite(channel, key)
        except grpc.RpcError as error:
            raise call_error(error) from error
