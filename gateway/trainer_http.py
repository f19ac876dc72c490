"""What all paths have in common that the trainer answers: a JSON object in, its message out, and an end to waiting."""

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from google.protobuf.message import Message
from pydantic_core import to_json

from gateway.bodies import BodyBudget
from gateway.callers import TIMEOUT_HEADER, backend_metadata, stated_timeout, unless_disconnected
from gateway.compression import read_body
from gateway.documents import check_members, parse_object
from gateway.message_json import plain
from gateway.prediction import Deadline, Predictor
from services.common.direct import UnaryCall

T = TypeVar("T")


class TrainerCalls:
    """Calls of the trainer on behalf of HTTP requests.

    Args:
        predictor: Knows how long a request may take.
        bodies: Room for what is sent.
        max_body_bytes: Largest body.
    """

    def __init__(self, predictor: Predictor, bodies: BodyBudget, max_body_bytes: int) -> None:
        self._predictor = predictor
        self.bodies = bodies
        self.max_body_bytes = max_body_bytes

    def deadline(self, request: Request) -> Deadline:
        """Return the one deadline of *request*, which begins when it is first asked for."""
        if not hasattr(request.state, "deadline"):
            request.state.deadline = self._predictor.deadline(stated_timeout(request.headers.get(TIMEOUT_HEADER)))
        deadline: Deadline = request.state.deadline
        return deadline

    async def document(self, request: Request, known: Sequence[str], what: str = "the request") -> dict[str, Any]:
        """Return the JSON object that *request* brings, called *what* where it is wrong, with no member but *known*.

        Raises:
            InvalidInput: It is another thing.
            Overloaded: There is no room for it.
            TimeoutError: It does not come.
        """
        with self.bodies.holding() as take:
            async with asyncio.timeout(self.deadline(request).remaining()):  # an upload may come in slowly
                document = parse_object(await read_body(request, self.max_body_bytes, take), what)
        check_members(document, known, what)
        return document

    async def call(self, request: Request, method: UnaryCall[Any, T], message: Message) -> T:
        """Return what the trainer answers, while the client waits for it.

        Raises:
            grpc.aio.AioRpcError: It answers with an error.
            ClientDisconnect: The client went away.
        """
        timeout = self.deadline(request).remaining()
        return await unless_disconnected(request, method(message, timeout=timeout, metadata=backend_metadata()))

    async def answer(self, request: Request, method: UnaryCall[Any, Any], message: Message) -> Response:
        """Do as `call`, and return the answer as JSON."""
        return json_of(await self.call(request, method, message))


def json_of(message: Message) -> Response:
    """Return *message* as `plain` has it."""
    return Response(to_json(plain(message)), media_type="application/json")
