"""Every error of the inference contracts, walked: what came, what was expected, and what to change."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import grpc
import pytest
from onnx import TensorProto, helper

from aimass.inference.v1 import inference_pb2
from aimass.inference.v1 import lifecycle_pb2 as life
from aimass.inference.v1.inference_pb2_grpc import InferenceServiceStub
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services import common
from services.common.manifest import Graph, Manifest, digest_of
from services.inference import contracts
from services.inference.models import desired_traffic, repository, serving, uploads
from tests.error_texts import not_walked

MODULES = [
    *(path for path in Path(common.__path__[0]).glob("*.py") if path.name != "manifest.py"),
    *Path(contracts.__path__[0]).glob("*.py"),
    *(Path(each.__file__) for each in (desired_traffic, repository, serving, uploads)),
]
REGION_BYTES = 100
MISSING_GRAPH = Manifest(graph=Graph(sha256="sha256:" + 64 * "0", size_bytes=10)).to_json().encode()


@dataclass(frozen=True)
class Server:
    """A server's stubs, and the shared memory that is registered there."""

    infer: GRPCInferenceServiceStub
    classify: InferenceServiceStub
    lifecycle: ModelLifecycleServiceStub
    channel: grpc.aio.Channel
    key: str

    def tensor(self, **fields) -> Awaitable[pb.ModelInferResponse]:
        return self.infer.ModelInfer(tensor(**fields))

    def load(self, model: str = "tiny", repository: str = "", **parameters) -> Awaitable[object]:
        request = pb.RepositoryModelLoadRequest(model_name=model, repository_name=repository)
        for name, value in parameters.items():
            key = name.replace("__", ":").replace("_onnx", ".onnx")
            request.parameters[key].CopyFrom(
                pb.ModelRepositoryParameter(bytes_param=value)
                if isinstance(value, bytes)
                else pb.ModelRepositoryParameter(string_param=value)
            )
        return self.infer.RepositoryModelLoad(request)

    def register(self, name: str, key: str, byte_size: int = 10, offset: int = 0) -> Awaitable[object]:
        return self.infer.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size)
        )

    def trace(self, model: str = "", **settings: str) -> Awaitable[object]:
        values = {name: pb.TraceSettingRequest.SettingValue(value=[value]) for name, value in settings.items()}
        return self.infer.TraceSetting(pb.TraceSettingRequest(model_name=model, settings=values))

    def log(self, name: str, **value) -> Awaitable[object]:
        settings = {name: pb.LogSettingsRequest.SettingValue(**value)}
        return self.infer.LogSettings(pb.LogSettingsRequest(settings=settings))

    def traffic(self, **fields) -> Awaitable[object]:
        return self.lifecycle.SetTraffic(life.SetTrafficRequest(**{"model": "tiny", "stable_version": 1} | fields))

    async def delete_given(self) -> None:
        """Delete a version that came with a request."""
        graph = helper.make_graph(
            [helper.make_node("Neg", ["x"], ["y"])],
            "given",
            *([helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])] for name in "xy"),
        )
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
        await self.load("given", config="{}", **{"file:1/model.onnx": model.SerializeToString()})
        await self.lifecycle.DeleteVersion(life.DeleteVersionRequest(model="given", version=1))

    async def publish_at_the_same_time(self) -> None:
        """Upload what another call uploads, which has sent its first part and does not end."""
        sent = asyncio.Event()

        async def parts() -> AsyncIterator[life.PublishVersionRequest]:
            for message in self._parts("header", b"x"):
                yield message
            await sent.wait()

        other = self.lifecycle.PublishVersion(parts())
        digest = Manifest.from_json(MISSING_GRAPH, "").graph.sha256
        while not (
            await self.lifecycle.GetUpload(life.GetUploadRequest(model="new", graph_digest=digest))
        ).received_bytes:
            pass
        try:
            await self.publish("header", b"x")
        finally:
            other.cancel()
            sent.set()

    def publish(self, *parts: bytes | str, **header: object) -> Awaitable[object]:
        return self.lifecycle.PublishVersion(iter(self._parts(*parts, **header)))

    def _parts(
        self, *parts: bytes | str, model: str = "new", manifest: bytes = MISSING_GRAPH, offset: int = 0
    ) -> list[life.PublishVersionRequest]:
        """Return an upload: `header` stands for the header, bytes for a chunk."""
        fields = life.PublishVersionHeader(model=model, manifest=manifest, offset=offset)
        header = life.PublishVersionRequest(header=fields)
        return [header if part == "header" else life.PublishVersionRequest(chunk=part) for part in parts]


