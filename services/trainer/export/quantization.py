"""Turns a graph into one that multiplies 8-bit integers, and keeps it only where that pays.

What keeps integers from being fast is not the multiplications but what happens between them: every value that has to
be a float for one operation is converted, and often laid out anew, on its way there and back. So the graph is brought
into forms that integer kernels take whole before it is quantised:

- The normalisation of pixels goes into the first convolutions, which then read the uint8 pixels as they came.
- A pool before a ReLU is exchanged with it (the maximum commutes), so that the ReLU merges with its convolution and
  the pool has one scale on both sides.
- The sum of squares of a local response normalisation, a convolution with a band, is quantised like any convolution;
  the roots and the division are not.

On a Xeon with AMX, one thread, the starter model is 3.2 to 3.5 times as fast as in float32 (1.9 to 2.0 times before it
is brought into these forms), AlexNet at 227 pixels 2.5 to 3.2 times (1.5), `alexnet-small` 3.0 to 3.5 times and without
response normalisation 3.8 to 4.5 times: batches of 1, 8 and 32, medians of 5 to 7 interleaved rounds on a shared
machine.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from services.common.errors import Unsupported
from services.trainer.data.samples import Samples
from services.trainer.export.comparison import MARGIN, Choice, compare_graphs
from services.trainer.export.graph import INPUT
from services.trainer.runs.folder import replacing

_BATCH = 16
_WARNINGS, _ERRORS = 2, 3
"""ONNX Runtime's levels of logging; the former is its default."""
_OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip"),
    *("MaxPool", "GlobalAveragePool", "Concat", "Slice", "Pad", "Transpose"),
)
"""What is computed on integers. `Resize` is not: ONNX Runtime's is twice as slow on them."""
_MOVES_PIXELS = ("Transpose", "Resize", "Slice", "Concat", "Pad")
"""Operators whose outputs are their input's values, or means of them, so that normalising may come after them."""


def draw_calibration(samples: Samples, count: int, seed: int) -> NDArray[np.uint8]:
    """Return *count* of the images of *samples*, or all where they are fewer, drawn by *seed*."""
    return samples.images[np.random.default_rng(seed).permutation(len(samples))[:count]]


def quantize_graph(source: Path, destination: Path, images: NDArray[np.uint8]) -> None:
    """Write the graph *source* with 8-bit weights and activations to *destination*.

    Inputs, outputs and metadata stay as they are; softmax and what follows the last layer stay float32. Activations
    are uint8 and weights int8 with a scale for each output channel, of which 7 bits are used: processors without VNNI
    add products in pairs in 16 bits, which two of 255 by 127 overflow. (With 8 bits the starter model came to 45.7 %
    there, with 7 to 92.7 % everywhere; float32 has 92.8, and 8 bits with VNNI, too.) The ranges of activations are
    the extremes that *images* cause: percentiles (99.999 %) and entropy gave the starter model the same accuracy
    within 0.12 points of 10,000 images, over three draws of 512 images, and took two to three times as long.

    Args:
        source: From `export_graph`.
        destination: Replaced atomically.
        images: Uint8 (n, H, W, 3), n at least 1: real training images; 512 are plenty.

    Raises:
        Unsupported: The graph holds no convolution or matrix product, or is already quantised.
    """
    proto = onnx.load(source)
    operators = {node.op_type for node in proto.graph.node}
    if "DequantizeLinear" in operators or not operators & {"Conv", "Gemm", "MatMul"}:
        raise Unsupported(
            f"{source.name} has nothing to quantise: it holds no convolution or matrix product of float32 numbers; "
            "give the graph of a training run"
        )
    pixels = _merge_normalisation(proto.graph)
    _pool_after_relu(proto.graph)
    with tempfile.TemporaryDirectory() as folder:
        quantized = _quantize(proto, Path(folder), images, pixels)
    if pixels:
        _read_integers(quantized.graph)
    used = {node.domain for node in quantized.graph.node}
    kept = [each for each in quantized.opset_import if each.domain in used]
    del quantized.opset_import[:]
    quantized.opset_import.extend(kept)
    quantized.producer_name = "aimass"
    onnx.helper.set_model_props(quantized, {entry.key: entry.value for entry in proto.metadata_props})
    onnx.checker.check_model(quantized, full_check=True)
    with replacing(destination) as file:
        onnx.save_model(quantized, file)


