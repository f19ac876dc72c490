"""The preprocess contract."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aimass.inference.v1 import lifecycle_pb2
from aimass.open_inference import grpc_service_pb2
from aimass.preprocess.v1 import preprocess_pb2 as pb
from aimass.preprocess.v1.preprocess_pb2_grpc import PreprocessServiceServicer
from services.common.durations import duration_of
from services.common.errors import Conflict, InvalidInput, NotFound
from services.common.manifest import DIGEST_PARAMETER, PreprocessSpec
from services.common.tensors import numpy_dtype
from services.common.tracing import span
from services.common.traffic import NEW_VERSION_SECONDS, TrafficFollower
from services.preprocess.metrics import PreprocessFigures
from services.preprocess.preparation import Preparer, join_tensors

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

RESULTS_BYTES = 1024 * 1024
"""Room that a message keeps for what is said beside the tensor."""


class PreprocessServicer(PreprocessServiceServicer):
    """Unpacks, calls, packs."""

    def __init__(
        self,
        preparer: Preparer,
        follower: TrafficFollower,
        figures: PreprocessFigures,
        max_images: int,
        max_message_bytes: int,
    ) -> None:
        self._preparer = preparer
        self._figures = figures
        self._follower = follower
        self._max_images = max_images
        self._max_tensor_bytes = max_message_bytes - RESULTS_BYTES

    async def Preprocess(self, request: pb.PreprocessRequest, context: Context) -> pb.PreprocessResponse:
        """Turn images into the input of a model version."""
        begin = time.perf_counter_ns()
        count = len(request.images)
        if not 1 <= count <= self._max_images:
            raise InvalidInput(f"the request holds {count} images; send 1 to {self._max_images}", field="images")
        version = await self._version(request.model, request.version)
        spec = _spec_of(request.model, version)
        self._check_tensor_bytes(count, spec)
        with span("decode", {"images": count}):
            prepared = await self._preparer.prepare(request.images, spec)
        outcomes = [each.outcome for each in prepared]
        tensors = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
        response = pb.PreprocessResponse(results=_results(outcomes))
        if tensors:
            response.request.CopyFrom(_infer_request(request, spec, version.preprocess_digest, len(tensors)))
            # Added last: protobuf copies messages by writing and reading them, which takes seconds for a GB.
            response.request.raw_input_contents.append(await join_tensors(tensors))
        took = time.perf_counter_ns() - begin
        self._figures.record(request.model, request.version, took, prepared)
        response.duration.CopyFrom(duration_of(took))
        return response

    def _check_tensor_bytes(self, count: int, spec: PreprocessSpec) -> None:
        """Refuse here, in both deployments, what only a message between processes would be too small for."""
        each = math.prod(spec.shape) * numpy_dtype(spec.datatype).itemsize
        if count * each > self._max_tensor_bytes:
            raise InvalidInput(
                f"the tensor of {count} images has {count * each:,} bytes; the limit is {self._max_tensor_bytes:,}; "
                f"send at most {self._max_tensor_bytes // each} images at once, or raise the MAX_MESSAGE_BYTES of "
                "preprocess and inference",
                reason="TENSOR_TOO_LARGE",
                field="images",
            )

    async def _version(self, model: str, version: int) -> lifecycle_pb2.ModelVersion:
        found = self._find(model, version)
        if found is None and await self._follower.wait_for(
            lambda: self._find(model, version) is not None, NEW_VERSION_SECONDS
        ):
            found = self._find(model, version)
        if found is None:
            self._follower.model(model)  # an unknown model has an error of its own
            raise NotFound(
                f"model {model!r} has no version {version}; name one that ListModels gives, or leave version out",
                reason="VERSION_NOT_FOUND",
                field="version",
            )
        return found

    def _find(self, model: str, version: int) -> lifecycle_pb2.ModelVersion | None:
        state = self._follower.models.get(model)
        return next((each for each in state.versions if each.version == version), None) if state else None


def _spec_of(model: str, version: lifecycle_pb2.ModelVersion) -> PreprocessSpec:
    if not version.preprocess_spec:
        raise Conflict(
            f"version {version.version} of model {model!r} has no preprocess spec, so it takes tensors only; "
            "add preprocess to its model.json or send tensors through ModelInfer",
            reason="NO_PREPROCESS_SPEC",
        )
    return _parse_spec(version.preprocess_spec)


@functools.lru_cache(maxsize=1024)
def _parse_spec(document: bytes) -> PreprocessSpec:
    return PreprocessSpec.model_validate_json(document)


def _infer_request(
    request: pb.PreprocessRequest, spec: PreprocessSpec, digest: str, count: int
) -> grpc_service_pb2.ModelInferRequest:
    """Return all but the bytes of the tensor."""
    infer = grpc_service_pb2.ModelInferRequest(model_name=request.model, model_version=str(request.version))
    infer.inputs.add(name=spec.input, datatype=spec.datatype, shape=(count, *spec.shape))
    infer.parameters[DIGEST_PARAMETER].string_param = digest
    return infer


def _results(prepared: Sequence[np.ndarray | InvalidInput]) -> list[pb.ImageResult]:
    results, index = [], 0
    for each in prepared:
        if isinstance(each, InvalidInput):
            results.append(pb.ImageResult(error=pb.ImageError(reason=each.reason, message=each.message)))
        else:
            results.append(pb.ImageResult(index=index))
            index += 1
    return results
