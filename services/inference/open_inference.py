"""The Open Inference Protocol, Triton's dialect, over the loaded models."""

from __future__ import annotations

import asyncio
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

import numpy as np

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from services.common.errors import InvalidInput, NotFound, NotReady
from services.common.traffic import can_serve, model_not_found, ready_versions
from services.inference.classification import LARGE_SCORES, classification_strings
from services.inference.engine import TensorSpec
from services.inference.execution import Executed, deadline_of, execute
from services.inference.model_config import PLATFORM
from services.inference.requests import pack_response, requested_version
from services.inference.serving import ModelServer
from services.inference.statistics import Duration, Statistics
from services.inference.version import LoadedVersion

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

EXTENSIONS = ("classification", "model_configuration", "statistics", "binary_tensor_data", "parameters")
"""Names as Triton reports them; a client asks only for what is listed."""


class OpenInferenceServicer(GRPCInferenceServiceServicer):
    """Unpacks, calls, packs."""

    def __init__(self, models: ModelServer) -> None:
        self._models = models

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Say that the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Say whether every model can serve requests that name no version; a repository without models cannot."""
        try:
            states = self._models.states().values()
        except NotReady:
            return pb.ServerReadyResponse(ready=False)
        return pb.ServerReadyResponse(ready=bool(states) and all(map(can_serve, states)))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Say whether a version can serve; one that does not exist cannot."""
        try:
            self._resolve(request.name, request.version)
        except (NotFound, NotReady):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Return name, version and extensions."""
        return pb.ServerMetadataResponse(name="aimass", version=package_version("aimass"), extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """Return what a version takes and gives."""
        _, version = self._resolve(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[str(number) for number in ready_versions(self._models.states()[request.name])],
            platform=PLATFORM,
            inputs=[_tensor_metadata(spec) for spec in version.signature.inputs],
            outputs=[_tensor_metadata(spec) for spec in version.signature.outputs],
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """Return the completed configuration."""
        return pb.ModelConfigResponse(config=self._resolve(request.name, request.version)[1].config)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Return the counters of one version, of one model's or of all loaded versions."""
        wanted = requested_version(request.version)
        states = self._models.states()
        if request.name and request.name not in states:
            raise model_not_found(request.name, states)
        return pb.ModelStatisticsResponse(
            model_stats=[
                statistics_message(name, number, self._models.resolve(name, number)[1].statistics)
                for name, state in states.items()
                if request.name in ("", name)
                for number in ([wanted] if wanted else ready_versions(state))
            ]
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Run a version on tensors."""
        executed = await execute(self._models, request, deadline_of(context))
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version=str(executed.number), id=request.id
        )
        arrays = await _apply_classifications(request, executed)
        return pack_response(response, executed.outputs, _datatypes(executed, arrays), arrays)

    def _resolve(self, name: str, version: str) -> tuple[int, LoadedVersion]:
        return self._models.resolve(name, requested_version(version))


def _datatypes(executed: Executed, arrays: list[np.ndarray]) -> list[str]:
    datatypes = {spec.name: spec.datatype for spec in executed.version.signature.outputs}
    return [
        "BYTES" if array.dtype.hasobject else datatypes[name]
        for name, array in zip(executed.outputs, arrays, strict=True)
    ]


async def _apply_classifications(request: pb.ModelInferRequest, executed: Executed) -> list[np.ndarray]:
    """Turn those outputs into classes for which the request asks for the classification extension."""
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
    if top < 1 or array.dtype.hasobject or array.ndim < 1:
        raise InvalidInput(
            f"output {name!r} cannot be classified with top {top}; ask for 1 or more of a numeric output"
        )
    rows = array.reshape(len(array), -1) if version.signature.max_batch_size else array.reshape(1, -1)
    strings = classification_strings(rows, version.labels, top)
    return strings if version.signature.max_batch_size else strings[0]


def _tensor_metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def statistics_message(name: str, number: int, statistics: Statistics) -> pb.ModelStatistics:
    """Return the contract's form of a version's counters."""
    return pb.ModelStatistics(
        name=name,
        version=str(number),
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.inference_count,
        execution_count=statistics.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=_duration(statistics.compute_input),
            compute_infer=_duration(statistics.compute_infer),
            compute_output=_duration(statistics.compute_output),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for size, batch in sorted(statistics.batches.items())
        ],
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
