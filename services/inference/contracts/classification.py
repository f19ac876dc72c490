"""Class scores -> the best classes; one code for `Classify` and for the protocol's classification extension."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aimass.open_inference import grpc_service_pb2 as pb
from services.common.errors import InvalidInput
from services.inference.engine import BFLOAT16

if TYPE_CHECKING:
    from services.inference.contracts.execution import Executed
    from services.inference.models.version import LoadedVersion

LARGE_SCORES = 10_000
"""More scores than this are sorted in a thread, away from the event loop."""


@dataclass(frozen=True)
class ScoredClass:
    """A class with its score."""

    index: int
    label: str
    """Empty where the model has no labels."""
    score: float


def is_numeric(scores: np.ndarray) -> bool:
    """Whether *scores* are numbers, which can be ordered; of bfloat16 numpy itself does not know that."""
    return scores.dtype.kind in "fiu" or scores.dtype == BFLOAT16


def best_classes(scores: np.ndarray, labels: Sequence[str], top: int) -> list[ScoredClass]:
    """Return the *top* classes of one sample, best first; 0 means all.

    Equal scores are ordered by index, so that the answer never depends on the sort.

    Args:
        scores: Shape (classes,), any real datatype.
        labels: One per class, or none.
        top: How many to return.
    """
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    chosen = order[:top] if top else order
    return [
        ScoredClass(index, labels[index] if index < len(labels) else "", float(scores[index]))
        for index in chosen.tolist()
    ]


def classification_strings(scores: np.ndarray, labels: Sequence[str], top: int) -> np.ndarray:
    """Return the classification extension's form of a batch: `<score>:<index>[:<label>]`.

    Args:
        scores: Shape (batch, classes).
        labels: One per class, or none.
        top: How many per sample, at least 1.

    Returns:
        Objects of type bytes, shape (batch, min(top, classes)).
    """
    rows = [[_string(each) for each in best_classes(row, labels, top)] for row in scores]
    strings = np.empty((len(rows), len(rows[0])), np.object_)
    strings[:] = rows
    return strings


def _string(scored: ScoredClass) -> bytes:
    text = f"{scored.score:f}:{scored.index}"
    return (f"{text}:{scored.label}" if scored.label else text).encode()


def datatypes_of(executed: Executed, arrays: Sequence[np.ndarray]) -> list[str]:
    """Return the datatypes of an answer's *arrays*, of which some may have become classes."""
    datatypes = {spec.name: spec.datatype for spec in executed.version.signature.outputs}
    return [
        "BYTES" if array.dtype.hasobject else datatypes[name]
        for name, array in zip(executed.outputs, arrays, strict=True)
    ]


async def apply_classifications(request: pb.ModelInferRequest, executed: Executed) -> list[np.ndarray]:
    """Return the outputs, as classes where *request* asks for the classification extension.

    Raises:
        InvalidInput: It asks for no class, or for classes of text.
    """
    outputs = executed.inference.outputs

    def apply() -> list[np.ndarray]:
        return [
            _apply_classification(request, name, array, executed.version)
            for name, array in zip(executed.outputs, outputs, strict=True)
        ]

    if not any("classification" in output.parameters for output in request.outputs):
        return outputs
    if sum(array.size for array in outputs) > LARGE_SCORES:
        return await asyncio.to_thread(apply)
    return apply()


def _apply_classification(
    request: pb.ModelInferRequest, name: str, array: np.ndarray, version: LoadedVersion
) -> np.ndarray:
    """Turn an output into classes where the request asks for the classification extension."""
    top = next(
        (
            out.parameters["classification"].int64_param
            for out in request.outputs
            if out.name == name and "classification" in out.parameters
        ),
        None,
    )
    if top is None:
        return array
    if top < 1 or not is_numeric(array) or array.ndim < 1:
        raise InvalidInput(
            f"output {name!r} cannot be classified with top {top}; ask for 1 or more of a numeric output"
        )
    rows = array.reshape(len(array), -1) if version.signature.max_batch_size else array.reshape(1, -1)
    strings = classification_strings(rows, version.labels_of(name), top)
    return strings if version.signature.max_batch_size else strings[0]
