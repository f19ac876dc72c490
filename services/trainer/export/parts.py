"""Parts of a graph: its constants, what a tensor of it comes of, and that as a graph of its own."""

import onnx
from onnx import AttributeProto, helper, numpy_helper


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the constants of *graph* by name, in whichever of both forms it has them."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def nodes_before(graph: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    """Return the nodes that *tensor* comes of, in their order."""
    needed = {tensor}
    found = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(filter(None, node.input))  # an input that is left out has no name
            found.append(node)
    return found[::-1]


def part_before(proto: onnx.ModelProto, tensor: str, output: str, width: int) -> onnx.ModelProto:
    """Return the part of *proto* that makes *tensor*, with nothing that does not change what it computes.

    Tensors are numbered, attributes sorted; names of nodes, metadata and notes are left out, and so is what made the
    graph. Equal parts of different graphs are equal, byte for byte.

    Args:
        proto: Stays as it is; its inputs keep their names.
        tensor: FP32 [batch, width].
        output: What it is called in the part.
        width: Its second dimension.
    """
    constants = constants_of(proto.graph)
    inputs = [each for each in proto.graph.input if each.name not in constants]
    names = {"": "", tensor: output} | {each.name: each.name for each in inputs}
    nodes: list[onnx.NodeProto] = []
    numbers: list[onnx.TensorProto] = []
    for node in nodes_before(proto.graph, tensor):
        if node.output[0] in constants:
            continue
        for name in node.input:
            if name not in names:
                names[name] = f"constant.{len(names)}"
                numbers.append(numpy_helper.from_array(numpy_helper.to_array(constants[name]), names[name]))
        for name in node.output:
            names.setdefault(name, f"tensor.{len(names)}")
        plain = helper.make_node(
            node.op_type, [names[name] for name in node.input], [names[name] for name in node.output]
        )
        plain.domain = node.domain
        plain.attribute.extend(_bare(each) for each in sorted(node.attribute, key=lambda each: each.name))
        nodes.append(plain)
    outputs = [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", width])]
    graph = helper.make_graph(nodes, "part", [_batched(each) for each in inputs], outputs, numbers)
    used = {node.domain for node in nodes}
    opsets = sorted((each.domain, each.version) for each in proto.opset_import if each.domain in used)
    return helper.make_model(
        graph,
        producer_name="aimass",
        ir_version=proto.ir_version,
        opset_imports=[helper.make_opsetid(*each) for each in opsets],
    )


def _batched(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Return *value* with its first dimension called batch, and without notes."""
    kind = value.type.tensor_type
    rest = [dimension.dim_param or dimension.dim_value for dimension in kind.shape.dim][1:]
    return helper.make_tensor_value_info(value.name, kind.elem_type, ["batch", *rest])


def _bare(attribute: AttributeProto) -> AttributeProto:
    """Return *attribute* without notes and without the name of its tensor."""
    bare = AttributeProto()
    bare.CopyFrom(attribute)
    bare.doc_string = ""
    if bare.type == AttributeProto.TENSOR:
        bare.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t)))
    return bare
