"""Whatever keeps a version from serving, walked: graphs, configs, manifests and folders that are wrong."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services import inference
from services.common import manifest as manifest_module
from services.common.manifest import Golden, GoldenTensor, Graph, Manifest, PreprocessSpec, digest_of
from services.inference.config import tuning
from tests.error_texts import Expected, not_walked

CALLS = {"desired_traffic.py", "repository.py", "serving.py", "uploads.py"}
"""What a call gets of the models; the contracts' table walks it."""
INFERENCE = Path(inference.__path__[0])
MODULES = [
    Path(manifest_module.__file__),
    *INFERENCE.glob("*.py"),
    *INFERENCE.glob("config/*.py"),
    *(path for path in INFERENCE.glob("models/*.py") if path.name not in CALLS),
]
MAX_MODEL_BYTES, MAX_MESSAGE_BYTES = 50_000, 10_000
INVALID, UNSUPPORTED = "INVALID_ARGUMENT", "UNIMPLEMENTED"


def graph(
    *nodes,
    x: tuple = (TensorProto.FLOAT, ["n", 2]),
    y: tuple = (TensorProto.FLOAT, ["n", 2]),
    constants: dict[str, np.ndarray] | None = None,
    weights: tuple[TensorProto, ...] = (),
) -> bytes:
    """Return a graph from x to y, which negates where no nodes are given."""
    made = helper.make_graph(
        nodes or [helper.make_node("Neg", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", *y)],
        [*weights, *(numpy_helper.from_array(array, name) for name, array in (constants or {}).items())],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my.ops", 1)]
    data: bytes = helper.make_model(made, ir_version=10, opset_imports=opsets).SerializeToString()
    return data


def external(location: str, **fields: str) -> bytes:
    """Return a graph whose weights lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    return graph(helper.make_node("Add", ["x", "w"], ["y"]), weights=(tensor,))


def field(number: int, content: bytes) -> bytes:
    """Return a field of a message in protobuf's wire format."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def nested() -> bytes:
    """Return a file whose graph has nodes with attributes with graphs and so on."""
    body = b""
    for _ in range(40):
        body = field(6, field(1, field(5, body)))
    return field(7, field(1, field(5, body)))


NEG = graph()
FIXED = graph(x=(TensorProto.FLOAT, [1, 2]), y=(TensorProto.FLOAT, [1, 2]))
FREE = graph(x=(TensorProto.FLOAT, ["n", "k"]), y=(TensorProto.FLOAT, ["n", "k"]))
TEXT = graph(
    helper.make_node("Identity", ["x"], ["y"]), x=(TensorProto.STRING, ["n", 1]), y=(TensorProto.STRING, ["n", 1])
)
TABLE_OF_3 = graph(
    helper.make_node("Gather", ["table", "x"], ["y"]),
    x=(TensorProto.INT64, ["n", 1]),
    y=(TensorProto.FLOAT, ["n", 1]),
    constants={"table": np.zeros(3, np.float32)},
)
UP_TO_2 = graph(
    helper.make_node("Shape", ["x"], ["size"], end=1),
    helper.make_node("Gather", ["table", "size"], ["zero"]),
    helper.make_node("Add", ["x", "zero"], ["y"]),
    constants={"table": np.zeros(3, np.float32)},
)
SEQUENCE = helper.make_model(
    helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [2])],
    ),
    ir_version=10,
    opset_imports=[helper.make_opsetid("", 18)],
).SerializeToString()
PICTURES = graph(x=(TensorProto.FLOAT, ["n", 3, 4, 4]), y=(TensorProto.FLOAT, ["n", 3, 4, 4]))
LINKED = external("away.bin")


