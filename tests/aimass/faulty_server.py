"""A server of the Open Inference Protocol that is right, and ones that are each wrong in one way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference import model_config_pb2
from aimass.open_inference.grpc_service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

Code = grpc.StatusCode
MODEL, MAX_BATCH = "sums", 4
INPUTS, OUTPUTS = ("a", "b"), ("sum", "difference")


class Refused(Exception):
    """A request is refused with a status."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(code, sentence)


class Right(GRPCInferenceServiceServicer):
    """Adds and subtracts rows of four, and does all that stock clients rely on."""

    version = "1"
    dims = (4,)
    extensions = (
        *("classification", "model_configuration", "model_repository", "statistics", "binary_tensor_data"),
        *("parameters", "trace", "logging"),
    )
    options = (("grpc.max_receive_message_length", -1),)
    max_calls: int | None = None
    health = health_pb2.HealthCheckResponse.SERVING
    metrics: tuple[int, str] | None = (200, '# TYPE nv_inference_count counter\nnv_inference_count{model="sums"} 1\n')

    def __init__(self) -> None:
        self.count = 0

    def add_to(self, server: grpc.aio.Server) -> None:
        add_GRPCInferenceServiceServicer_to_server(self, server)

    async def ServerLive(self, request, context):
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request, context):
        return pb.ServerReadyResponse(ready=True)

    async def ModelReady(self, request, context):
        return pb.ModelReadyResponse(ready=request.name == MODEL)

    async def ServerMetadata(self, request, context):
        return pb.ServerMetadataResponse(name="right", version="1", extensions=self.extensions)

    async def ModelMetadata(self, request, context):
        await self._find(request.name, request.version, context)
        return pb.ModelMetadataResponse(
            name=MODEL,
            versions=[self.version],
            platform="test",
            inputs=[_metadata(name) for name in INPUTS],
            outputs=[_metadata(name) for name in OUTPUTS],
        )

    async def ModelConfig(self, request, context):
        await self._find(request.name, request.version, context)
        inputs = [model_config_pb2.ModelInput(name=name, data_type="TYPE_FP32", dims=self.dims) for name in INPUTS]
        outputs = [model_config_pb2.ModelOutput(name=name, data_type="TYPE_FP32", dims=self.dims) for name in OUTPUTS]
        config = model_config_pb2.ModelConfig(name=MODEL, max_batch_size=MAX_BATCH, input=inputs, output=outputs)
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request, context):
        await self._find(request.name or MODEL, request.version, context)
        return pb.ModelStatisticsResponse(model_stats=[self.statistics()])

    def statistics(self) -> pb.ModelStatistics:
        each = pb.StatisticDuration(count=self.count, ns=1000 * self.count)
        names = ("success", "queue", "compute_input", "compute_infer", "compute_output")
        return pb.ModelStatistics(
            name=MODEL,
            version=self.version,
            inference_count=self.count,
            execution_count=self.count,
            inference_stats=pb.InferStatistics(**dict.fromkeys(names, each)),
        )

    async def RepositoryIndex(self, request, context):
        model = pb.RepositoryIndexResponse.ModelIndex(name=MODEL, version=self.version, state="READY")
        return pb.RepositoryIndexResponse(models=[model])

    async def RepositoryModelLoad(self, request, context):
        await self._find(request.model_name, "", context)
        return pb.RepositoryModelLoadResponse()

    async def TraceSetting(self, request, context):
        return pb.TraceSettingResponse(settings={"trace_level": pb.TraceSettingResponse.SettingValue(value=["OFF"])})

    async def LogSettings(self, request, context):
        return pb.LogSettingsResponse(settings={"log_info": pb.LogSettingsResponse.SettingValue(bool_param=True)})

    async def ModelInfer(self, request, context):
        try:
            return self.infer(request)
        except Refused as refused:
            await context.abort(*refused.args)

    async def ModelStreamInfer(self, requests, context):
        as_status = ("triton_grpc_error", "true") in (context.invocation_metadata() or ())
        async for request in requests:
            try:
                answer = self.infer(request)
                answer.parameters["triton_final_response"].bool_param = True
                yield pb.ModelStreamInferResponse(infer_response=answer)
            except Refused as refused:
                if as_status:
                    await context.abort(*refused.args)
                yield pb.ModelStreamInferResponse(error_message=refused.args[1])

    async def _find(self, name, version, context) -> None:
        if name != MODEL or version not in ("", self.version):
            await context.abort(Code.NOT_FOUND, f"model {name!r} version {version!r} is not there")

    def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        a, b = self.unpack(request)
        self.count += 1
        arrays = {"sum": a + b, "difference": a - b}
        response = pb.ModelInferResponse(model_name=MODEL, model_version=self.version, id=request.id)
        for output in request.outputs or [pb.ModelInferRequest.InferRequestedOutputTensor(name=n) for n in OUTPUTS]:
            if output.name not in arrays:
                raise Refused(Code.INVALID_ARGUMENT, f"there is no output {output.name!r} in {MODEL}")
            self.pack(response, output, arrays[output.name])
        return response

    def unpack(self, request: pb.ModelInferRequest) -> tuple[np.ndarray, np.ndarray]:
        if request.model_name != MODEL or request.model_version not in ("", self.version):
            raise Refused(Code.NOT_FOUND, f"model {request.model_name!r} version {request.model_version!r} isn't there")
        raw = request.raw_input_contents
        if sorted(each.name for each in request.inputs) != list(INPUTS) or len(raw) not in (0, len(INPUTS)):
            raise Refused(Code.INVALID_ARGUMENT, f"give each of {INPUTS} once, and all or none of them raw")
        arrays = {each.name: self.array(each, raw[i] if raw else None) for i, each in enumerate(request.inputs)}
        return arrays["a"], arrays["b"]

    def array(self, tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> np.ndarray:
        if raw is not None and tensor.HasField("contents"):
            raise Refused(Code.INVALID_ARGUMENT, f"input {tensor.name} is raw and typed; choose one")
        if tensor.datatype != "FP32" or len(tensor.shape) != 2 or tensor.shape[1] != 4:
            raise Refused(Code.INVALID_ARGUMENT, f"input {tensor.name} must be FP32 of shape [-1, 4]")
        self.check_batch(tensor.shape[0])
        values = np.frombuffer(raw, np.uint8) if raw is not None else np.float32(tensor.contents.fp32_contents)
        if values.nbytes != tensor.shape[0] * 16:
            raise Refused(Code.INVALID_ARGUMENT, f"input {tensor.name} has {values.nbytes} bytes for its shape")
        return values.view(np.float32).reshape(tensor.shape)

    def check_batch(self, samples: int) -> None:
        if not 1 <= samples <= MAX_BATCH:
            raise Refused(Code.INVALID_ARGUMENT, f"a batch has 1 to {MAX_BATCH} samples, this has {samples}")

    def pack(self, response, output, array: np.ndarray) -> None:
        datatype, shape, raw = "FP32", array.shape, array.tobytes()
        if "classification" in output.parameters:
            classes = [b"%f:%d" % (row.max(), row.argmax()) for row in array]
            raw = b"".join(chain.from_iterable((len(each).to_bytes(4, "little"), each) for each in classes))
            datatype, shape = "BYTES", (len(classes), 1)
        response.outputs.add(name=output.name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)


def _metadata(name: str) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=name, datatype="FP32", shape=[-1, 4])


