"""Feedback and reviews over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.trainer.v1 import feedback_pb2
from gateway import schemas
from gateway.bodies import is_form, read_form
from gateway.callers import unless_disconnected
from gateway.compression import read_body
from gateway.documents import check_members, member, parse_object, quoted
from gateway.feedback import Feedback
from gateway.message_json import number_of
from gateway.message_schemas import answer_model
from gateway.trainer_http import TrainerCalls, json_of
from services.common.errors import InvalidInput

if TYPE_CHECKING:
    from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceAsyncStub

Order, State, Role = (
    feedback_pb2.ListObservationsRequest.Order.DESCRIPTOR,
    feedback_pb2.Observation.State.DESCRIPTOR,
    feedback_pb2.Observation.Role.DESCRIPTOR,
)
_REVIEWS = ("undecidable", "reject", "release")
_PICTURE_HEADERS = {
    # What strangers have sent is shown, never run, and kept in no cache: it can be deleted.
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class FeedbackRoutes:
    """The paths of feedback.

    Args:
        feedback: Sends what users say.
        stub: The trainer's feedback, for reviews.
        calls: How that is called.
    """

    def __init__(self, feedback: Feedback, stub: FeedbackServiceAsyncStub, calls: TrainerCalls) -> None:
        self._feedback = feedback
        self._stub = stub
        self._calls = calls

    def router(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter()
        router.post(
            "/v1/predictions/{prediction_id}/feedback",
            summary="Say what a prediction should have been",
            response_model=answer_model(pb.SendFeedbackResponse),
            openapi_extra=schemas.FEEDBACK_BODY,
        )(self._send)
        router.get(
            "/v1/models/{model}/observations",
            summary="List pictures that users have sent",
            response_model=answer_model(feedback_pb2.ListObservationsResponse),
        )(self._list)
        router.get(
            "/v1/observations/{number}/image",
            summary="Show the picture of an observation",
            response_class=Response,
            responses={200: schemas.PICTURE},
        )(self._image)
        router.post(
            "/v1/observations/{number}/review",
            summary="Decide on an observation",
            response_model=answer_model(feedback_pb2.ReviewObservationResponse),
            openapi_extra=schemas.REVIEW_BODY,
        )(self._review)
        return router

    async def _send(self, request: Request, prediction_id: str) -> Response:
        """Say it as JSON, or as a form that brings the image again; either `label` or `correct`."""
        deadline = self._calls.deadline(request)
        with self._calls.bodies.holding() as take:
            async with asyncio.timeout(deadline.remaining()):
                if is_form(request):
                    document, images = await read_form(request, self._calls.max_body_bytes, 1, take)
                    message = _verdict(prediction_id, _typed(document), images)
                else:
                    body = await read_body(request, self._calls.max_body_bytes, take)
                    message = _verdict(prediction_id, parse_object(body, "the feedback"), [])
            answer = await unless_disconnected(request, self._feedback.send(message, deadline.remaining()))
        return json_of(answer)

    async def _list(
        self,
        request: Request,
        model: str,
        order: Annotated[str, Query(description="newest, uncertain, disagreement or drawn.")] = "newest",
        state: Annotated[list[str] | None, Query(description="Only in these states.")] = None,
        role: Annotated[str, Query(description="Only to train on, or to judge by.")] = "",
        label: str = "",
        contributor: str = "",
        page_size: Annotated[int, Query(ge=0, le=200)] = 0,
        page_token: str = "",
    ) -> Response:
        """List them a page at a time: the queue of reviews."""
        message = feedback_pb2.ListObservationsRequest(
            model=model,
            states=[number_of(State, each) for each in state or ()],
            order=number_of(Order, order),
            label=label,
            contributor=contributor,
            role=number_of(Role, role) if role else feedback_pb2.Observation.ROLE_UNSPECIFIED,
            page_size=page_size,
            page_token=page_token,
        )
        return await self._calls.answer(request, self._stub.ListObservations, message)

    async def _image(self, request: Request, number: schemas.NumberInPath) -> Response:
        """Return the picture without metadata; `Image-Orientation` says how to turn it, as EXIF numbers it."""
        message = feedback_pb2.GetObservationImageRequest(id=number)
        picture = await self._calls.call(request, self._stub.GetObservationImage, message)
        headers = {**_PICTURE_HEADERS, "Image-Orientation": str(picture.orientation or 1)}
        return Response(picture.image, headers=headers, media_type=f"image/{picture.format.lower()}")

    async def _review(self, request: Request, number: schemas.NumberInPath) -> Response:
        """Give one of four decisions: the label, that nobody can tell, that it is not wanted, or that it is right."""
        message = feedback_pb2.ReviewObservationRequest(id=number)
        document = await self._calls.document(request, ("label", *_REVIEWS), "the review")
        given = _only(document, ("label", *_REVIEWS), "the review")
        if given == "label":
            message.label = member(document, "label", str, "the review")
        else:
            setattr(message, given, member(document, given, bool, "the review"))
        return await self._calls.answer(request, self._stub.ReviewObservation, message)


def _verdict(prediction_id: str, document: dict[str, Any], images: list[bytes]) -> pb.SendFeedbackRequest:
    check_members(document, ("label", "correct", "comment", "model"), "the feedback")
    given = _only(document, ("label", "correct"), "the feedback")
    message = pb.SendFeedbackRequest(
        prediction_id=prediction_id,
        comment=member(document, "comment", str, "the feedback", ""),
        model=member(document, "model", str, "the feedback", ""),
        image=images[0] if images else b"",
    )
    if given == "label":
        message.label = member(document, "label", str, "the feedback")
    else:
        message.correct = member(document, "correct", bool, "the feedback")
    return message


def _only(document: Mapping[str, Any], possible: Sequence[str], what: str) -> str:
    """Return the one of *possible* members, which exclude each other, that *document* has."""
    given = [name for name in possible if name in document]
    if len(given) != 1:
        raise InvalidInput(f"{what} has {_found(given, possible)}; give one of them")
    return given[0]


def _found(given: Sequence[str], possible: Sequence[str]) -> str:
    """Return in words which of what excludes each other was given: several, or none of what is possible."""
    *first, last = given or possible
    if given:
        return f"{'both ' if len(given) == 2 else ''}{', '.join(first)} and {last}"
    return f"neither {first[0]} nor {last}" if len(possible) == 2 else f"none of {', '.join(first)} and {last}"


def _typed(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a form, whose values all are text, as JSON would have them."""
    correct = fields.get("correct")
    if correct is None:
        return dict(fields)
    if correct not in ("true", "false"):
        raise InvalidInput(f"the field 'correct' of the form is {quoted(correct)}; give true or false")
    return {**fields, "correct": correct == "true"}
