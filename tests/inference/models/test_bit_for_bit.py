"""Folders as Triton has them answer over gRPC what bare ONNX Runtime gives, to the last bit."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.tensors import to_raw

MATERIAL = Path(__file__).parents[4] / "shared" / "material" / "models"
"""Models of other people, which may lie beside the checkout; no part of the repository."""
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"})]}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def serve_and_compare(start_inference, add_model, device):
    """A function that serves a graph and compares what both give: await compare(path, config, inputs of requests)."""

    async def compare(path: Path, config: str | None, requests: list[dict[str, np.ndarray]]) -> None:
        add_model(path, "model", config=config)
        served = await start_inference()
        stub = GRPCInferenceServiceStub(served.channel)
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="model"))
        datatypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
        for inputs in requests:
            request = pb.ModelInferRequest(model_name="model")
            for name, array in inputs.items():
                request.inputs.add(name=name, datatype=datatypes[name], shape=array.shape)
                request.raw_input_contents.append(to_raw(array))
            response = await stub.ModelInfer(request)
            expected = run_bare(path, inputs, device)

            assert [tensor.name for tensor in response.outputs] == list(expected)
            for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
                assert tuple(tensor.shape) == expected[tensor.name].shape
                assert raw == to_raw(expected[tensor.name])

    return compare


def run_bare(path: Path, inputs: dict[str, np.ndarray], device: str) -> dict[str, np.ndarray]:
    """Return what an ONNX Runtime session of one thread gives."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=PROVIDERS[device])
    names = [output.name for output in session.get_outputs()]
    if BFLOAT16 not in [array.dtype for array in inputs.values()]:
        return dict(zip(names, session.run(names, inputs), strict=True))
    binding = session.io_binding()  # numpy has no bfloat16, so both sides are memory
    outputs = {name: np.zeros_like(next(iter(inputs.values()))) for name in names}
    for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, array in arrays.items():
            bind(name, "cpu", 0, TensorProto.BFLOAT16, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)
    return outputs


def network(save_graph, element: int, dtype, batch: int | str) -> Path:
    """Save convolution, pooling and a dense layer."""
    random = np.random.default_rng(0)
    return save_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "dense"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", element, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", element, [batch, 5])],
        {
            "kernel": random.normal(size=(4, 3, 3, 3)).astype(dtype),
            "dense": random.normal(size=(4, 5)).astype(dtype),
        },
    )


NETWORK_CONFIG = """
    platform: "onnxruntime_onnx" max_batch_size: {batch}
    input [ {{ name: "x" data_type: {type} dims: [ {dims}3, 8, 8 ] }} ]
    output [ {{ name: "y" data_type: {type} dims: [ {dims}5 ] }} ]
"""


def pictures(*batches: int, dtype=np.float32) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=(batch, 3, 8, 8)).astype(dtype)} for batch in batches]


@pytest.mark.parametrize(
    ("element", "dtype", "type_name"),
    [(TensorProto.FLOAT, np.float32, "TYPE_FP32"), (TensorProto.FLOAT16, np.float16, "TYPE_FP16")],
)
async def test_network_of_any_batch(serve_and_compare, save_graph, element, dtype, type_name):
    path = network(save_graph, element, dtype, "n")
    config = NETWORK_CONFIG.format(batch=8, type=type_name, dims="")
    await serve_and_compare(path, config, pictures(1, 7, 8, dtype=dtype))


async def test_network_of_a_fixed_batch(serve_and_compare, save_graph):
    path = network(save_graph, TensorProto.FLOAT, np.float32, 2)
    config = NETWORK_CONFIG.format(batch=0, type="TYPE_FP32", dims="2, ")
    await serve_and_compare(path, config, pictures(2, 2))


async def test_quantized_network(serve_and_compare, save_graph):
    random = np.random.default_rng(0)
    path = save_graph(
        [  # as quantizers write it
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["kernel", "kernel_scale", "kernel_zero"], ["kd"], axis=0),
            helper.make_node("Conv", ["xd", "kd"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("QuantizeLinear", ["c", "out_scale", "zero"], ["cq"]),
            helper.make_node("DequantizeLinear", ["cq", "out_scale", "zero"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 8, 8])],
        {
            "scale": np.float32(0.02),
            "zero": np.uint8(128),
            "kernel": random.integers(-127, 128, (4, 3, 3, 3), np.int8),
            "kernel_scale": np.full(4, 0.01, np.float32),
            "kernel_zero": np.zeros(4, np.int8),
            "out_scale": np.float32(0.1),
        },
    )
    await serve_and_compare(path, "max_batch_size: 8", pictures(1, 7))


async def test_several_inputs_and_outputs(serve_and_compare, save_graph):
    path = save_graph(
        [
            helper.make_node("Gather", ["table", "index"], ["row"]),
            helper.make_node("Mul", ["row", "factor"], ["product"]),
            helper.make_node("Exp", ["product"], ["power"]),
        ],
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("factor", TensorProto.FLOAT, ["n", 3]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("product", "power")],
        {"table": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)},
    )
    factors = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    indices = np.array([4, 0, 2])
    await serve_and_compare(path, None, [{"index": indices, "factor": factors}])


@pytest.mark.parametrize("config", [None, "max_batch_size: 4"])
async def test_bfloat16(serve_and_compare, save_graph, config):
    path = save_graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Exp", ["wide"], ["power"]),
            helper.make_node("Cast", ["power"], ["y"], to=TensorProto.BFLOAT16),
        ],
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["n", 3])],
    )
    arrays = np.random.default_rng(0).normal(size=(2, 3)).astype(BFLOAT16)
    await serve_and_compare(path, config, [{"x": arrays}, {"x": arrays[:1]}])


@pytest.mark.parametrize("config", [None, "max_batch_size: 4"])
async def test_text(serve_and_compare, save_graph, config):
    path = save_graph(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)],
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["n", 4])],
    )
    await serve_and_compare(path, config, [{"x": np.array([["", "ä\0b"], ["c" * 1000, "日本"]], np.object_)}])


@pytest.mark.parametrize("config", [None, 'max_batch_size: 0 platform: "onnxruntime_onnx"'])
async def test_scalar(serve_and_compare, one_node, config):
    await serve_and_compare(one_node("Exp", []), config, [{"x": np.array(0.3, np.float32)}])


@pytest.mark.skipif(not MATERIAL.is_dir(), reason="models of other people are not here")
@pytest.mark.parametrize(
    ("file", "config", "name", "shapes", "dtype"),
    [
        ("resnet8_mlperftiny_f32_nhwc_dyn.onnx", None, None, [(1, 32, 32, 3), (5, 32, 32, 3)], np.float32),
        ("resnet8_mlperftiny_f32_nhwc_dyn.onnx", "max_batch_size: 8", None, [(5, 32, 32, 3)], np.float32),
        ("squeezenet_fp16_winml.onnx", None, "data_0", [(1, 3, 224, 224)], np.float16),
        (
            "squeezenet_fp16_winml.onnx",
            'output [ { name: "softmaxout_1" data_type: TYPE_FP16 dims: [ 1, 1000, 1, 1 ] } ]',
            "data_0",
            [(1, 3, 224, 224)],
            np.float16,
        ),
    ],
)
async def test_model_of_other_people(serve_and_compare, file, config, name, shapes, dtype):
    path = MATERIAL / file
    name = name or ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].name
    random = np.random.default_rng(0)
    await serve_and_compare(path, config, [{name: random.uniform(0, 255, shape).astype(dtype)} for shape in shapes])
