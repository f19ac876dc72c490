"""The Open Inference Protocol, Triton's dialect, over the loaded models."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any, cast

import structlog

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from services.common.errors import NotFound, NotReady, Unsupported
from services.common.peers import check_same_machine
from services.common.server import StopSignal
from services.common.statuses import log_failure, status_of
from services.common.streaming import answer_in_order
from services.common.traffic import all_serve, model_not_found, ready_versions
from services.inference.batching.statistics import statistics_message
from services.inference.config.model_config import PLATFORM
from services.inference.contracts.classification import apply_classifications, datatypes_of
from services.inference.contracts.execution import Executed, deadline_of, execute
from services.inference.contracts.log_settings import LogSettings
from services.inference.contracts.memory_tensors import MemoryRequest, memory_inputs, memory_outputs, uses_shared_memory
from services.inference.contracts.repository_requests import check_repository, index_message, load_overrides
from services.inference.contracts.requests import add_timings, pack_response, requested_version, wants_timings
from services.inference.contracts.shared_memory import MemorySlice, Region, SharedMemory
from services.inference.contracts.traces import Traces, log_trace
from services.inference.engine import TensorSpec
from services.inference.models.serving import ModelServer
from services.inference.models.version import LoadedVersion

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger(__name__)

EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""Names as Triton reports them; a client asks only for what is listed. Without ensembles, no model has dependents."""
STREAM_WINDOW = 64
"""Requests of one stream that are worked on at once: two of the largest batches that models have by default."""
ERROR_STATUS_KEY = "triton_grpc_error"
"""Metadata with which a client asks for a stream's errors as a status that ends it, not as messages."""


