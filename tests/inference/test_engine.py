"""ONNX Runtime behind arrays."""

import subprocess
import sys
from pathlib import Path

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


LOADS = """
import sys
from services.inference.engine import OnnxModel
from services.inference.memory import resident_bytes

OnnxModel(sys.argv[2], "cpu", 1)
before = resident_bytes()
graphs = [OnnxModel(sys.argv[1], "cpu", 1) for _ in range(2)]
print(resident_bytes() - before)
"""


def test_memory_that_loading_has_freed_goes_back_to_the_system(save_graph, one_node):
    random = np.random.default_rng(0)
    weights = {f"w{layer}": random.normal(size=(1024, 1024)).astype(np.float32) for layer in range(16)}
    names = ["x", *(f"h{layer}" for layer in range(1, 16)), "y"]
    path = save_graph(
        [helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]) for layer in range(16)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1024])],
        weights,
    )
    process = subprocess.run(
        [sys.executable, "-c", LOADS, path, one_node("Neg", ["n"])], check=True, capture_output=True, text=True
    )

    assert int(process.stdout) < 2.5 * sum(array.nbytes for array in weights.values())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not list threads")
@pytest.mark.parametrize(("setting", "own", "threads"), [(1, 0, 1), (3, 0, 3), (1, 4, 4), (3, 1, 1)])
def test_model_has_the_threads_that_its_config_or_else_the_service_gives_it(one_node, setting, own, threads):
    before = set(Path("/proc/self/task").iterdir())
    graph = OnnxModel(one_node("Neg", ["n"]), "cpu", setting, Tuning(intra_op_threads=own))
    started = set(Path("/proc/self/task").iterdir()) - before

    assert graph.inputs
    assert len(started) == threads - 1  # the caller's is one of them
