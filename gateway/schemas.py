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