def tensor(
    model: str = "tiny",
    name: str = "image",
    datatype: str = "UINT8",
    shape=(1, 4, 4, 3),
    raw: bytes | None = bytes(48),
    more_raw: bytes | None = None,
    typed: dict | None = None,
    memory: dict | None = None,
    top: int | None = None,
    **fields,
) -> pb.ModelInferRequest:
    """Return a good request for the tiny classifier, but for what is said otherwise."""
    contents = [each for each in (raw, more_raw) if each is not None]
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=contents, **fields)
    given = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if typed is not None:
        given.contents.CopyFrom(pb.InferTensorContents(**typed))
    for key, value in (memory or {}).items():
        parameter = {"string_param": value} if isinstance(value, str) else {"int64_param": value}
        given.parameters[f"shared_memory_{key}"].CopyFrom(pb.InferParameter(**parameter))
    if top is not None:
        request.outputs.add(name="probabilities").parameters["classification"].int64_param = top
    return request


def pair(first: int, second: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="pair", raw_input_contents=[bytes(16 * first), bytes(16 * second)])
    request.inputs.add(name="a", datatype="FP32", shape=[first, 4])
    request.inputs.add(name="b", datatype="FP32", shape=[second, 4])
    return request


def output_in_memory(byte_size: int) -> pb.ModelInferRequest:
    request = tensor()
    parameters = request.outputs.add(name="probabilities").parameters
    parameters["shared_memory_region"].string_param = "region"
    parameters["shared_memory_byte_size"].int64_param = byte_size
    return request


def parameter(**value) -> dict:
    return {"parameters": {"timeout": pb.InferParameter(**value)}}


@dataclass(frozen=True)
class Row:
    """A wrong request, and what its answer must say."""

    name: str
    ask: Callable[[Server], Awaitable[object]]
    code: str
    came: str
    expected: str
    change: str


