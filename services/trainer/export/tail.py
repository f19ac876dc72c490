"""The last layer of an exported graph: found, cut off, replaced.

A new last layer on the features of the layers before it needs no export: it is written into the graph that is there.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, helper, numpy_helper

from services.common.errors import InvalidInput, Unsupported
from services.trainer.export.parts import constants_of, nodes_before, part_before
from services.trainer.runs.folder import replacing
from services.trainer.statistics.heads import Head

FEATURES = "features"
"""The output of a cut graph: FP32 [batch, f]."""

_MATRIX = 2
"""Dimensions of one."""


@dataclass(frozen=True, eq=False)
class Tail:
    """What a graph does with its features: softmax((features · weightᵀ + bias) / temperature)."""

    features: str
    """The tensor that the last layer is given, FP32 [batch, f]."""
    weight: NDArray[np.float32]
    """(classes, f)."""
    bias: NDArray[np.float32] | None
    """(classes,); None where the graph adds none, as also where a layer's bias was all zeros at its export."""
    temperature: float

    @property
    def width(self) -> int:
        """How many features there are."""
        return int(self.weight.shape[1])

    @property
    def head(self) -> Head:
        """The numbers of the last layer, to fit others from."""
        return Head(self.weight, self.bias, self.temperature)


def find_tail(path: Path) -> Tail:
    """Return the last layer of the graph at *path*.

    From the probabilities back: a softmax, divisions and multiplications by one constant number, an addition of a
    constant row, and the first matrix product with constant float32 weights. Numbers that come after the bias are the
    temperature, those between the product and the bias are part of the weights.

    Raises:
        Unsupported: The graph ends in anything else, as the mean of several views and graphs of int8 or float16 do.
    """
    return _Walk(onnx.load(path), path.name).tail()


def cut_encoder(source: Path, target: Path) -> str:
    """Write the part of the graph *source* that makes the features; return the SHA-256 of what was written, in hex.

    Names, order of attributes, metadata and notes are normalised: graphs whose layers before the last are the same
    give the same bytes, whatever run has made them and whatever their last layers are.

    Args:
        source: From `export_graph` or `replace_tail`.
        target: Replaced atomically; has the input of *source* and the output `FEATURES`.

    Raises:
        Unsupported: As `find_tail`.
    """
    proto = onnx.load(source)
    tail = _Walk(proto, source.name).tail()
    encoder = part_before(proto, tail.features, FEATURES, tail.width)
    onnx.checker.check_model(encoder, full_check=True)
    data = encoder.SerializeToString(deterministic=True)
    with replacing(target) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def replace_tail(source: Path, target: Path, head: Head, metadata: Mapping[str, str]) -> None:
    """Write the graph *source* with *head* as its last layer.

    Args:
        source: From `export_graph` or from here.
        target: Replaced atomically.
        head: With as many classes and features as *source* has; it may have a bias where *source* has none.
        metadata: Takes the place of the `metadata_props` of *source*.

    Raises:
        Unsupported: As `find_tail`.
        InvalidInput: *head* is of another size.
    """
    proto = onnx.load(source)
    tail = _Walk(proto, source.name).tail()
    if head.weight.shape != tail.weight.shape:
        raise InvalidInput(
            f"the head has weights of shape {head.weight.shape} and {source.name} takes {tail.weight.shape}; "
            "fit it on the features and for the labels of this graph"
        )
    graph = proto.graph
    body = nodes_before(graph, tail.features)
    needed = {name for node in body for name in (*node.input, *node.output)}
    layers, numbers = _layers(head, tail.features, graph.output[0].name, taken=needed)
    numbers = [*(each for each in graph.initializer if each.name in needed), *numbers]
    shapes = [each for each in graph.value_info if each.name in needed]
    for field in (graph.node, graph.initializer, graph.value_info):
        del field[:]
    graph.node.extend([*body, *layers])
    graph.initializer.extend(numbers)
    graph.value_info.extend(shapes)
    helper.set_model_props(proto, dict(metadata))
    onnx.checker.check_model(proto, full_check=True)
    with replacing(target) as file:
        onnx.save_model(proto, file)


