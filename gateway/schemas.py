"""The documents of the HTTP interface, as OpenAPI describes them."""

from typing import Any

from pydantic import BaseModel


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


class FeedbackAnswer(BaseModel):
    """What became of what was said of a prediction."""

    state: str
    """`captured`, `pending`, `accepted`, `quarantined`, `proposed` or `rejected`."""
    state_reason: str
    """Stable word that says why; empty where the state says all."""
    created: bool
    """Whether it was new."""


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


def _json_body(**properties: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {name: {"type": kind} for name, kind in properties.items()}}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


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
TRIGGER_BODY = _json_body(reason="string", strategy="string", request_id="string")
VERSION_BODY = _json_body(version="integer", reason="string", request_id="string")
REASON_BODY = _json_body(reason="string", request_id="string")