TABLE = [
    Row(*each)
    for each in [
        # ModelInfer: which version
        ("unknown model", lambda s: s.tensor(model="other"), "NOT_FOUND", "'other'", "has: ", "name one"),
        ("no version", lambda s: s.tensor(model_version="7"), "NOT_FOUND", "no version 7", "has: 1", "name one"),
        ("version", lambda s: s.tensor(model_version="v1"), "INVALID_ARGUMENT", "'v1'", "from 1", "or leave it out"),
        ("not loaded", lambda s: s.tensor(model="broken"), "UNAVAILABLE", "'broken'", "cannot be loaded", "export"),
        ("traffic file", lambda s: s.tensor(model="lost"), "UNAVAILABLE", "traffic.json", "from 0", "mend or remove"),
        (
            "not loaded, named",
            lambda s: s.tensor(model="broken", model_version="1"),
            "UNAVAILABLE",
            "version 1 of model 'broken' is UNAVAILABLE",
            "cannot be loaded",
            "export",
        ),
        # ModelInfer: inputs
        ("names", lambda s: s.tensor(name="x"), "INVALID_ARGUMENT", "['x']", "exactly ['image']", "send exactly"),
        (
            "raw contents",
            lambda s: s.tensor(more_raw=b""),
            "INVALID_ARGUMENT",
            "2 raw_input_contents",
            "1 inputs",
            "give one for each",
        ),
        ("datatype", lambda s: s.tensor(datatype="FP32"), "INVALID_ARGUMENT", "'FP32'", "UINT8", "send UINT8"),
        ("shape", lambda s: s.tensor(shape=[1, 5, 4, 3]), "INVALID_ARGUMENT", "[1, 5, 4, 3]", "[-1, 4, 4, 3]", "send"),
        (
            "negative dimension",
            lambda s: s.tensor(model="free", name="x", datatype="FP32", shape=[1, -1, 2], raw=bytes(8)),
            "INVALID_ARGUMENT",
            "[1, -1, 2]",
            "0 or more",
            "give 0 or more",
        ),
        (
            "absurd dimension",
            lambda s: s.tensor(model="free", name="x", datatype="FP32", shape=[2**62, 2**62, 0], raw=b""),
            "INVALID_ARGUMENT",
            "[4611686018427387904, 4611686018427387904, 0]",
            "no array can have",
            "use fewer or smaller",
        ),
        (
            "bytes",
            lambda s: s.tensor(raw=bytes(47)),
            "INVALID_ARGUMENT",
            "47 bytes",
            "shape [1, 4, 4, 3] of UINT8",
            "send 48",
        ),
        (
            "two contents",
            lambda s: s.tensor(typed={"uint_contents": [0] * 48}),
            "INVALID_ARGUMENT",
            "contents and raw_input_contents",
            "one of them",
            "give one",
        ),
        (
            "typed half",
            lambda s: s.tensor(model="half", name="x", datatype="FP16", shape=[1], raw=None, typed={}),
            "INVALID_ARGUMENT",
            "FP16",
            "no typed contents",
            "send it raw",
        ),
        (
            "typed count",
            lambda s: s.tensor(raw=None, typed={"uint_contents": [0] * 3}),
            "INVALID_ARGUMENT",
            "3 values",
            "shape [1, 4, 4, 3]",
            "send 48",
        ),
        (
            "typed value",
            lambda s: s.tensor(raw=None, typed={"uint_contents": [300] * 48}),
            "INVALID_ARGUMENT",
            "300",
            "UINT8",
            "send values from 0 to 255",
        ),
        ("batches", lambda s: s.infer.ModelInfer(pair(1, 2)), "INVALID_ARGUMENT", "{'a': 1, 'b': 2}", "same", "send"),
        (
            "empty",
            lambda s: s.infer.ModelInfer(pair(0, 0)),
            "INVALID_ARGUMENT",
            "{'a': 0, 'b': 0}",
            "1 or more",
            "send",
        ),
        (
            "too many samples",
            lambda s: s.tensor(shape=[5, 4, 4, 3], raw=bytes(5 * 48)),
            "INVALID_ARGUMENT",
            "5 samples",
            "1 to 4",
            "send",
        ),
        (
            "cut text",
            lambda s: s.tensor(model="text", name="x", datatype="BYTES", shape=[1, 1], raw=b"\x05\0\0\0ab"),
            "INVALID_ARGUMENT",
            "ends inside element 0",
            "length",
            "put",
        ),
        (
            "too much text",
            lambda s: s.tensor(model="text", name="x", datatype="BYTES", shape=[1, 1], raw=bytes(8)),
            "INVALID_ARGUMENT",
            "8 bytes",
            "exactly 1 elements",
            "send 1 for shape [1, 1]",
        ),
        # ModelInfer: outputs and parameters
        (
            "outputs",
            lambda s: s.tensor(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="y")]),
            "INVALID_ARGUMENT",
            "['y']",
            "['probabilities'] once",
            "ask for each",
        ),
        ("classes", lambda s: s.tensor(top=0), "INVALID_ARGUMENT", "top 0", "1 or more", "ask for 1 or more"),
        (
            "timeout",
            lambda s: s.tensor(**parameter(int64_param=-1)),
            "INVALID_ARGUMENT",
            "is -1",
            "an integer from 0",
            "give an integer",
        ),
        (
            "kind of timeout",
            lambda s: s.tensor(**parameter(string_param="1")),
            "INVALID_ARGUMENT",
            "'timeout' is string_param",
            "an integer from 0",
            "give an integer",
        ),
        *(
            (
                f"kind of {name}",
                lambda s, name=name: s.tensor(parameters={name: pb.InferParameter(double_param=1)}),
                "INVALID_ARGUMENT",
                f"{name!r} is double_param",
                kind,
                f"give {kind}",
            )
            for name, kind in (
                ("priority", "an integer from 0"),
                ("routing_key", "a string"),
                ("aimass_timings", "true or false"),
            )
        ),
        (
            "no message",
            lambda s: s.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff"),
            "INVALID_ARGUMENT",
            "not a message",
            "the method's type",
            "send one",
        ),
        (
            "another spec",
            lambda s: s.tensor(parameters={"preprocess_digest": pb.InferParameter(string_param="sha256:0")}),
            "FAILED_PRECONDITION",
            "spec sha256:0",
            "trained with sha256:",
            "preprocess the image again",
        ),
        # Tensors in shared memory
        (
            "unknown region",
            lambda s: s.tensor(raw=None, memory={"region": "none", "byte_size": 48}),
            "NOT_FOUND",
            "'none'",
            "registered are: region",
            "register it first",
        ),
        (
            "outside the region",
            lambda s: s.tensor(raw=None, memory={"region": "region", "byte_size": 48, "offset": 90}),
            "INVALID_ARGUMENT",
            "48 bytes from byte 90",
            "has 100 bytes",
            "give",
        ),
        (
            "no place",
            lambda s: s.tensor(raw=None, memory={"region": "region", "byte_size": -1}),
            "INVALID_ARGUMENT",
            "-1 bytes",
            "integers from 0",
            "give",
        ),
        (
            "memory and contents",
            lambda s: s.tensor(raw=None, typed={}, memory={"region": "region", "byte_size": 48}),
            "INVALID_ARGUMENT",
            "48 bytes in shared memory",
            "no other contents",
            "give at most",
        ),
        (
            "memory and raw contents",
            lambda s: s.tensor(memory={"region": "region", "byte_size": 48}),
            "INVALID_ARGUMENT",
            "1 raw_input_contents",
            "0 inputs outside of shared memory",
            "give one for each",
        ),
        (
            "no place for an output",
            lambda s: s.infer.ModelInfer(output_in_memory(-1)),
            "INVALID_ARGUMENT",
            "output 'probabilities'",
            "-1 bytes",
            "integers from 0",
        ),
        (
            "output too large",
            lambda s: s.infer.ModelInfer(output_in_memory(4)),
            "INVALID_ARGUMENT",
            "12 bytes",
            "has 4",
            "give it more",
        ),
        # Classify
        (
            "top",
            lambda s: s.classify.Classify(inference_pb2.ClassifyRequest(request=tensor(), top=-1)),
            "INVALID_ARGUMENT",
            "top is -1",
            "1 or more",
            "ask for 1 or more, or 0",
        ),
        (
            "no classifier",
            lambda s: s.classify.Classify(
                inference_pb2.ClassifyRequest(
                    request=tensor(model="free", name="x", datatype="FP32", shape=[1, 1, 1], raw=bytes(4))
                )
            ),
            "FAILED_PRECONDITION",
            "'free'",
            "shape [batch, classes]",
            "use ModelInfer",
        ),
        # What is asked about models
        *(
            (f"{name} of another", ask, "NOT_FOUND", "'other'", "has: ", "name one")
            for name, ask in {
                "ModelMetadata": lambda s: s.infer.ModelMetadata(pb.ModelMetadataRequest(name="other")),
                "ModelConfig": lambda s: s.infer.ModelConfig(pb.ModelConfigRequest(name="other")),
                "ModelStatistics": lambda s: s.infer.ModelStatistics(pb.ModelStatisticsRequest(name="other")),
                "Unload": lambda s: s.infer.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="other")),
                "TraceSetting": lambda s: s.trace("other"),
                "ListVersions": lambda s: s.lifecycle.ListVersions(life.ListVersionsRequest(model="other")),
                "GetTraffic": lambda s: s.lifecycle.GetTraffic(life.GetTrafficRequest(model="other")),
                "SetTraffic": lambda s: s.traffic(model="other"),
                "Promote": lambda s: s.lifecycle.Promote(life.PromoteRequest(model="other")),
                "Rollback": lambda s: s.lifecycle.Rollback(life.RollbackRequest(model="other")),
                "DeleteVersion": lambda s: s.lifecycle.DeleteVersion(
                    life.DeleteVersionRequest(model="other", version=1)
                ),
            }.items()
        ),
        (
            "ModelReady of no version",
            lambda s: s.infer.ModelReady(pb.ModelReadyRequest(name="tiny", version="v1")),
            "INVALID_ARGUMENT",
            "'v1'",
            "an integer from 1",
            "or leave it out",
        ),
        # Loading with what a request brings along
        ("repository", lambda s: s.load(repository="r"), "NOT_FOUND", "'r'", "has one", "leave repository_name out"),
        ("load parameter", lambda s: s.load(x="y"), "INVALID_ARGUMENT", "'x'", "config and file:", "give config"),
        (
            "files alone",
            lambda s: s.load(file__1=b""),
            "INVALID_ARGUMENT",
            "files",
            "their model's config",
            "add the parameter config",
        ),
        (
            "no JSON",
            lambda s: s.load(config="{"),
            "INVALID_ARGUMENT",
            "parameter config",
            "ModelConfig in JSON",
            "correct it",
        ),
        (
            "unknown field",
            lambda s: s.load(config='{"nmae": "tiny"}'),
            "INVALID_ARGUMENT",
            "nmae",
            "ModelConfig in JSON",
            "correct it",
        ),
        ("no folder", lambda s: s.load("other"), "NOT_FOUND", "'other'", "other/<version>/", "create"),
        (
            "file elsewhere",
            lambda s: s.load("new", config="{}", **{"file:../1/model.onnx": b""}),
            "INVALID_ARGUMENT",
            "'../1/model.onnx'",
            "the model's folder",
            "give a path such as",
        ),
        (
            "file name",
            lambda s: s.load("new", config="{}", **{f"file:1/{'x' * 300}": b""}),
            "INVALID_ARGUMENT",
            "xxx' cannot be written",
            "name too long",
            "give a path such as",
        ),
        ("broken", lambda s: s.load("broken"), "INVALID_ARGUMENT", "broken", "cannot be loaded", "export"),
        # Regions of shared memory
        ("key", lambda s: s.register("a", "a/b"), "INVALID_ARGUMENT", "'a/b'", "up to 255", "give '/' and"),
        ("no memory", lambda s: s.register("a", "/none"), "NOT_FOUND", "'/none'", "No such file", "create it"),
        (
            "too small",
            lambda s: s.register("a", s.key, 200),
            "INVALID_ARGUMENT",
            "ends at byte 200",
            "has 100 bytes",
            "register less",
        ),
        ("no size", lambda s: s.register("a", s.key, 0), "INVALID_ARGUMENT", "0 bytes", "1 byte or more", "give it"),
        (
            "another machine",
            lambda s: s.infer.SystemSharedMemoryStatus(
                pb.SystemSharedMemoryStatusRequest(), metadata=[("x-forwarded-peer", "ipv4:192.0.2.7:40123")]
            ),
            "FAILED_PRECONDITION",
            "192.0.2.7",
            "one machine",
            "connect to 127.0.0.1",
        ),
        (
            "taken",
            lambda s: s.register("region", s.key),
            "FAILED_PRECONDITION",
            "'region'",
            "registered already",
            "unregister it first",
        ),
        (
            "status of none",
            lambda s: s.infer.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name="none")),
            "NOT_FOUND",
            "'none'",
            "registered are: region",
            "register it first",
        ),
        (
            "CUDA memory",
            lambda s: s.infer.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="a")),
            "UNIMPLEMENTED",
            "CUDA shared memory",
            "system shared memory",
            "use system",
        ),
        (
            "status of CUDA memory",
            lambda s: s.infer.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name="a")),
            "NOT_FOUND",
            "'a'",
            "no CUDA shared memory",
            "use system",
        ),
        # Traces and logs
        ("trace setting", lambda s: s.trace(rate="1"), "INVALID_ARGUMENT", "'rate'", "trace_rate", "use one of"),
        ("trace level", lambda s: s.trace(trace_level="ALL"), "UNIMPLEMENTED", "'ALL'", "TIMESTAMPS", "use OFF or"),
        ("trace file", lambda s: s.trace(trace_file="x"), "UNIMPLEMENTED", "'x'", "the service's log", "leave it ''"),
        ("trace rate", lambda s: s.trace(trace_rate="0"), "INVALID_ARGUMENT", "'0'", "from 1", "give one integer"),
        ("log setting", lambda s: s.log("log", bool_param=True), "INVALID_ARGUMENT", "'log'", "log_info", "use one of"),
        (
            "log value",
            lambda s: s.log("log_info", string_param="yes"),
            "INVALID_ARGUMENT",
            "'yes'",
            "bool_param",
            "give it as",
        ),
        (
            "log file",
            lambda s: s.log("log_file", string_param="x"),
            "UNIMPLEMENTED",
            "'x'",
            "standard error",
            "leave it ''",
        ),
        # Traffic
        ("no stable", lambda s: s.traffic(stable_version=0), "INVALID_ARGUMENT", "missing", "a version", "name a"),
        ("no such", lambda s: s.traffic(stable_version=7), "NOT_FOUND", "no version 7", "has: 1", "name one"),
        (
            "stale",
            lambda s: s.traffic(expected_generation=9),
            "FAILED_PRECONDITION",
            "not 9",
            "has generation",
            "look at it again",
        ),
        (
            "share",
            lambda s: s.traffic(canary=life.Canary(version=2, share=2)),
            "INVALID_ARGUMENT",
            "share is 2",
            "0 to 1",
            "give 0 to 1",
        ),
        (
            "no canary",
            lambda s: s.traffic(canary=life.Canary(share=0.5)),
            "INVALID_ARGUMENT",
            "canary names no version",
            "version",
            "name one, or leave canary out",
        ),
        (
            "canary is stable",
            lambda s: s.traffic(canary=life.Canary(version=1, share=0.5)),
            "INVALID_ARGUMENT",
            "canary.version is 1",
            "the stable version itself",
            "name another",
        ),
        (
            "nothing to promote",
            lambda s: s.lifecycle.Promote(life.PromoteRequest(model="tiny")),
            "FAILED_PRECONDITION",
            "'tiny'",
            "neither canary nor shadow",
            "name the version to promote",
        ),
        (
            "nothing to go back to",
            lambda s: s.lifecycle.Rollback(life.RollbackRequest(model="tiny")),
            "FAILED_PRECONDITION",
            "'tiny'",
            "only version 1",
            "set it to",
        ),
        (
            "delete what serves",
            lambda s: s.lifecycle.DeleteVersion(life.DeleteVersionRequest(model="tiny", version=1)),
            "FAILED_PRECONDITION",
            "version 1 of model 'tiny'",
            "a part in its traffic",
            "move that first",
        ),
        (
            "delete what is not there",
            lambda s: s.lifecycle.DeleteVersion(life.DeleteVersionRequest(model="tiny", version=7)),
            "NOT_FOUND",
            "no version 7",
            "has: 1",
            "name one",
        ),
        (
            "delete what came with a request",
            lambda s: s.delete_given(),
            "FAILED_PRECONDITION",
            "model 'given'",
            "not from the repository",
            "load it without files first",
        ),
        (
            "traffic of what is gone",
            lambda s: s.traffic(model="gone"),
            "NOT_FOUND",
            "the traffic of model 'gone'",
            "gone from the repository",
            "see ListVersions",
        ),
        (
            "delete what is gone",
            lambda s: s.lifecycle.DeleteVersion(life.DeleteVersionRequest(model="gone", version=1)),
            "NOT_FOUND",
            "version 1 of model 'gone'",
            "gone from the repository",
            "see ListVersions",
        ),
        # Uploads
        (
            "upload in progress",
            lambda s: s.publish_at_the_same_time(),
            "UNAVAILABLE",
            "'new'",
            "by another call",
            "try again when that has ended",
        ),
        (
            "offset",
            lambda s: s.publish("header", offset=7),
            "FAILED_PRECONDITION",
            "offset is 7",
            "bytes of the graph are kept",
            "set offset to that",
        ),
        (
            "too long",
            lambda s: s.publish("header", bytes(11)),
            "INVALID_ARGUMENT",
            "11 bytes of the graph arrived",
            "states 10",
            "upload it again",
        ),
        (
            "graph digest",
            lambda s: s.lifecycle.GetUpload(life.GetUploadRequest(model="new", graph_digest="md5:0")),
            "INVALID_ARGUMENT",
            "'md5:0'",
            "64 hexadecimal digits",
            "give sha256:",
        ),
        ("no header", lambda s: s.publish(b"x"), "INVALID_ARGUMENT", "chunk", "header", "send"),
        ("nothing", lambda s: s.publish(), "INVALID_ARGUMENT", "nothing", "header", "send"),
        ("two headers", lambda s: s.publish("header", "header"), "INVALID_ARGUMENT", "header", "chunk", "send"),
        (
            "no manifest",
            lambda s: s.publish("header", manifest=b"{"),
            "INVALID_ARGUMENT",
            "manifest is not a valid manifest",
            "JSON",
            "correct it",
        ),
        (
            "no graph stated",
            lambda s: s.publish("header", manifest=b"{}"),
            "INVALID_ARGUMENT",
            "does not state",
            "size and SHA-256",
            "add graph",
        ),
        (
            "incomplete",
            lambda s: s.publish("header", b"x"),
            "INVALID_ARGUMENT",
            "1 bytes of the graph arrived",
            "states 10",
            "upload it again",
        ),
        (
            "damaged",
            lambda s: s.publish("header", bytes(10)),
            "INVALID_ARGUMENT",
            digest_of(bytes(10)),
            "states sha256:0000",
            "upload it again",
        ),
        (
            "too large",
            lambda s: s.publish(
                "header", manifest=MISSING_GRAPH.replace(b'"size_bytes": 10', b'"size_bytes": 1000000')
            ),
            "RESOURCE_EXHAUSTED",
            "1000000 bytes",
            "at most 100000",
            "raise INFERENCE_MAX_MODEL_BYTES",
        ),
        (
            "model name",
            lambda s: s.publish("header", model="../new"),
            "INVALID_ARGUMENT",
            "'../new'",
            "up to 128",
            "use up to 128 letters",
        ),
    ]
]