@dataclass(frozen=True)
class Server:
    """A server's stubs; the other one has no memory to load anything."""

    infer: GRPCInferenceServiceStub
    without_memory: GRPCInferenceServiceStub

    async def load(self, wanted: dict | None = None, onnx: bytes = NEG, model: str = "m", **files: bytes) -> None:
        """Load a model that the request brings along."""
        request = pb.RepositoryModelLoadRequest(model_name=model)
        request.parameters["config"].string_param = json.dumps(wanted or {})
        for path, content in {"1/model.onnx": onnx, **files}.items():
            request.parameters[f"file:{path}"].bytes_param = content
        await self.infer.RepositoryModelLoad(request)

    async def load_with(self, manifest: Manifest | bytes, onnx: bytes = NEG) -> None:
        document = manifest if isinstance(manifest, bytes) else manifest.to_json().encode()
        await self.load(onnx=onnx, **{"1/model.json": document})

    async def load_warm(self, onnx: bytes = NEG, size: int = 1, files: dict | None = None, **given: object) -> None:
        """Load a model whose config wants a request run first; *given* describes its input x."""
        tensor = {"data_type": "TYPE_FP32", "dims": [2], "zero_data": True} | given
        tensor = {key: value for key, value in tensor.items() if value is not None}
        warmup = {"name": "first", "batch_size": size, "inputs": {"x": tensor}}
        await self.load({"max_batch_size": 4, "model_warmup": [warmup]}, onnx, **(files or {}))

    async def ask(self, datatype: str, shape: list[int], raw: bytes, onnx: bytes, wanted: dict | None = None) -> None:
        """Load a model, and send it a tensor."""
        await self.load(wanted, onnx)
        request = pb.ModelInferRequest(model_name="m", raw_input_contents=[raw])
        request.inputs.add(name="x", datatype=datatype, shape=shape)
        await self.infer.ModelInfer(request)

    async def listed(self, model: str, stub: GRPCInferenceServiceStub | None = None) -> str:
        """Return the reason with which the repository's index lists a model that an operator put there."""
        index = await (stub or self.infer).RepositoryIndex(pb.RepositoryIndexRequest())
        return next(each.reason for each in index.models if each.name == model)


def batching(most: int = 4, **fields: object) -> dict:
    return {"max_batch_size": most, "dynamic_batching": fields}


def group(**fields: object) -> dict:
    return {"instance_group": [fields]}


def parameter(name: str, value: str) -> dict:
    return {"parameters": {name: {"string_value": value}}}


def tensors(*declared: dict, most: int = 4) -> dict:
    return {"max_batch_size": most, "input": [{"name": "x", "data_type": "TYPE_FP32"} | each for each in declared]}


def golden(outputs: np.ndarray, datatype: str = "FP32", name: str = "y") -> Manifest:
    images = np.ones((1, 2), np.float32)
    return Manifest(
        golden=Golden(
            inputs=(GoldenTensor.from_array("x", "FP32", images),),
            outputs=(GoldenTensor.from_array(name, datatype, outputs),),
        )
    )


def no_base64() -> bytes:
    document = json.loads(golden(np.ones((1, 2), np.float32)).to_json())
    document["golden"]["inputs"][0]["data"] = "?"
    return json.dumps(document).encode()


def spec(**fields) -> Manifest:
    return Manifest(preprocess=PreprocessSpec(width=4, height=4, layout="NCHW", datatype="FP32", **fields))