class _Walk:
    """The way from the output of a graph back to the product with its last weights."""

    def __init__(self, proto: onnx.ModelProto, title: str) -> None:
        self._title = title
        graph = proto.graph
        nested = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
        branches = any(attribute.type in nested for node in graph.node for attribute in node.attribute)
        if branches or proto.functions or len(graph.output) != 1:
            raise Unsupported(f"{title} has branches, functions or several outputs; give the graph of a training run")
        self._output = graph.output[0]
        self._makers = {name: node for node in graph.node for name in node.output}
        self._constants = {name: numpy_helper.to_array(tensor) for name, tensor in constants_of(graph).items()}

    def tail(self) -> Tail:
        """Return what was found at the end of the way."""
        softmax = self._maker(self._output.name)
        matrix = len(self._output.type.tensor_type.shape.dim) == _MATRIX
        if softmax.op_type != "Softmax" or _attribute(softmax, "axis", -1) not in (-1, 1) or not matrix:
            raise self._refusal(softmax.op_type)
        name, temperature = self._before_scales(softmax.input[0])
        name, bias = self._before_addition(name)
        name, divisor = self._before_scales(name)
        product = self._maker(name)
        if product.op_type not in ("Gemm", "MatMul") or _attribute(product, "transA", 0):
            raise self._refusal(product.op_type)
        features, name, *shifts = product.input
        weight = self._constants.get(name)
        if weight is None or weight.dtype != np.float32 or weight.ndim != _MATRIX:
            raise self._refusal(product.op_type)
        weight = weight if _attribute(product, "transB", 0) else weight.T
        weight = np.ascontiguousarray(weight * np.float32(_attribute(product, "alpha", 1.0) / divisor))
        for shift in filter(None, shifts):
            row = self._row(shift)
            if row is None:
                raise self._refusal(product.op_type)
            row = row * np.float32(_attribute(product, "beta", 1.0) / divisor)
            bias = row if bias is None else bias + row
        if bias is not None:
            bias = np.broadcast_to(bias, len(weight)).copy()
        return Tail(features, weight, bias, temperature)

    def _maker(self, name: str) -> onnx.NodeProto:
        if name not in self._makers:
            raise self._refusal("no operator")
        return self._makers[name]

    def _before_scales(self, name: str) -> tuple[str, float]:
        """Return what is scaled to *name*, by divisions and multiplications in a row, and what it is divided by."""
        divisor = 1.0
        while (node := self._maker(name)).op_type in ("Div", "Mul"):
            name, row = self._operands(node)
            if row.size != 1 or not 0 < row[0] < np.inf:
                raise self._refusal(node.op_type)
            divisor = divisor * float(row[0]) if node.op_type == "Div" else divisor / float(row[0])
        return name, divisor

    def _before_addition(self, name: str) -> tuple[str, NDArray[np.float32] | None]:
        """Return what a row is added to for *name*, and the row; where none is, *name* and None."""
        node = self._maker(name)
        return self._operands(node) if node.op_type == "Add" else (name, None)

    def _operands(self, node: onnx.NodeProto) -> tuple[str, NDArray[np.float32]]:
        """Return what varies of the two operands of *node*, and what is constant."""
        first, second = node.input
        if node.op_type != "Div" and first in self._constants:
            first, second = second, first
        row = self._row(second)
        if row is None:
            raise self._refusal(node.op_type)
        return first, row

    def _row(self, name: str) -> NDArray[np.float32] | None:
        """Return the constant *name* as (n,), where each row of a matrix meets the same numbers of it."""
        constant = self._constants.get(name)
        if constant is None or constant.dtype != np.float32 or constant.ndim > _MATRIX:
            return None
        row = np.atleast_1d(constant)
        return row.reshape(-1) if row.size == row.shape[-1] else None

    def _refusal(self, found: str) -> Unsupported:
        return Unsupported(
            f"the last layer of {self._title} cannot be replaced: its end holds {found} where only a softmax, a "
            "constant temperature, a constant bias and one product with constant float32 weights may be; "
            "give a float32 graph of one view, or train with start_from instead"
        )


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _layers(
    head: Head, features: str, output: str, taken: Collection[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return nodes and constants that make *output* of *features* with *head*, under names that are not *taken*."""
    values = {"weight": head.weight, "bias": head.bias, "temperature": np.float32(head.temperature)}
    prefix = "head."
    while any(name.startswith(prefix) for name in taken):
        prefix = "_" + prefix
    numbers = [
        numpy_helper.from_array(np.asarray(value, np.float32), prefix + name)
        for name, value in values.items()
        if value is not None
    ]
    linear = [prefix + name for name in ("weight", "bias") if values[name] is not None]
    nodes = [
        helper.make_node("Gemm", [features, *linear], [prefix + "product"], transB=1),
        helper.make_node("Div", [prefix + "product", prefix + "temperature"], [prefix + "logits"]),
        helper.make_node("Softmax", [prefix + "logits"], [output], axis=1),
    ]
    return nodes, numbers