ELSEWHERE = {
    "needs a key with scope": "tests/gateway/test_access: inference knows no keys",
    "has the scopes": "tests/gateway/test_access: inference knows no keys",
    "which has another graph; use a new one": "tests/inference/models/test_serving: a publication that is repeated",
    "a new version of model {…} is gone": "nowhere: another process must remove the folder while it is written",
    "there is no room on the disk": "nowhere: it takes a full disk",
    "cannot be written: {…}; see to the repository": "nowhere: it takes a disk that fails",
    "is gone; name one that it has": "test_repository: another replica must delete it meanwhile",
    "the highest there can be": "test_repository",
    "the server is stopping; send": "test_stream_infer_rpc, and test_server: it takes a server that stops",
    "the server is stopping; call": "test_server: it takes a server that stops",
    "the deadline passed before the answer was ready": "test_statuses: over gRPC the client's own deadline comes first",
    "this server does not implement the method": "test_statuses: this server implements all of its contracts",
    "a service behind the gateway is not reachable": "test_statuses, and test_process of the gateway",
    "the models are being loaded": "test_serving: it takes a server that starts",
    "the manifest has": "test_lifecycle_rpc: no message of this server is so large",
    "no part of the upload came": "test_lifecycle_rpc: it takes its time",
    "cannot be switched on": "test_server_settings_rpc: the level is the process's",
    "became smaller than": "test_shared_memory",
    "regions are registered and more cannot be": "test_shared_memory",
    "the list of models has not arrived": "test_process of the gateway, which alone waits for it",
    "datatype {…} is unknown": "the gateway's HTTP: over gRPC the graph's own datatype is compared first",
}
"""Errors that no row walks, by a part of their text, and where they are walked instead."""