def choose_quantized(
    source: Path, quantized: Path, validation: Samples, *, threads: int = 0, margin: float = MARGIN
) -> Choice:
    """Decide whether *quantized* shall be served instead of *source*, by `compare_graphs` on this machine.

    Args:
        source: The float32 graph.
        quantized: From `quantize_graph`.
        validation: Samples that neither graph was fitted to or calibrated on.
        threads: Of both graphs; 0 is one per core.
        margin: Accuracy that may be lost, as a share of the samples.
    """
    return compare_graphs(source, quantized, validation, threads=threads or os.cpu_count() or 1, margin=margin)


def _quantize(proto: onnx.ModelProto, folder: Path, images: NDArray[np.uint8], pixels: list[str]) -> onnx.ModelProto:
    prepared, quantized = folder / "prepared.onnx", folder / "quantized.onnx"
    onnx.save_model(proto, prepared)
    # The library tells its progress with a warning per unused constant.
    onnxruntime.set_default_logger_severity(_ERRORS)
    try:
        quant_pre_process(prepared, prepared)
        exact = {
            "scale": np.array(1, np.float32),
            "zero_point": np.array(0, np.uint8),
            "quant_type": QuantType.QUInt8,
        }
        quantize_static(
            prepared,
            quantized,
            _Batches(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            nodes_to_exclude=_products(onnx.load(prepared).graph),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                "TensorQuantOverrides": {name: [exact] for name in pixels},
            },
        )
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)
    return onnx.load(quantized)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Images as the calibration wants them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._batches: Iterator[dict[str, Any]] = iter(
            [{INPUT: images[at : at + _BATCH]} for at in range(0, len(images), _BATCH)]
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs, or None after the last."""
        return next(self._batches, None)


def _merge_normalisation(graph: onnx.GraphProto) -> list[str]:
    """Move the subtraction of the mean and the division by the deviation from the pixels into the convolutions.

    Without padding, the mean goes into the bias. Padding means zero *after* normalisation, so with it the pixels get
    a fourth channel instead, which is 255 everywhere inside the picture, and whose weights take the mean away.

    Returns:
        Names of the tensors that hold pixels from 0 to 255 now; none where the graph has another form, and stays.
    """
    head = _normalisation(graph)
    if head is None:
        return []
    cast, subtract, divide = head
    mean, deviation = (_constant(graph, node.input[1]).reshape(1, -1, 1, 1) for node in (subtract, divide))
    pixels, convolutions = _reached(graph, divide.output[0])
    if not convolutions:
        return []
    padded = any(any(_attributes(each).get("pads", ())) for each in convolutions)
    for convolution in convolutions:
        _absorb(graph, convolution, mean, deviation, padded)
    graph.node.remove(subtract)
    graph.node.remove(divide)
    if padded:
        _set_constant(graph, "pixel_pads", np.array([0, 0, 0, 0, 0, 0, 0, 1]))
        _set_constant(graph, "pixel_white", np.array(255, np.float32))
        pad = onnx.helper.make_node(
            "Pad", [cast.output[0], "pixel_pads", "pixel_white"], [divide.output[0]], name="pixel_pad"
        )
        graph.node.insert(list(graph.node).index(cast) + 1, pad)
    else:
        for node in graph.node:
            node.input[:] = [cast.output[0] if name == divide.output[0] else name for name in node.input]
        pixels.remove(divide.output[0])
    del graph.value_info[:]  # shapes may be others now
    return [cast.output[0], *pixels]


def _normalisation(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto] | None:
    """Return the nodes cast, subtract and divide that the pixels go through first."""
    nodes, name = [], INPUT
    for operator in ("Cast", "Sub", "Div"):
        following = _consumers(graph, name)
        if [node.op_type for node in following] != [operator]:
            return None
        nodes.append(following[0])
        name = following[0].output[0]
    cast, subtract, divide = nodes
    return cast, subtract, divide


def _reached(graph: onnx.GraphProto, start: str) -> tuple[list[str], list[onnx.NodeProto]]:
    """Return the tensors that *start* is moved to, and the convolutions that take them in; none if others do too."""
    pixels, convolutions = [start], []
    for name in pixels:  # grows
        for node in _consumers(graph, name):
            kind = _attributes(node).get("mode", b"constant")
            if node.op_type in _MOVES_PIXELS and not (node.op_type == "Pad" and kind == b"constant"):
                pixels += [output for output in node.output if output not in pixels]
            elif node.op_type == "Conv" and _attributes(node).get("auto_pad", b"NOTSET") == b"NOTSET":
                convolutions.append(node)
            elif node.op_type != "Shape":
                return [], []
    return pixels, convolutions


def _absorb(
    graph: onnx.GraphProto, convolution: onnx.NodeProto, mean: NDArray[Any], deviation: NDArray[Any], padded: bool
) -> None:
    """Give *convolution* weights that expect pixels; *mean* and *deviation* have shape (1, 3, 1, 1)."""
    weight = _constant(graph, convolution.input[1]) / deviation
    bias = _constant(graph, convolution.input[2]) if len(convolution.input) > 2 else np.zeros(len(weight))
    if padded:
        weight = np.concatenate([weight, -(weight * mean).sum(axis=1, keepdims=True) / 255], axis=1)
    else:
        bias = bias - (weight * mean).sum(axis=(1, 2, 3))
    name = convolution.output[0]
    convolution.input[:] = [convolution.input[0], f"{name}_weight_of_pixels", f"{name}_bias_of_pixels"]
    _set_constant(graph, convolution.input[1], weight.astype(np.float32))
    _set_constant(graph, convolution.input[2], bias.astype(np.float32))


def _pool_after_relu(graph: onnx.GraphProto) -> None:
    """Exchange each pool with a ReLU that follows it."""
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        following = _consumers(graph, pool.output[0])
        if [node.op_type for node in following] != ["Relu"]:
            continue
        (relu,) = following
        before, between, after = pool.input[0], pool.output[0], relu.output[0]
        pooling = onnx.NodeProto()
        pooling.CopyFrom(pool)
        pool.CopyFrom(onnx.helper.make_node("Relu", [before], [between], name=relu.name))
        pooling.input[:], pooling.output[:] = [between], [after]
        relu.CopyFrom(pooling)
    del graph.value_info[:]


def _products(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the multiplications that stay float: all but the squares that a convolution sums."""
    return [
        node.name
        for node in graph.node
        if node.op_type == "Mul"
        and not (
            node.input[0] == node.input[1] and {each.op_type for each in _consumers(graph, node.output[0])} == {"Conv"}
        )
    ]


def _read_integers(graph: onnx.GraphProto) -> None:
    """Say of the pixels that they are integers already: instead of being cast, they are dequantised with scale 1."""
    (cast,) = (node for node in graph.node if node.op_type == "Cast" and node.input[0] == INPUT)
    _set_constant(graph, "pixel_scale", np.array(1, np.float32))
    _set_constant(graph, "pixel_zero_point", np.array(0, np.uint8))
    inputs = [INPUT, "pixel_scale", "pixel_zero_point"]
    cast.CopyFrom(onnx.helper.make_node("DequantizeLinear", inputs, list(cast.output), name="pixels"))


def _consumers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if name in node.input]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _constant(graph: onnx.GraphProto, name: str) -> NDArray[Any]:
    return next(onnx.numpy_helper.to_array(each) for each in graph.initializer if each.name == name)


def _set_constant(graph: onnx.GraphProto, name: str, array: NDArray[Any]) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(array, name))