Ask = Callable[[Server], Awaitable[str | None]]
TABLE: dict[str, tuple[Ask, Expected]] = {
    name: (ask, Expected(*expected))
    for name, ask, *expected in [
        # What a config may say, whatever the graph
        ("another's", lambda s: s.load({"name": "other"}), INVALID, "'other'", "'m'", "leave name out"),
        ("backend", lambda s: s.load({"backend": "tf"}), UNSUPPORTED, "'tf'", "onnxruntime", "use"),
        (
            "what is not done here",
            lambda s: s.load({"sequence_batching": {}}),
            *(UNSUPPORTED, "sequence_batching", "not supported", "remove it"),
        ),
        (
            "negative",
            lambda s: s.load({"max_batch_size": -1}),
            *(INVALID, "max_batch_size -1", "0 or more", "use 0 or more"),
        ),
        (
            "versions",
            lambda s: s.load({"version_policy": {"specific": {"versions": [0]}}}),
            *(INVALID, "versions [0]", "from 1", "use integers"),
        ),
        (
            "file name",
            lambda s: s.load({"default_model_filename": "../x"}),
            *(INVALID, "'../x'", "the version's folder", "name a file"),
        ),
        (
            "preferred size",
            lambda s: s.load(batching(preferred_batch_size=[9])),
            *(INVALID, "preferred_batch_size [9]", "1 to max_batch_size 4", "use 1 to"),
        ),
        (
            "levels",
            lambda s: s.load(batching(priority_levels=1001)),
            *(INVALID, "priority_levels 1001", "at most 1000", "use at most"),
        ),
        (
            "default level",
            lambda s: s.load(batching(priority_levels=2, default_priority_level=3)),
            *(INVALID, "default_priority_level 3", "1 to priority_levels 2", "use 1 to"),
        ),
        (
            "level of a policy",
            lambda s: s.load(batching(priority_levels=2, default_priority_level=1, priority_queue_policy={3: {}})),
            *(INVALID, "priority_queue_policy for [3]", "1 to priority_levels 2", "use 1 to"),
        ),
        (
            "order",
            lambda s: s.load(batching(priority_levels=2, default_priority_level=1, preserve_ordering=True)),
            *(INVALID, "preserve_ordering", "which change the order", "remove one of them"),
        ),
        # What it may say of this graph
        (
            "batch of a fixed graph",
            lambda s: s.load({"max_batch_size": 4}, FIXED),
            *(INVALID, "max_batch_size is 4", "first dimension", "set max_batch_size to 0"),
        ),
        (
            "no such tensor",
            lambda s: s.load(tensors({"name": "z", "dims": [2]})),
            *(INVALID, "'z'", "that the graph has: x", "use one"),
        ),
        ("tensor twice", lambda s: s.load(tensors({}, {})), INVALID, "'x' twice", "once", "describe it once"),
        (
            "dims of 0",
            lambda s: s.load(tensors({"dims": [0]})),
            *(INVALID, "dims [0]", "1 or more", "use 1 or more"),
        ),
        (
            "other dims",
            lambda s: s.load(tensors({"dims": [3]})),
            *(INVALID, "TYPE_FP32 [3]", "the graph's TYPE_FP32 [2]", "leave both out"),
        ),
        (
            "label file",
            lambda s: s.load({"output": [{"name": "y", "label_filename": "none.txt"}]}),
            *(INVALID, "'none.txt'", "in the model's folder", "put it there"),
        ),
        (
            "labels",
            lambda s: s.load({"output": [{"name": "y", "label_filename": "l.txt"}]}, **{"l.txt": b"\xff"}),
            *(INVALID, "'l.txt'", "not UTF-8", "save it as UTF-8"),
        ),
        (
            "reshape of 0",
            lambda s: s.load(tensors({"dims": [2], "reshape": {"shape": [0]}}), FREE),
            *(INVALID, "reshape [0]", "from 1", "use dimensions"),
        ),
        (
            "reshape",
            lambda s: s.load(tensors({"dims": [3], "reshape": {"shape": [2]}})),
            *(INVALID, "dims [3] and reshape [2]", "different numbers of elements", "make them equal"),
        ),
        (
            "reshape of what came out",
            lambda s: s.ask(
                *("FP32", [1, 2], bytes(8), FREE),
                {"max_batch_size": 4, "output": [{"name": "y", "dims": [3, 1], "reshape": {"shape": [3]}}]},
            ),
            *("FAILED_PRECONDITION", "shape [1, 2]", "from [3] to [3, 1]", "correct the model's config"),
        ),
        # Where and how it wants it run
        ("kind", lambda s: s.load(group(kind="KIND_MODEL")), INVALID, "KIND_MODEL", "not supported", "use KIND"),
        (
            "processor and GPU",
            lambda s: s.load(group(kind="KIND_CPU", gpus=[0])),
            *(INVALID, "gpus [0]", "KIND_CPU", "remove one of them"),
        ),
        (
            "GPU",
            lambda s: s.load(group(kind="KIND_GPU")),
            *(INVALID, "KIND_GPU", "INFERENCE_DEVICE is cpu", "use KIND_CPU"),
        ),
        (
            "unknown option",
            lambda s: s.load(parameter("speed", "1")),
            *(UNSUPPORTED, "'speed'", "not supported", "remove them or use"),
        ),
        (
            "graph level",
            lambda s: s.load({"optimization": {"graph": {"level": 7}}}),
            *(INVALID, "is 7", "0, -1, 1, 2", "use one of"),
        ),
        (
            "initializers",
            lambda s: s.load(parameter("session.use_device_allocator_for_initializers", "x")),
            *(INVALID, "'x'", "1 or 0", "use 1"),
        ),
        (
            "threads",
            lambda s: s.load(parameter("intra_op_thread_count", "-1")),
            *(INVALID, "'-1'", "from 0 to 1024", "use an integer"),
        ),
        (
            "arena",
            lambda s: s.load(parameter(tuning._SHRINKAGE, "disk:0")),
            *(INVALID, "'disk:0'", "cpu:0, gpu:0 or both", "use cpu:0"),
        ),
        (
            "no arena",
            lambda s: s.load(
                {
                    "parameters": parameter(tuning._SHRINKAGE, "cpu:0")["parameters"]
                    | parameter("enable_mem_arena", "0")["parameters"]
                }
            ),
            *(INVALID, "'cpu:0'", "no such arena", "remove it"),
        ),
        (
            "choice",
            lambda s: s.load(parameter("execution_mode", "2")),
            *(INVALID, "'2'", "one of 0, 1", "use one of"),
        ),
        (
            "instances",
            lambda s: s.load(group(kind="KIND_CPU", count=5000)),
            *(INVALID, "5000 instances", "at most 1024", "use at most"),
        ),
        # What it wants run first
        (
            "warm-up runs",
            lambda s: s.load({"model_warmup": [{"count": 5000}]}),
            *(INVALID, "5000 runs", "at most 1000", "use at most"),
        ),
        ("warm-up size", lambda s: s.load_warm(size=9), INVALID, "batch_size 9", "1 to 4", "use 1 to"),
        (
            "warm-up inputs",
            lambda s: s.load({"max_batch_size": 4, "model_warmup": [{"name": "first", "batch_size": 1}]}),
            *(INVALID, "inputs []", "['x']", "give exactly"),
        ),
        (
            "warm-up dims",
            lambda s: s.load_warm(dims=[3]),
            *(INVALID, "FP32 [3]", "as the model takes it", "use FP32 [2]"),
        ),
        (
            "large warm-up",
            lambda s: s.load_warm(FREE, dims=[10**7]),
            *(INVALID, "40,000,000 bytes", "at most 10,000", "use at most"),
        ),
        (
            "warm-up without data",
            lambda s: s.load_warm(zero_data=None),
            *(INVALID, "no data", "zero_data, random_data or input_data_file", "use zero_data"),
        ),
        (
            "random text",
            lambda s: s.load_warm(TEXT, data_type="TYPE_STRING", dims=[1], zero_data=None, random_data=True),
            *(INVALID, "text and random_data", "zero_data or input_data_file", "use zero_data"),
        ),
        (
            "no warm-up file",
            lambda s: s.load_warm(zero_data=None, input_data_file="x.raw"),
            *(INVALID, "'x.raw'", "the model's folder warmup/", "put it there"),
        ),
        (
            "large warm-up file",
            lambda s: s.load_warm(
                zero_data=None, input_data_file="x.raw", files={"warmup/x.raw": bytes(MAX_MESSAGE_BYTES + 1)}
            ),
            *(INVALID, "'x.raw' of 10,001 bytes", "at most 10,000", "use a file"),
        ),
        (
            "warm-up that fails",
            lambda s: s.load_warm(TABLE_OF_3, data_type="TYPE_INT64", dims=[1], zero_data=None, random_data=True),
            *(INVALID, "model_warmup 'first'", "[-3,2]", "correct one of them"),
        ),
        # The graph's file
        ("no graph", lambda s: s.load({"default_model_filename": "net"}), INVALID, "1/net", "is missing", "put the"),
        ("empty file", lambda s: s.load(onnx=b""), INVALID, "model.onnx", "is empty", "copy or export it again"),
        ("no ONNX file", lambda s: s.load(onnx=b"none"), INVALID, "b'none'", "no ONNX file", "export it again"),
        (
            "large graph",
            lambda s: s.load(onnx=bytes(MAX_MODEL_BYTES + 1)),
            *(INVALID, "50,001 bytes", "at most 50,000", "make it smaller or raise INFERENCE_MAX_MODEL_BYTES"),
        ),
        ("deep graph", lambda s: s.load(onnx=nested()), INVALID, "nest deeper", "than 100", "export a flatter graph"),
        (
            "long name",
            lambda s: s.load(onnx=graph(helper.make_node("N" * 5000, ["x"], ["y"]))),
            *(INVALID, "5,000 bytes", "at most 4,096", "use at most"),
        ),
        (
            "operator",
            lambda s: s.load(onnx=graph(helper.make_node("Foo", ["x"], ["y"], domain="my.ops"))),
            *(INVALID, "'Foo' of domain 'my.ops'", "does not have", "export the model with standard operators"),
        ),
        (
            "data outside",
            lambda s: s.load(onnx=external("../w.bin")),
            *(INVALID, "'../w.bin'", "leaves the folder", "name a file beside the graph"),
        ),
        ("no data", lambda s: s.load(onnx=external("w.bin")), INVALID, "'w.bin'", "no file there", "put it beside"),
        (
            "place of the data",
            lambda s: s.load(onnx=external("w.bin", offset="-4"), **{"1/w.bin": bytes(8)}),
            *(INVALID, "offset '-4'", "integers from 0", "use integers"),
        ),
        (
            "end of the data",
            lambda s: s.load(onnx=external("w.bin", offset="4", length="8"), **{"1/w.bin": bytes(8)}),
            *(INVALID, "bytes 4 to 12", "the file has 8", "copy it again"),
        ),
        ("linked data", lambda s: s.listed("linked"), "OK", "'away.bin'", "leaves the folder", "put the file itself"),
        (
            "graph that makes no sense",
            lambda s: s.load(onnx=graph(helper.make_node("Neg", ["z"], ["y"]))),
            *(INVALID, "model.onnx cannot be loaded", "z", "export it again"),
        ),
        (
            "name of a tensor",
            lambda s: s.load(onnx=graph().replace(b"\x01x", b"\x01\xff")),
            *(INVALID, "an input or output", "UTF-8", "export it with another"),
        ),
        (
            "type of a tensor",
            lambda s: s.load(onnx=SEQUENCE),
            *(INVALID, "seq(tensor(float))", "the protocol does not have", "export the graph with another type"),
        ),
        # What the graph does
        (
            "samples that mix",
            lambda s: s.load({"max_batch_size": 4}, graph(helper.make_node("Softmax", ["x"], ["y"], axis=0))),
            *(INVALID, "max_batch_size is 4", "depends on the others", "set max_batch_size to 0"),
        ),
        (
            "large sample",
            lambda s: s.load(onnx=graph(x=(TensorProto.FLOAT, ["n", 9999]), y=(TensorProto.FLOAT, ["n", 9999]))),
            *(INVALID, "[-1, 9999]", "10,000 bytes", "export a smaller input"),
        ),
        (
            "full batch",
            lambda s: s.load({"max_batch_size": 4}, UP_TO_2),
            *(INVALID, "a batch of 4", "[-3,2]", "set max_batch_size lower"),
        ),
        (
            "refused by the graph",
            lambda s: s.ask("INT64", [1, 1], (9).to_bytes(8, "little"), TABLE_OF_3),
            *(INVALID, "idx=9", "[-3,2]", "correct them"),
        ),
        (
            "no UTF-8",
            lambda s: s.ask("BYTES", [1, 1], b"\x01\0\0\0\xff", TEXT),
            *(INVALID, "text that is not UTF-8", "UTF-8", "send"),
        ),
        # What the manifest says of it
        (
            "digest",
            lambda s: s.load_with(Manifest(graph=Graph(sha256=digest_of(b""), size_bytes=1))),
            *(INVALID, digest_of(NEG), digest_of(b""), "publish it again"),
        ),
        ("labels for scores", lambda s: s.load_with(Manifest(labels=("a",))), INVALID, "1 labels", "give 2", "give"),
        (
            "spec's input",
            lambda s: s.load_with(spec(input="image"), PICTURES),
            *(INVALID, "'image'", "the graph takes ['x']", "give both the same one input"),
        ),
        (
            "spec's shape",
            lambda s: s.load_with(spec(input="x", color="L"), PICTURES),
            *(INVALID, "FP32 [-1, 1, 4, 4]", "FP32 [-1, 3, 4, 4]", "change one of them"),
        ),
        (
            "golden output",
            lambda s: s.load_with(golden(np.ones((1, 2), np.float32), name="z")),
            *(INVALID, "golden vectors", "do not fit", "make them again"),
        ),
        (
            "golden text",
            lambda s: s.load_with(golden(np.array([b"a"], np.object_), "BYTES")),
            *(INVALID, "'y' is text", "cannot be compared", "leave it out"),
        ),
        (
            "golden shape",
            lambda s: s.load_with(golden(np.ones((2, 2), np.float32))),
            *(INVALID, "[2, 2]", "the graph gave [1, 2]", "make it again"),
        ),
        (
            "golden values",
            lambda s: s.load_with(golden(np.ones((1, 2), np.float32))),
            *(INVALID, "differs by 2", "at most 0.0001", "make the vectors again"),
        ),
        ("golden data", lambda s: s.load_with(no_base64()), INVALID, "'x'", "base64", "export the model again"),
        ("manifest", lambda s: s.load_with(b"{"), INVALID, "model.json", "valid manifest", "correct it"),
        # The folder, and the memory
        (
            "config file",
            lambda s: s.listed("unreadable"),
            *("OK", "config.pbtxt of model 'unreadable'", "has no field named", "correct it"),
        ),
        (
            "memory",
            lambda s: s.listed("tiny", s.without_memory),
            *("OK", "the version has", "more than 1 ", "raise the limit"),
        ),
    ]
}
"""By name: what is asked, and what the answer must say. The repository's index has reasons and no code."""

