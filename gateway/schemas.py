"""The documents of the HTTP interface, as OpenAPI describes them."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel

from aimass.trainer.v1 import loop_pb2
from gateway.message_json import words_of

NumberInPath = Annotated[int, Path(ge=1, le=2**63 - 1)]


class Prediction(BaseModel):
    """A class and its probability."""

    label: str
    probability: float | None
    """Null where the model gave no finite number."""


class ImageAnswer(BaseModel):
    """Labels of one image, by falling probability."""

    prediction_id: str
    model: str
    version: int
    predictions: list[Prediction]
    captured: bool
    """Whether image and answer are kept to learn from; one that is not can be sent again with its feedback."""


class Error(BaseModel):
    """What is wrong."""

    code: str
    """Canonical gRPC code, such as INVALID_ARGUMENT."""
    reason: str
    """Stable word, such as TRUNCATED_IMAGE."""
    message: str
    """One sentence that names the value, the limit and what to change."""


class Failure(BaseModel):
    """A request or an image that could not be answered."""

    error: Error


class ImageAnswers(BaseModel):
    """Answers to several images, in order."""

    results: list[ImageAnswer | Failure]


Answer = ImageAnswer | ImageAnswers


class Model(BaseModel):
    """A model that the suite serves."""

    name: str
    version: int | None
    state: str
    state_reason: str
    """Why the model cannot serve; empty when it can."""
    accepts_images: bool
    labels: list[str]
    versions: list[int]
    metrics: dict[str, float]


class Models(BaseModel):
    """All models, by name."""

    models: list[Model]


IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}
"""The body of a prediction: the bytes of an image, or a form with one file part per image."""


def _json_body(required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in properties.items()},
        "required": list(required),
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_VERDICT = {name: {"type": "string"} for name in ("label", "comment", "model")} | {"correct": {"type": "boolean"}}
FEEDBACK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "properties": _VERDICT}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": _VERDICT | {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
"""A verdict: `label` or `correct`; the form brings the image of a prediction that was not captured."""
REVIEW_BODY = _json_body(label="string", undecidable="boolean", reject="boolean", release="boolean")
"""A decision: one of its members."""
REQUEST_ID = "8 to 64 letters, digits and `-`; who asks twice with the same asks once."
_REQUEST_ID = {"type": "string", "description": REQUEST_ID}
_VERSION = {"type": "integer", "format": "int64"}
TRIGGER = _json_body(["request_id"], reason="string", strategy="string", request_id=_REQUEST_ID)
PROPOSAL = _json_body(
    ["version", "request_id"],
    version=_VERSION | {"minimum": 1},
    goal={"type": "string", "enum": list(words_of(loop_pb2.Cycle.Goal.DESCRIPTOR))},
    request_id=_REQUEST_ID,
)
PROMOTION, REJECTION = (
    _json_body(
        ["version", "request_id"], version=_VERSION | {"minimum": least}, reason="string", request_id=_REQUEST_ID
    )
    for least in (1, 0)
)
ROLLBACK = _json_body(["request_id"], reason="string", request_id=_REQUEST_ID)
PICTURE: dict[str, Any] = {
    "content": {
        f"image/{each}": {"schema": {"type": "string", "format": "binary"}} for each in ("jpeg", "png", "webp")
    },
    "headers": {"Image-Orientation": {"schema": {"type": "integer", "minimum": 1, "maximum": 8}}},
}
"""The answer that is the picture of an observation."""
ANALYSIS: dict[str, Any] = {
    "content": {"application/json": {"schema": {"type": "object"}}, "text/html": {"schema": {"type": "string"}}}
}
"""The answer that is what is known of a model: its members depend on what was measured."""
