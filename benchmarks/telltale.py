"""A model whose every answer tells which version's pixels met which version's graph.

Odd versions take RGB pixels, even ones BGR. A red picture is `red` to each of them, and would be `blue` if the pixels
of one came to the graph of the other. The labels carry the version's parity.
"""

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from services.common.manifest import Graph, Manifest, PreprocessSpec, digest_of

MODEL = "telltale"


def red_picture() -> bytes:
    """Return a red PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def expected_label(version: int) -> str:
    """Return what a version must say of the red picture."""
    return f"red {version % 2}"


def write_version(folder: Path, number: int) -> Path:
    """Write graph and manifest of version *number* to *folder*, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "sides"], ["means"], keepdims=0),
            helper.make_node("Div", ["means", "warmth"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        MODEL,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        [
            onnx.numpy_helper.from_array(np.array([1, 2]), "sides"),
            onnx.numpy_helper.from_array(np.float32(50), "warmth"),
        ],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    model.doc_string = str(number)  # so that no two versions are the same file
    onnx.save(model, folder / "model.onnx")
    data = (folder / "model.onnx").read_bytes()
    spec = PreprocessSpec(input="image", width=32, height=32, color="RGB" if number % 2 else "BGR")
    colours = ("red", "green", "blue") if number % 2 else ("blue", "green", "red")
    manifest = Manifest(
        labels=tuple(f"{colour} {number % 2}" for colour in colours),
        preprocess=spec,
        preprocess_digest=spec.digest,
        graph=Graph(sha256=digest_of(data), size_bytes=len(data)),
    )
    (folder / "model.json").write_text(manifest.to_json())
    return folder
