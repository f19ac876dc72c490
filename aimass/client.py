"""The Python client: images in, typed labels out; sync and async."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub

Image = bytes | str | Path
"""The bytes of an encoded image, or the path of a file that holds them."""

DEFAULT_ADDRESS = "127.0.0.1:8001"
DEFAULT_MODEL = "cifar10"


@dataclass(frozen=True)
class Label:
    """A class and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in seconds."""

    preprocess: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True)
class Prediction:
    """The labels of one image, best first."""

    prediction_id: str
    model: str
    version: int
    labels: tuple[Label, ...]
    timings: Timings
    captured: bool = False
    """Whether image and answer are kept to learn from; feedback on one that is not brings the image again."""

    @property
    def label(self) -> str:
        """The best label."""
        return self.labels[0].label

    @property
    def probability(self) -> float:
        """The probability of the best label."""
        return self.labels[0].probability


@dataclass(frozen=True)
class Feedback:
    """What became of what was said of a prediction."""

    state: str
    """`captured`, `pending`, `accepted`, `quarantined`, `proposed` or `rejected`."""
    state_reason: str
    """Stable word that says why, such as `NEIGHBOURS_DISAGREE`; empty where the state says all."""
    created: bool
    """Whether it was new."""


@dataclass(frozen=True)
class Model:
    """A model that the suite serves."""

    name: str
    version: int
    ready: bool
    accepts_images: bool
    labels: tuple[str, ...]
    ready_versions: tuple[int, ...]
    metrics: dict[str, float]
    state_reason: str
    """Why the model is not ready; empty when it is."""


class PredictionError(Exception):
    """A request or an image that was not answered.

    Attributes:
        code: Canonical gRPC code, such as `INVALID_ARGUMENT`.
        reason: Stable word, such as `TRUNCATED_IMAGE`.
        message: One sentence that names the value, the limit and what to change.
    """

    def __init__(self, code: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message


Outcome = Prediction | PredictionError


class Client:
    """Calls a suite and waits for its answers; use it as a context manager or close it.

    Args:
        address: Of the gateway.
        key: Who calls, where the suite wants to know: from `aimass keys make`.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, key: str = "") -> None:
        self._metadata = key_metadata(key)
        self._channel = grpc.insecure_channel(address, options=channel_options(address))
        self._stub = GatewayServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def predict(self, image: Image, model: str = DEFAULT_MODEL, **options: Any) -> Prediction:
        """Return the labels of one image; options are those of `predict_many`.

        Raises:
            PredictionError: The image or the request is bad, or the suite cannot answer.
        """
        return _only(self.predict_many([image], model, **options))

    def predict_many(
        self,
        images: Iterable[Image],
        model: str = DEFAULT_MODEL,
        *,
        top: int = 5,
        version: int = 0,
        routing_key: str = "",
        timeout: float | None = 30.0,
    ) -> list[Outcome]:
        """Return, in order, the labels of each image or the error that it met.

        Args:
            images: Encoded images or paths.
            model: Name of the model.
            top: Labels per image.
            version: Version to use; 0 lets the model's traffic decide.
            routing_key: Requests with the same key are served by the same version.
            timeout: Seconds until the call is given up.

        Raises:
            PredictionError: The request as a whole cannot be answered.
        """
        request = _request(images, model, top, version, routing_key)
        try:
            return _outcomes(self._stub.Predict(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            raise call_error(error) from error

    def send_feedback(
        self,
        prediction: Prediction | str,
        label: str | None = None,
        *,
        correct: bool | None = None,
        comment: str = "",
        image: Image | None = None,
        model: str = "",
        timeout: float | None = 30.0,
    ) -> Feedback:
        """Say what a prediction should have been: its right *label*, or whether it was *correct*.

        Args:
            prediction: The prediction or its id; an empty one where *image* and *model* say what is meant.
            label: What it should have been.
            correct: Whether the answer was right. Of a prediction that was not captured the suite does not know the
                answer any more; where *prediction* is more than an id, its label says that it was right.
            comment: Kept, and never learnt from.
            image: The same image again, where the prediction was not captured.
            model: Model that answered; known where *prediction* is more than an id.
            timeout: Seconds until the call is given up.

        Raises:
            PredictionError: The suite refuses it or cannot answer.
            ValueError: Both *label* and *correct* are given, or neither.
        """
        request = _feedback_request(prediction, label, correct, comment, image, model)
        try:
            return _feedback(self._stub.SendFeedback(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            raise call_error(error) from error

    def models(self, timeout: float | None = 30.0) -> list[Model]:
        """Return the models that the suite serves.

        Raises:
            PredictionError: The suite cannot answer.
        """
        try:
            return _models(self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            raise call_error(error) from error


class AsyncClient:
    """The same as `Client`, for asyncio."""

    def __init__(self, address: str = DEFAULT_ADDRESS, key: str = "") -> None:
        self._metadata = key_metadata(key)
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(address))
        self._stub = GatewayServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def predict(self, image: Image, model: str = DEFAULT_MODEL, **options: Any) -> Prediction:
        """See `Client.predict`."""
        return _only(await self.predict_many([image], model, **options))

    async def predict_many(
        self,
        images: Iterable[Image],
        model: str = DEFAULT_MODEL,
        *,
        top: int = 5,
        version: int = 0,
        routing_key: str = "",
        timeout: float | None = 30.0,
    ) -> list[Outcome]:
        """See `Client.predict_many`."""
        request = _request(images, model, top, version, routing_key)
        try:
            return _outcomes(await self._stub.Predict(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            raise call_error(error) from error

    async def send_feedback(
        self,
        prediction: Prediction | str,
        label: str | None = None,
        *,
        correct: bool | None = None,
        comment: str = "",
        image: Image | None = None,
        model: str = "",
        timeout: float | None = 30.0,
    ) -> Feedback:
        """See `Client.send_feedback`."""
        request = _feedback_request(prediction, label, correct, comment, image, model)
        try:
            return _feedback(await self._stub.SendFeedback(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            raise call_error(error) from error

    async def models(self, timeout: float | None = 30.0) -> list[Model]:
        """See `Client.models`."""
        try:
            return _models(
                await self._stub.ListModels(pb.ListModelsRequest(), timeout=timeout, metadata=self._metadata)
            )
        except grpc.RpcError as error:
            raise call_error(error) from error


def channel_options(address: str) -> list[tuple[str, int]]:
    """Leave sizes to the server, and a proxy that the environment names out of the way to this machine."""
    local = address.removeprefix("[").startswith(("localhost", "127.", "::1"))
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_http_proxy", int(not local)),
    ]


def key_metadata(key: str) -> tuple[tuple[str, str], ...]:
    """Return what tells a suite whose call it is; nothing where *key* is empty.

    Raises:
        PredictionError: No key is written like that; what it is stays a secret.
    """
    if not (key.isascii() and key.isprintable()):
        raise PredictionError(
            "UNAUTHENTICATED",
            "MALFORMED_KEY",
            f"the key of {len(key)} characters has others than keys consist of, which are letters, digits, '_' and "
            "'-'; correct --key or AIMASS_KEY",
        )
    return (("authorization", f"Bearer {key}"),) if key else ()


def _bytes(image: Image) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _request(images: Iterable[Image], model: str, top: int, version: int, routing_key: str) -> pb.PredictRequest:
    encoded = [_bytes(image) for image in images]
    return pb.PredictRequest(model=model, version=version, images=encoded, top=top, routing_key=routing_key)


def _outcomes(response: pb.PredictResponse) -> list[Outcome]:
    times = response.timings
    timings = Timings(
        *(each.ToNanoseconds() / 1e9 for each in (times.preprocess, times.queue, times.inference, times.total))
    )
    return [_outcome(response, result, timings) for result in response.results]


def _outcome(response: pb.PredictResponse, result: pb.PredictResult, timings: Timings) -> Outcome:
    if result.HasField("error"):
        return PredictionError(result.error.code, result.error.reason, result.error.message)
    labels = tuple(Label(each.label, each.probability) for each in result.prediction.labels)
    prediction = result.prediction
    return Prediction(prediction.prediction_id, response.model, response.version, labels, timings, prediction.captured)


def _feedback_request(
    prediction: Prediction | str,
    label: str | None,
    correct: bool | None,
    comment: str,
    image: Image | None,
    model: str,
) -> pb.SendFeedbackRequest:
    if (label is None) == (correct is None):
        raise ValueError("give either the right label, or whether the answer was correct")
    request = pb.SendFeedbackRequest(
        prediction_id=prediction.prediction_id if isinstance(prediction, Prediction) else prediction,
        comment=comment,
        image=b"" if image is None else _bytes(image),
        model=model or (prediction.model if isinstance(prediction, Prediction) else ""),
    )
    if correct and isinstance(prediction, Prediction) and not prediction.captured:
        request.label = prediction.label
    elif correct is not None:
        request.correct = correct
    elif label is not None:
        request.label = label
    return request


def _feedback(response: pb.SendFeedbackResponse) -> Feedback:
    return Feedback(response.state, response.state_reason, response.created)


def _only(outcomes: Sequence[Outcome]) -> Prediction:
    (outcome,) = outcomes
    if isinstance(outcome, PredictionError):
        raise outcome
    return outcome


def _models(response: pb.ListModelsResponse) -> list[Model]:
    return [
        Model(
            each.name,
            each.version,
            each.ready,
            each.accepts_images,
            tuple(each.labels),
            tuple(each.ready_versions),
            dict(each.metrics),
            each.state_reason,
        )
        for each in response.models
    ]


def call_error(error: Any) -> PredictionError:
    """Return what *error*, of a call, is in the suite's own words."""
    code, message = error.code().name, error.details() or error.code().name
    status = rpc_status.from_call(error)
    if code == "UNAVAILABLE" and status is None:  # not the suite's words, but grpc's
        message = f"no suite answers; start one with `aimass up` or name its address ({message})"
    info = error_details_pb2.ErrorInfo()
    reason = next((info.reason for detail in (status.details if status else ()) if detail.Unpack(info)), code)
    return PredictionError(code, reason, message)
