"""The suite's own inference contract: typed classification."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aimass.inference.v1 import inference_pb2 as pb
from aimass.inference.v1.inference_pb2_grpc import InferenceServiceServicer
from services.common.durations import duration_of
from services.common.errors import Conflict, InvalidInput
from services.inference.batching.batcher import Inference
from services.inference.contracts.classification import LARGE_SCORES, best_classes, is_numeric
from services.inference.contracts.execution import deadline_of, execute
from services.inference.models.serving import ModelServer

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(InferenceServiceServicer):
    """Unpacks, calls, packs."""

    def __init__(self, models: ModelServer) -> None:
        self._models = models

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        """Run a classifier and return the best classes of each sample."""
        if request.top < 0:
            raise InvalidInput(f"top is {request.top}; ask for 1 or more, or 0 for all classes", field="top")
        executed = await execute(self._models, request.request, deadline_of(context), split=True)
        name = request.request.model_name
        scores = executed.inference.outputs[0]
        if len(executed.outputs) != 1 or scores.ndim != 2 or not is_numeric(scores):
            raise Conflict(
                f"model {name!r} is not a classifier: it needs one numeric output of shape [batch, classes]; "
                "use ModelInfer",
                reason="NOT_A_CLASSIFIER",
            )
        labels = executed.version.labels_of(executed.outputs[0])
        if scores.size > LARGE_SCORES:
            classifications = await asyncio.to_thread(_classifications, scores, labels, request.top)
        else:
            classifications = _classifications(scores, labels, request.top)
        return pb.ClassifyResponse(
            model=name,
            version=executed.number,
            classifications=classifications,
            timings=_timings(executed.inference),
            traffic_generation=executed.generation,
        )


def _classifications(scores: np.ndarray, labels: Sequence[str], top: int) -> list[pb.Classification]:
    return [
        pb.Classification(
            classes=[
                pb.ScoredClass(index=each.index, label=each.label, probability=each.score)
                for each in best_classes(row, labels, top)
            ]
        )
        for row in scores
    ]


def _timings(inference: Inference) -> pb.StageTimings:
    return pb.StageTimings(
        queue=duration_of(inference.queue),
        compute_input=duration_of(inference.times.compute_input),
        compute_infer=duration_of(inference.times.compute_infer),
        compute_output=duration_of(inference.times.compute_output),
        batch_size=inference.batch_size,
        batch_requests=inference.batch_requests,
    )
