"""Models that the tests' suites serve beside the starter model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from services.common.manifest import Manifest, PreprocessSpec

DARK, ROUNDS_PER_SHADE = 200, 150
SaveGraph = Callable[..., Path]


def install_models(home: Path, save_graph: SaveGraph) -> Path:
    """Put `slow`, `sums` and `floats` into the repository of *home*, and return *home*."""
    _install(home, "slow", _slow_graph(save_graph), PreprocessSpec(input="image", width=4, height=4))
    _install(home, "sums", _sums_graph(save_graph), None)
    spec = PreprocessSpec(
        input="image", width=4, height=4, layout="NCHW", datatype="FP32", scale=1 / 255, mean=(0.5, 0.5, 0.5)
    )
    _install(home, "floats", _floats_graph(save_graph), spec)
    return home


def _install(home: Path, model: str, graph: Path, spec: PreprocessSpec | None) -> None:
    folder = home / "models" / model / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph.read_bytes())
    if spec is not None:
        (folder / "model.json").write_text(Manifest(labels=("red", "green", "blue"), preprocess=spec).to_json())


def _slow_graph(save_graph: SaveGraph) -> Path:
    """A classifier of uint8 NHWC pictures that takes the longer the paler the darkest pixel of its batch is."""
    square = ["side", "side"]
    body = helper.make_graph(
        [helper.make_node("MatMul", ["matrix", "identity"], ["product"]), helper.make_node("Identity", ["go"], ["on"])],
        "round",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("matrix", TensorProto.FLOAT, square),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, square),
        ],
    )
    return save_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMin", ["pixels"], ["darkest"], keepdims=0),
            helper.make_node("Sub", ["darkest", "dark"], ["difference"]),
            helper.make_node("Relu", ["difference"], ["paleness"]),
            helper.make_node("Mul", ["paleness", "rounds_per_shade"], ["float_rounds"]),
            helper.make_node("Cast", ["float_rounds"], ["rounds"], to=TensorProto.INT64),
            helper.make_node("Loop", ["rounds", "", "identity"], ["worked"], body=body),
            helper.make_node("ReduceMean", ["worked"], ["constant"], keepdims=0),
            helper.make_node("ReduceMean", ["pixels", "sides"], ["means"], keepdims=0),
            helper.make_node("Add", ["means", "constant"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        {
            "dark": np.float32(DARK),
            "rounds_per_shade": np.float32(ROUNDS_PER_SHADE),
            "identity": np.eye(256, dtype=np.float32),
            "sides": np.array([1, 2]),
        },
    )


def _sums_graph(save_graph: SaveGraph) -> Path:
    return save_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("a", "b")],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 4])],
    )


def _floats_graph(save_graph: SaveGraph) -> Path:
    return save_graph(
        [
            helper.make_node("ReduceMean", ["image", "sides"], ["means"], keepdims=0),
            helper.make_node("Softmax", ["means"], ["probabilities"], axis=1),
        ],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        {"sides": np.array([2, 3])},
    )
