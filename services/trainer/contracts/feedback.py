"""The feedback contract: what users say of predictions, and the queue of reviewers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimass.trainer.v1 import data_pb2
from aimass.trainer.v1 import feedback_pb2 as pb
from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceServicer
from services.common.errors import DeadlineExceeded, InvalidInput, NotReady, ServiceError
from services.common.identity import Caller, Scope, allowed_caller
from services.common.server import StopSignal
from services.trainer.contracts.observations import decision_of, filter_of, order_of, pack
from services.trainer.data.imported import MAX_TOLD
from services.trainer.data.models import find_model
from services.trainer.feedback import exchange
from services.trainer.feedback.contributors import check_reader
from services.trainer.feedback.review import Reviewing
from services.trainer.feedback.voting import FeedbackResult, NewFeedback, Voting
from services.trainer.storage.database import Database

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

IDLE_SECONDS = 60
"""How long the next word of an import is waited for; the contract states it of imports."""
_CHUNK_BYTES = 256 * 1024


class FeedbackServicer(FeedbackServiceServicer):
    """Unpacks, calls, packs.

    Args:
        database: Migrated.
        blobs: Folder of pictures.
        voting: Takes feedback in.
        reviewing: Shows pictures, and takes in what reviewers decide.
        stop: Ends imports when the process stops.
        wake: Called with a model of which something new was said.
    """

    def __init__(
        self,
        database: Database,
        blobs: Path,
        voting: Voting,
        reviewing: Reviewing,
        stop: StopSignal,
        wake: Callable[[str], None],
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._voting = voting
        self._reviewing = reviewing
        self._stop = stop
        self._wake = wake

    async def SendFeedback(self, request: pb.SendFeedbackRequest, context: Context) -> pb.SendFeedbackResponse:
        """Take in one word."""
        caller = allowed_caller(context, Scope.FEEDBACK)
        result = await self._send(caller, _feedback(request), datetime.now(UTC))
        return pb.SendFeedbackResponse(
            state=pb.Observation.State.Value(f"STATE_{result.state}"),
            state_reason=result.reason,
            observation_id=result.observation,
            created=result.new,
        )

    async def ImportFeedback(
        self, request_iterator: AsyncIterator[pb.ImportFeedbackRequest], context: Context
    ) -> pb.ImportFeedbackResponse:
        """Take in many; each refused one fails alone."""
        caller, began = allowed_caller(context, Scope.FEEDBACK), datetime.now(UTC)
        requests = self._stop.until(request_iterator)
        model = await _receive_header(requests)
        await asyncio.to_thread(find_model, self._database, model)
        response = pb.ImportFeedbackResponse()
        index = 0
        while (request := await _next(requests)) is not None:
            for each in _imported(request):
                try:
                    result = await self._send(caller, _of_model(each, model), began)
                    response.accepted_count += result.new
                    response.duplicate_count += not result.new
                except NotReady:
                    raise
                except ServiceError as error:
                    response.rejected_count += 1
                    if len(response.rejections) < MAX_TOLD:
                        response.rejections.append(
                            data_pb2.RejectedSample(
                                index=index,
                                client_id=request.feedback.prediction_id[:200],
                                reason=error.reason,
                                message=error.message,
                            )
                        )
            index += 1
        return response

    async def ExportFeedback(
        self, request: pb.ExportFeedbackRequest, context: Context
    ) -> AsyncIterator[pb.ExportFeedbackResponse]:
        """Send all pictures with what was said of them, as a file in pieces."""
        allowed_caller(context, Scope.ADMIN)
        writers = {
            pb.ExportFeedbackRequest.FORMAT_JSON_LINES: exchange.write_lines,
            pb.ExportFeedbackRequest.FORMAT_LABEL_STUDIO: exchange.write_label_studio,
        }
        if request.format not in writers:
            raise InvalidInput(
                f"format {request.format} is none that is written here; name JSON lines or Label Studio",
                field="format",
            )
        lines = exchange.export(
            self._database, self._blobs, request.model, request.after_observation_id, with_images=request.with_images
        )
        pieces = _pieces(writers[request.format](lines))
        while chunk := await asyncio.to_thread(next, pieces, b""):
            yield pb.ExportFeedbackResponse(chunk=chunk)

    async def ListObservations(
        self, request: pb.ListObservationsRequest, context: Context
    ) -> pb.ListObservationsResponse:
        """List a page of pictures."""
        await self._check_reader(context)
        page = await asyncio.to_thread(
            self._reviewing.list,
            request.model,
            filter_of(request),
            order_of(request),
            request.page_size,
            request.page_token,
        )
        return pb.ListObservationsResponse(
            observations=[pack(each) for each in page.observations],
            next_page_token=page.next_token,
            waiting_count=page.waiting,
        )

    async def GetObservationImage(
        self, request: pb.GetObservationImageRequest, context: Context
    ) -> pb.GetObservationImageResponse:
        """Return the file of a picture."""
        await self._check_reader(context)
        image, format_name, orientation = await asyncio.to_thread(self._reviewing.image, request.id)
        return pb.GetObservationImageResponse(image=image, format=format_name, orientation=orientation)

    async def ReviewObservation(
        self, request: pb.ReviewObservationRequest, context: Context
    ) -> pb.ReviewObservationResponse:
        """Take in what a reviewer decides."""
        caller = allowed_caller(context, Scope.FEEDBACK)
        decision = decision_of(request)
        found = await asyncio.to_thread(self._reviewing.review, caller, request.id, decision, request.label)
        self._wake(found.model)
        return pb.ReviewObservationResponse(observation=pack(found))

    async def _check_reader(self, context: Context) -> None:
        await asyncio.to_thread(check_reader, self._database, allowed_caller(context, Scope.FEEDBACK))

    async def _send(self, caller: Caller, feedback: NewFeedback, began: datetime) -> FeedbackResult:
        result = await asyncio.to_thread(self._voting.send, caller, feedback, began)
        if result.new:
            self._wake(result.model)
        return result


def _feedback(request: pb.SendFeedbackRequest) -> NewFeedback:
    return NewFeedback(
        request.prediction_id,
        request.model,
        request.label,
        request.correct if request.WhichOneof("verdict") == "correct" else None,
        request.comment,
        request.image,
    )


def _imported(request: pb.ImportFeedbackRequest) -> Iterator[NewFeedback | InvalidInput]:
    """Yield what a message of an import says, and where it says nothing that can be taken in, why."""
    part = request.WhichOneof("part")
    if part == "feedback":
        yield _feedback(request.feedback)
    elif part == "label_studio_json":
        try:
            text = request.label_studio_json.decode()
        except UnicodeDecodeError as error:
            yield InvalidInput(f"the task is not UTF-8: {error}; encode it", reason="MALFORMED")
        else:
            yield from exchange.read_label_studio(text)
    else:
        yield InvalidInput(
            f"every message after the header must be feedback or a task of Label Studio; {part or 'nothing'} came: "
            "send the header once",
            field="part",
        )


def _of_model(said: NewFeedback | InvalidInput, model: str) -> NewFeedback:
    """Return what was said as being of *model*; raise why it cannot be taken in."""
    if isinstance(said, InvalidInput):
        raise said
    if said.model not in ("", model):
        raise InvalidInput(
            f"the feedback is of model {said.model[:150]!r}, and the import of {model!r}; import it apart",
            reason="OTHER_MODEL",
            field="model",
        )
    return replace(said, model=model)


async def _receive_header(requests: AsyncIterator[pb.ImportFeedbackRequest]) -> str:
    first = await _next(requests) or pb.ImportFeedbackRequest()
    if first.WhichOneof("part") != "header":
        raise InvalidInput(
            "the first message of an import must be its header; a message with "
            f"{first.WhichOneof('part') or 'nothing'} came: send the header first",
            field="header",
        )
    return first.header.model


async def _next(requests: AsyncIterator[pb.ImportFeedbackRequest]) -> pb.ImportFeedbackRequest | None:
    """Return the next message, None after the last; a client whose connection is dead must not hold its import."""
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            return await anext(aiter(requests), None)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"no feedback came for {IDLE_SECONDS} seconds; send the import again, what came before is kept"
        ) from error


def _pieces(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Yield *parts* by the many: a message for each costs more than the parts do."""
    piece = bytearray()
    for part in parts:
        piece += part
        while len(piece) >= _CHUNK_BYTES:
            yield bytes(piece[:_CHUNK_BYTES])
            del piece[:_CHUNK_BYTES]
    if piece:
        yield bytes(piece)