class NoModelConfig(Right):
    async def ModelConfig(self, request, context):
        await context.abort(Code.UNIMPLEMENTED, "Method not implemented!")


class TypedOutputs(Right):
    def pack(self, response, output, array):
        tensor = response.outputs.add(name=output.name, datatype="FP32", shape=array.shape)
        tensor.contents.fp32_contents.extend(array.flat)


class MissingRawEntries(Right):
    def infer(self, request):
        response = super().infer(request)
        del response.raw_output_contents[-1]
        return response


class VersionV1(Right):
    version = "v1"


class QueueNotCounted(Right):
    """As a server that counts only requests which had to wait."""

    def statistics(self):
        statistics = super().statistics()
        statistics.inference_stats.queue.count = 0
        return statistics


class EmptyStatistics(Right):
    async def ModelStatistics(self, request, context):
        await super().ModelStatistics(request, context)
        return pb.ModelStatisticsResponse()


class UnequalComputes(Right):
    def statistics(self):
        statistics = super().statistics()
        statistics.inference_stats.compute_output.count //= 2
        return statistics


class FailingStatistics(Right):
    async def ModelStatistics(self, request, context):
        await context.abort(Code.UNIMPLEMENTED, "Method not implemented!")


class UnlistedStatistics(FailingStatistics):
    extensions = tuple(name for name in Right.extensions if name != "statistics")


class RefusesUnknownParameters(Right):
    def infer(self, request):
        if request.parameters:
            raise Refused(Code.INVALID_ARGUMENT, f"unknown parameters {list(request.parameters)}")
        return super().infer(request)


class AcceptsAnyBatch(Right):
    def check_batch(self, samples):
        if samples < 1:
            super().check_batch(samples)


class Hangs(Right):
    async def ModelInfer(self, request, context):
        await asyncio.Future()


class HangsOnWrong(Right):
    async def ModelInfer(self, request, context):
        try:
            return self.infer(request)
        except Refused:
            await asyncio.Future()


class ClosesStreams(Right):
    async def ModelStreamInfer(self, requests, context):
        async for request in requests:
            try:
                yield pb.ModelStreamInferResponse(infer_response=self.infer(request))
            except Refused as refused:
                await context.abort(*refused.args)


class FaultsOfItsOwn(Right):
    def infer(self, request):
        try:
            return super().infer(request)
        except Refused as refused:
            raise Refused(Code.INTERNAL, refused.args[1]) from refused


class BareStream(Right):
    """Sends ModelInferResponse where a stream's messages are ModelStreamInferResponse."""

    def add_to(self, server):
        method = grpc.stream_stream_rpc_method_handler(
            self._answers, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
        )
        handlers = {"ModelStreamInfer": method}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
        )
        super().add_to(_Generic(server))

    async def _answers(self, requests, context):
        async for request in requests:
            yield self.infer(request)