ELSEWHERE = {
    "GPUs were found here": "test_model_config, which is told how many there are",
    "but no NVIDIA GPU was found": "test_engine: it takes a machine without one",
    "but its libraries were not found": "nowhere: it takes a GPU, and an installation without the extra `cuda`",
    "did not end within": "test_version, with a shorter time than a minute",
    "fields; export a smaller graph": "test_graph_check, with a lower limit than 20,000,000",
    "messages beside its weights and texts": "test_graph_check, with a lower limit than a million",
}
"""Errors that no row walks, by a part of their text, and where they are walked instead."""


@pytest.fixture
async def server(start_inference, add_model, one_node, model_repository):
    """A service whose repository has folders in disorder, and one on the same that has no memory."""
    neg = one_node("Neg", ["n"])
    add_model(neg, "unreadable", config="speed: 9")
    linked = add_model(neg, "linked")
    (linked / "model.onnx").write_bytes(LINKED)
    (linked / "away.bin").symlink_to(model_repository / "tiny" / "1" / "model.onnx")
    limits = {"max_batch_size": 4, "max_model_bytes": MAX_MODEL_BYTES, "max_message_bytes": MAX_MESSAGE_BYTES}
    served = await start_inference(device="cpu", **limits)
    without_memory = await start_inference(device="cpu", max_memory_bytes=1)
    return Server(GRPCInferenceServiceStub(served.channel), GRPCInferenceServiceStub(without_memory.channel))


async def answer_to(ask: Ask, server: Server) -> tuple[str, str]:
    """Return the status with which the server answers, and its text."""
    try:
        return "OK", await ask(server) or ""
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""


async def test_every_error_that_keeps_a_version_from_serving_is_walked_and_says_what_to_change(server):
    answers = {name: await answer_to(ask, server) for name, (ask, _) in TABLE.items()}
    found = [f"{name}: {fault}" for name, (_, row) in TABLE.items() if (fault := row.missing_in(*answers[name]))]

    assert not found, "\n".join(["", *found])
    left = not_walked(MODULES, [text for _, text in answers.values()], ELSEWHERE)
    assert left == [], "\n".join(["", *left])
