"""ONNX Runtime behind arrays."""

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from services.common.errors import InvalidInput, Unsupported
from services.common.tensors import numpy_dtype
from services.inference.engine import OnnxModel, TensorSpec, Tuning, gpu_found

DATATYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FP16": "FLOAT16",
    "FP32": "FLOAT",
    "FP64": "DOUBLE",
    "BYTES": "STRING",
}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_graph_of_any_datatype_is_described_and_run(one_node, datatype):
    graph = OnnxModel(one_node("Identity", ["batch", 2], datatype=DATATYPES[datatype]), "cpu", 1)
    array = np.ones((3, 2), numpy_dtype(datatype)) if datatype != "BYTES" else np.full((3, 2), "ä", np.object_)
    (output,) = graph.run({"x": array}, ["y"])

    assert graph.inputs == (TensorSpec("x", datatype, (-1, 2)),)
    assert graph.outputs == (TensorSpec("y", datatype, (-1, 2)),)
    np.testing.assert_array_equal(output, array)
    assert output.dtype == array.dtype


@pytest.mark.parametrize(("shape", "described"), [([], ()), ([2, None, "n"], (2, -1, -1)), ([0, 3], (0, 3))])
def test_free_dimension_is_minus_one(one_node, shape, described):
    assert OnnxModel(one_node("Identity", shape), "cpu", 1).inputs[0].shape == described


def test_text_reaches_the_graph_as_text(one_node):
    graph = OnnxModel(one_node("Identity", ["n"], datatype="STRING"), "cpu", 1)

    (output,) = graph.run({"x": np.array(["ä".encode(), b"b"], np.object_)}, ["y"])

    assert output.tolist() == ["ä", "b"]


def test_text_that_is_not_utf8_is_refused(one_node):
    graph = OnnxModel(one_node("Identity", ["n"], datatype="STRING"), "cpu", 1)

    with pytest.raises(InvalidInput, match="input 'x' holds text that is not UTF-8"):
        graph.run({"x": np.array([b"\xff"], np.object_)}, ["y"])


def test_value_that_the_graph_refuses_is_the_callers_fault(one_node):
    graph = OnnxModel(one_node("Gather", ["n"], datatype="INT64", before=np.arange(5)), "cpu", 1)

    with pytest.raises(InvalidInput, match="idx=5 must be within"):
        graph.run({"x": np.array([5])}, ["y"])


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x08" * 1000])
def test_file_that_is_no_graph_is_refused_without_our_paths(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(InvalidInput, match=r"^model\.onnx cannot be loaded") as caught:
        OnnxModel(path, "cpu", 1)
    assert str(tmp_path) not in caught.value.message
    assert caught.value.reason == "INVALID_GRAPH"


def test_type_that_the_protocol_does_not_have_is_refused(save_graph):
    tensor = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [2])
    path = save_graph([helper.make_node("SequenceConstruct", ["x"], ["y"])], [tensor], [sequence])

    with pytest.raises(Unsupported, match=r"tensor 'y' has type seq\(tensor\(float\)\)"):
        OnnxModel(path, "cpu", 1)


@pytest.mark.skipif(gpu_found(), reason="this machine has an NVIDIA GPU")
def test_gpu_that_is_not_there_is_named(tiny_classifier):
    assert not OnnxModel(tiny_classifier.path, "auto", 1).on_gpu
    with pytest.raises(Unsupported, match="INFERENCE_DEVICE is cuda, but no NVIDIA GPU was found"):
        OnnxModel(tiny_classifier.path, "cuda", 1)


@pytest.mark.skipif(not gpu_found(), reason="this machine has no NVIDIA GPU")
def test_gpu_gives_what_the_processor_gives(tiny_classifier, images):
    graph = OnnxModel(tiny_classifier.path, "cuda", 1)

    assert graph.on_gpu
    (output,) = graph.run({"image": images}, ["probabilities"])
    np.testing.assert_allclose(output, tiny_classifier.infer(images), atol=1e-3)


def test_bfloat16_goes_in_and_comes_out(one_node):
    graph = OnnxModel(one_node("Identity", ["n", 2], datatype="BFLOAT16"), "cpu", 1)
    array = np.array([[1.5, -2], [np.inf, 3e38]], ml_dtypes.bfloat16)

    (output,) = graph.run({"x": array}, ["y"])
    (nothing,) = graph.run({"x": array[:0]}, ["y"])

    assert graph.inputs == (TensorSpec("x", "BF16", (-1, 2)),)
    assert output.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(output, array)
    assert nothing.shape == (0, 2)


def test_bfloat16_stands_beside_other_datatypes(one_node):
    graph = OnnxModel(
        one_node("Cast", ["n"], datatype="FLOAT", out_datatype="BFLOAT16", to=TensorProto.BFLOAT16), "cpu", 1
    )
    array = np.array([1, 1 / 3, 1e-40], np.float32)
    (output,) = graph.run({"x": array}, ["y"])

    np.testing.assert_array_equal(output, array.astype(ml_dtypes.bfloat16))


@pytest.fixture(scope="session")
def half_network(save_graph):
    """Convolution, pooling and a dense layer in fp16."""
    random = np.random.default_rng(0)
    return save_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "dense"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 5])],
        {
            "kernel": random.normal(size=(4, 3, 3, 3)).astype(np.float16),
            "dense": random.normal(size=(4, 5)).astype(np.float16),
        },
    )


@pytest.fixture(scope="session")
def quantized_network(save_graph):
    """A convolution in int8, as quantizers write it: between QuantizeLinear and DequantizeLinear."""
    random = np.random.default_rng(0)
    return save_graph(
        [
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


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(("network", "dtype"), [("half_network", np.float16), ("quantized_network", np.float32)])
def test_answer_is_that_of_bare_onnx_runtime_bit_for_bit(request, network, dtype, batch):
    path = request.getfixturevalue(network)
    array = np.random.default_rng(1).normal(size=(batch, 3, 8, 8)).astype(dtype)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    (expected,) = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": array})
    (output,) = OnnxModel(path, "cpu", 1).run({"x": array}, ["y"])

    assert output.tobytes() == expected.tobytes()


def test_options_of_the_config_reach_onnx_runtime(one_node):
    tuning = Tuning(
        intra_op_threads=2,
        inter_op_threads=2,
        parallel=True,
        memory_pattern=False,
        optimization=ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        session_entries=(("session.use_device_allocator_for_initializers", "1"),),
        run_entries=(("memory.enable_memory_arena_shrinkage", "cpu:0"),),
    )
    graph = OnnxModel(one_node("Relu", ["n"]), "cpu", 1, tuning)
    options = graph._session.get_session_options()

    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    assert graph.run({"x": np.array([-1, 1], np.float32)}, ["y"])[0].tolist() == [0, 1]