class _Generic:
    """A server whose handlers are all generic; registered ones would go before those that were added first."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service, handlers) -> None:
        pass


class ForgetsIds(Right):
    def infer(self, request):
        response = super().infer(request)
        response.id = ""
        return response


class FewWorkers(Right):
    max_calls = 12


class DefaultLimits(Right):
    options = ()


class ListsCuda(Right):
    extensions = (*Right.extensions, "cuda_shared_memory")


class BatchInConfig(Right):
    dims = (-1, 4)


class StrangeInput(Right):
    async def ModelConfig(self, request, context):
        response = await super().ModelConfig(request, context)
        response.config.input[0].name = "c"
        return response


class RawOnly(Right):
    def array(self, tensor, raw):
        if raw is None:
            raise Refused(Code.INVALID_ARGUMENT, f"input {tensor.name} must be raw")
        return super().array(tensor, raw)


class IgnoresTyped(Right):
    def array(self, tensor, raw):
        if raw is not None:
            tensor.ClearField("contents")
        return super().array(tensor, raw)


class InputsByPosition(Right):
    """Takes its inputs by their place in the request, whatever their names."""

    def unpack(self, request):
        if sorted(each.name for each in request.inputs) == list(INPUTS):
            for name, tensor in zip(INPUTS, request.inputs, strict=True):
                tensor.name = name
        return super().unpack(request)


class NoMetrics(Right):
    metrics = None


class FailingMetrics(Right):
    metrics = (404, "not found")


class ForeignMetrics(Right):
    metrics = (200, "python_gc_objects_collected_total 1\n")


class NeverReady(Right):
    async def ServerReady(self, request, context):
        return pb.ServerReadyResponse(ready=False)


class KnowsEveryModel(Right):
    async def ModelReady(self, request, context):
        return pb.ModelReadyResponse(ready=True)


class LoadsAnything(Right):
    async def RepositoryModelLoad(self, request, context):
        return pb.RepositoryModelLoadResponse()


class IgnoresClassification(Right):
    def pack(self, response, output, array):
        output.parameters.clear()
        super().pack(response, output, array)


class NotServing(Right):
    health = health_pb2.HealthCheckResponse.NOT_SERVING


class OddState(Right):
    async def RepositoryIndex(self, request, context):
        response = await super().RepositoryIndex(request, context)
        if not request.ready:
            response.models.add(name="other", version="1", state="Available")
        return response


class KeepsWorkers(Right):
    """Its worker waits for ever with what a caller gave up; there is one worker."""

    def __init__(self) -> None:
        super().__init__()
        self._worker = asyncio.Lock()

    async def ModelInfer(self, request, context):
        await self._worker.acquire()
        if context.time_remaining() < 0.2:
            return None
        self._worker.release()
        return await super().ModelInfer(request, context)


class SharedMemoryWithoutEntry(Right):
    """Writes outputs to a region and adds no entry for them."""

    extensions = (*Right.extensions, "system_shared_memory")

    def __init__(self) -> None:
        super().__init__()
        self._regions: set[str] = set()

    async def SystemSharedMemoryStatus(self, request, context):
        return pb.SystemSharedMemoryStatusResponse()

    async def SystemSharedMemoryRegister(self, request, context):
        self._regions.add(request.name)
        return pb.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request, context):
        self._regions.discard(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def pack(self, response, output, array):
        super().pack(response, output, array)
        region = output.parameters["shared_memory_region"].string_param
        if region in self._regions:
            del response.raw_output_contents[-1]
        elif region:
            raise Refused(Code.NOT_FOUND, f"region {region} is not registered")


class OtherPackage(Right):
    """Speaks the same protocol under TorchServe's name for it."""

    def add_to(self, server):
        method = grpc.unary_unary_rpc_method_handler(self.ServerLive, pb.ServerLiveRequest.FromString)
        name = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"ServerLive": method}),))

    async def ServerLive(self, request, context):
        return b"\x08\x01"


class Address(str):
    """host:port of a server, and where its metrics are."""

    metrics_url: str


@asynccontextmanager
async def serving(make: Callable[[], Right]) -> AsyncIterator[Address]:
    """Serve what *make* returns on free ports, and yield its address."""
    servicer = make()
    server = grpc.aio.server(options=servicer.options, maximum_concurrent_rpcs=servicer.max_calls)
    servicer.add_to(server)
    healths = health.aio.HealthServicer()
    await healths.set("", servicer.health)
    add_HealthServicer_to_server(healths, server)
    address = Address(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    metrics = await asyncio.start_server(partial(_tell, servicer.metrics), "127.0.0.1", 0)
    address.metrics_url = f"127.0.0.1:{metrics.sockets[0].getsockname()[1]}/metrics"
    try:
        yield address
    finally:
        metrics.close()
        await server.stop(0)


async def _tell(metrics: tuple[int, str] | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one HTTP request, or close the connection."""
    await reader.readuntil(b"\r\n\r\n")
    if metrics is not None:
        status, text = metrics
        writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode())
    writer.close()