@pytest.fixture
async def server(start_inference, add_model, one_node, save_graph) -> AsyncIterator[Server]:
    """A service with the tiny classifier, graphs that take odder things, one that is none, and a region."""
    half = helper.make_tensor_value_info
    add_model(one_node("Neg", ["n", "h", "w"]), "free")
    add_model(one_node("Identity", ["n", "k"], datatype="STRING"), "text")
    add_model(one_node("Neg", ["n"], datatype="FLOAT16"), "half")
    sides = [half(name, TensorProto.FLOAT, ["n", 4]) for name in "ab"]
    total = half("y", TensorProto.FLOAT, ["n", 4])
    add_model(save_graph([helper.make_node("Add", ["a", "b"], ["y"])], sides, [total]), "pair")
    (add_model(one_node("Neg", ["n"]), "broken") / "model.onnx").write_bytes(b"none")
    (add_model(one_node("Neg", ["n"]), "lost").parent / "traffic.json").write_text('{"stable_version": -1}')
    gone = [add_model(one_node("Neg", ["n"]), "gone", version).parent for version in (1, 2)]
    channel = (await start_inference(max_batch_size=4, max_model_bytes=100_000)).channel
    shutil.rmtree(gone[0])
    memory = SharedMemory(create=True, size=REGION_BYTES)
    served = Server(
        GRPCInferenceServiceStub(channel),
        InferenceServiceStub(channel),
        ModelLifecycleServiceStub(channel),
        channel,
        memory.name,
    )
    await served.register("region", memory.name, REGION_BYTES)
    os.truncate(f"/dev/shm/{memory.name}", REGION_BYTES)  # which was rounded up to a page
    await served.traffic()
    yield served
    memory.close()
    memory.unlink()


async def refusal(row: Row, server: Server) -> tuple[str, str]:
    """Return the status with which the server answers, and its text."""
    try:
        await row.ask(server)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details()
    return "OK", ""


async def test_every_wrong_request_is_told_what_came_what_was_expected_and_what_to_change(server):
    found = []
    for row in TABLE:
        code, text = await refusal(row, server)
        missing = [word for word in (row.came, row.expected, row.change) if word not in text]
        if code != row.code or missing:
            found.append(f"{row.name}: {code}: {text!r}, not {row.code} with {missing}")

    assert not found, "\n".join(["", *found])


async def test_every_error_that_a_caller_can_get_is_in_the_table(server):
    answers = [(await refusal(row, server))[1] for row in TABLE]

    left = not_walked(MODULES, answers, ELSEWHERE)

    assert left == [], "\n".join(["", *left])
