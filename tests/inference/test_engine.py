"""ONNX Runtime behind arrays."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from services.common.errors import InvalidInput, Unsupported
from services.common.tensors import numpy_dtype
from services.inference.engine import OnnxModel, TensorSpec, gpu_found

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