class OpenInferenceServicer(GRPCInferenceServiceServicer):
    """Unpacks, calls, packs."""

    def __init__(self, models: ModelServer, stop: StopSignal, max_tensor_bytes: int) -> None:
        self._models = models
        self._stop = stop
        self._memory = SharedMemory(max_tensor_bytes)
        self._traces = Traces()
        self._logs = LogSettings()

    def close(self) -> None:
        """Let go of shared memory and of the log."""
        self._memory.unregister("")
        self._logs.close()

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Say that the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Say whether every model can serve requests that name no version; a repository without models cannot."""
        try:
            ready = all_serve(self._models.states().values())
        except NotReady:
            ready = False
        return pb.ServerReadyResponse(ready=ready)

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
        version = self._resolve(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[str(number) for number in ready_versions(self._models.states()[request.name])],
            platform=PLATFORM,
            inputs=[_tensor_metadata(spec) for spec in version.signature.inputs],
            outputs=[_tensor_metadata(spec) for spec in version.signature.outputs],
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """Return the completed configuration."""
        return pb.ModelConfigResponse(config=self._resolve(request.name, request.version).config)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Return the counters of one version, of one model's or of all loaded versions."""
        wanted = requested_version(request.version)
        states = self._models.states()
        if request.name and request.name not in states:
            raise model_not_found(request.name, states)
        return pb.ModelStatisticsResponse(
            model_stats=[
                statistics_message(name, number, self._models.resolve(name, number).version.statistics)
                for name, state in states.items()
                if request.name in ("", name)
                for number in ([wanted] if wanted else ready_versions(state))
            ]
        )

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Run a version on tensors."""
        start = time.perf_counter_ns()
        traced = self._traces.sample(request.model_name)
        given, memory = self._with_memory(request, context)
        timed = wants_timings(request)
        executed = await execute(self._models, given, deadline_of(context))
        done = time.perf_counter_ns()
        response = await _pack(request, executed, memory)
        if timed:
            add_timings(response, executed.inference)
        if traced:
            log_trace(request.model_name, executed.number, request.id, start, done, executed.inference)
        if self._logs.verbose:
            log.info("inference answered", model=request.model_name, version=executed.number, id=request.id)
        return response

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer requests in their order, several of them being worked on at once."""
        ends = any(key == ERROR_STATUS_KEY and value == "true" for key, value in context.invocation_metadata() or ())

        async def answer(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            try:
                response = await self.ModelInfer(request, context)
            except Exception as failure:
                if ends:
                    raise
                return _stream_error(request.id, failure)
            response.parameters["triton_final_response"].bool_param = True  # each request has one answer
            return pb.ModelStreamInferResponse(infer_response=response)

        async with aclosing(answer_in_order(self._stop.until(request_iterator), answer, STREAM_WINDOW)) as responses:
            async for response in responses:
                yield response

    def _with_memory(
        self, request: pb.ModelInferRequest, context: Context
    ) -> tuple[pb.ModelInferRequest, Mapping[str, MemorySlice]]:
        """Return *request* with its inputs from shared memory, and where outputs go there."""
        if not uses_shared_memory(request):
            return request, {}
        check_same_machine(context)
        given = MemoryRequest.of(request, memory_inputs(request, self._memory))
        return cast(pb.ModelInferRequest, given), memory_outputs(request, self._memory)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """List the versions of all models, and why one does not serve."""
        check_repository(request.repository_name)
        return index_message(self._models.states().values(), request.ready)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Bring a model in line with its folder, or with what the request brings along."""
        check_repository(request.repository_name)
        config, files = load_overrides(request)
        await self._models.load(request.model_name, config, files)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model until it is loaded again."""
        check_repository(request.repository_name)
        await self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: Context
    ) -> pb.SystemSharedMemoryStatusResponse:
        """Return a registered region, or all."""
        check_same_machine(context)
        regions = self._memory.regions(request.name)
        return pb.SystemSharedMemoryStatusResponse(regions={region.name: _region_status(region) for region in regions})

    async def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: Context
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Make a client's shared memory known under a name."""
        check_same_machine(context)
        self._memory.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: Context
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forget a region, or all."""
        check_same_machine(context)
        self._memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: pb.CudaSharedMemoryStatusRequest, context: Context
    ) -> pb.CudaSharedMemoryStatusResponse:
        """Return no region: none can be registered."""
        if request.name:
            raise NotFound(
                f"region {request.name!r} is not registered: this server takes no CUDA shared memory; "
                "use system shared memory"
            )
        return pb.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryRegister(
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Refuse: tensors are taken from the machine's memory only."""
        raise Unsupported("this server takes no CUDA shared memory; use system shared memory")

    async def CudaSharedMemoryUnregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest, context: Context
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """Do nothing: stock clients unregister everything before they start."""
        return pb.CudaSharedMemoryUnregisterResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        """Change which requests are traced, and return all trace settings."""
        if request.model_name and request.model_name not in self._models.states():
            raise model_not_found(request.model_name, self._models.states())
        changes = {name: setting.value for name, setting in request.settings.items()}
        self._traces.update(request.model_name, changes)
        return pb.TraceSettingResponse(
            settings={
                name: pb.TraceSettingResponse.SettingValue(value=values)
                for name, values in self._traces.settings(request.model_name).items()
            }
        )

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        """Change what is logged, and return all log settings."""
        kinds = {name: (value, value.WhichOneof("parameter_choice")) for name, value in request.settings.items()}
        self._logs.update({name: getattr(value, kind) for name, (value, kind) in kinds.items() if kind})
        return pb.LogSettingsResponse(
            settings={name: _log_setting(value) for name, value in self._logs.values().items()}
        )

    def _resolve(self, name: str, version: str) -> LoadedVersion:
        return self._models.resolve(name, requested_version(version)).version


async def _pack(
    request: pb.ModelInferRequest, executed: Executed, memory: Mapping[str, MemorySlice]
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=str(executed.number), id=request.id)
    response.parameters["traffic_generation"].int64_param = executed.generation
    arrays = await apply_classifications(request, executed)
    return pack_response(response, executed.outputs, datatypes_of(executed, arrays), arrays, memory)


def _stream_error(identity: str, failure: Exception) -> pb.ModelStreamInferResponse:
    """Return the message about one failed request, which must not end the stream."""
    status = status_of(failure)
    log_failure(status, failure, method="ModelStreamInfer")
    return pb.ModelStreamInferResponse(error_message=status.message, infer_response=pb.ModelInferResponse(id=identity))


def _region_status(region: Region) -> pb.SystemSharedMemoryStatusResponse.RegionStatus:
    return pb.SystemSharedMemoryStatusResponse.RegionStatus(
        name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size
    )


def _log_setting(value: bool | int | str) -> pb.LogSettingsResponse.SettingValue:
    if isinstance(value, bool):
        return pb.LogSettingsResponse.SettingValue(bool_param=value)
    if isinstance(value, int):
        return pb.LogSettingsResponse.SettingValue(uint32_param=value)
    return pb.LogSettingsResponse.SettingValue(string_param=value)


def _tensor_metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
