"""Inference over HTTP: JSON with binary tensors behind it <-> the protocol's messages."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from pydantic_core import to_json

from aimass.open_inference import grpc_service_pb2 as pb
from gateway.documents import member, parse_object, quoted
from services.common.errors import InvalidInput
from services.common.tensors import numpy_dtype, to_array

Parameters = Mapping[str, pb.InferParameter]

_ELEMENTS: dict[str, tuple[type, ...]] = {
    "BOOL": (bool,),
    **{f"{sign}INT{bits}": (int,) for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP32": (float, int),
    "FP64": (float, int),
    "BYTES": (str,),
}
"""Of each datatype that JSON can say; the others are sent as binary data only, as with Triton."""
_WORDS = {bool: "true or false", int: "integers", float: "numbers", str: "strings"}
_MAX_SIDE = 2**63 - 1


@dataclass(frozen=True)
class Wanted:
    """How the caller wants its outputs."""

    binary: bool = False
    """Raw behind the JSON; applies to outputs that it does not name."""
    named: Mapping[str, bool] = field(default_factory=dict)
    """The same for each that it names."""
    in_memory: frozenset[str] = frozenset()
    """Names of those that go to shared memory, so that nothing of them is sent."""


def parse_request(model: str, version: str, body: bytes, json_size: int) -> tuple[pb.ModelInferRequest, Wanted]:
    """Return the request that *body* holds: *json_size* bytes of JSON, then the binary inputs.

    Raises:
        InvalidInput: It is malformed.
    """
    text = body[:json_size]
    document = parse_object(text, "the request")
    request = pb.ModelInferRequest(
        model_name=model, model_version=version, id=member(document, "id", str, "the request", "")
    )
    parameters = member(document, "parameters", dict, "the request", {})
    binary = member(parameters, "binary_data_output", bool, "the request's parameters", default=False)
    _set_parameters(request.parameters, parameters, "the request", omit="binary_data_output")
    tensors = _Tensors(body, json_size, says_infinity=b"Infinity" in text)
    for each in member(document, "inputs", list, "the request"):
        tensors.add(request, each)
    tensors.check_end()
    return request, _add_outputs(request, document, binary)


def raw_request(
    model: str, version: str, body: bytes, metadata: pb.ModelMetadataResponse
) -> tuple[pb.ModelInferRequest, Wanted]:
    """Return the request whose *body* is the data of the model's one input, which *metadata* describes.

    Raises:
        InvalidInput: The model takes several inputs, or the input's shape cannot be told from its size.
    """
    if len(metadata.inputs) != 1:
        names = [spec.name for spec in metadata.inputs]
        raise InvalidInput(
            f"model {model!r} takes inputs {names}, and only a model of one input takes a raw body; "
            "send the request as JSON"
        )
    (spec,) = metadata.inputs
    if spec.datatype == "BYTES":  # the body is one element, which on the wire begins with its length
        body, count = len(body).to_bytes(4, "little") + body, 1
    else:
        count = len(body) // numpy_dtype(spec.datatype).itemsize
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name=spec.name, datatype=spec.datatype, shape=_shape_of(spec, count))
    request.raw_input_contents.append(body)
    return request, Wanted(binary=True)


def format_response(response: pb.ModelInferResponse, wanted: Wanted) -> tuple[bytes, int | None]:
    """Return the body of the answer, and how much of it is JSON where binary outputs follow.

    Raises:
        InvalidInput: An output has no JSON form, and was not asked for as binary data.
    """
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document |= {"model_name": response.model_name, "model_version": response.model_version}
    if response.parameters:
        document["parameters"] = plain_parameters(response.parameters)
    tails: list[bytes] = []
    document["outputs"] = [
        _output(output, raw, wanted, tails)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]
    # Stock clients read NaN and Infinity, as Triton writes them; any other form would lose the value.
    text = to_json(document, inf_nan_mode="constants")
    return b"".join((text, *tails)), len(text) if tails else None


class _Tensors:
    """Reads inputs from the JSON, and those that are binary from behind it, in order."""

    def __init__(self, body: bytes, start: int, *, says_infinity: bool) -> None:
        self._body = body
        self._position = start
        self._says_infinity = says_infinity

    def add(self, request: pb.ModelInferRequest, document: Any) -> None:
        name = member(document, "name", str, f"input {len(request.inputs)}")
        where = f"input {name!r}"
        parameters = member(document, "parameters", dict, where, {})
        shape = _shape(member(document, "shape", list, where), where)
        tensor = request.inputs.add(name=name, datatype=member(document, "datatype", str, where), shape=shape)
        _set_parameters(tensor.parameters, parameters, where, omit="binary_data_size")
        ways = ["data"] if "data" in document else []
        ways += [key for key in ("binary_data_size", "shared_memory_region") if key in parameters]
        if len(ways) != 1:
            raise InvalidInput(
                f"{where} has {' and '.join(ways) or 'no data'}; give one of data, the parameter binary_data_size and "
                "the parameter shared_memory_region"
            )
        if ways == ["data"]:
            data = member(document, "data", list, where)
            request.raw_input_contents.append(tensor_bytes(where, tensor.datatype, shape, data, self._says_infinity))
        elif ways == ["binary_data_size"]:
            request.raw_input_contents.append(self._slice(member(parameters, "binary_data_size", int, where), where))

    def _slice(self, size: int, where: str) -> bytes:
        left = len(self._body) - self._position
        if not 0 <= size <= left:
            raise InvalidInput(
                f"{where} has binary_data_size {size}, but {left} bytes are left in the body after the JSON and the "
                "inputs before it; send as many as are stated, and the JSON's length as Inference-Header-Content-Length"
            )
        self._position += size
        return self._body[self._position - size : self._position]

    def check_end(self) -> None:
        if left := len(self._body) - self._position:
            raise InvalidInput(f"the body goes on for {left} bytes after the last input; leave them out")


def _add_outputs(request: pb.ModelInferRequest, document: dict[str, Any], binary: bool) -> Wanted:
    named: dict[str, bool] = {}
    in_memory: set[str] = set()
    for each in member(document, "outputs", list, "the request", []):
        name = member(each, "name", str, f"output {len(named)}")
        where = f"output {name!r}"
        parameters = member(each, "parameters", dict, where, {})
        output = request.outputs.add(name=name)
        _set_parameters(output.parameters, parameters, where, omit="binary_data")
        named[name] = member(parameters, "binary_data", bool, where, default=binary)
        if "shared_memory_region" in parameters:
            in_memory.add(name)
    return Wanted(binary, named, frozenset(in_memory))


def _shape(sides: list[Any], where: str) -> list[int]:
    for side in sides:
        if type(side) is not int or not 0 <= side <= _MAX_SIDE:
            raise InvalidInput(f"{where} has a dimension of {quoted(side)}; give integers from 0 to {_MAX_SIDE}")
    return sides


def _shape_of(spec: pb.ModelMetadataResponse.TensorMetadata, count: int) -> list[int]:
    """Return the shape of *count* elements: the one free dimension follows, of several the first is a batch of one."""
    shape = list(spec.shape)
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise InvalidInput(
            f"input {spec.name!r} has shape {list(spec.shape)}, which the size of a raw body does not settle; "
            "send the request as JSON"
        )
    if -1 in shape:
        known = math.prod(side for side in shape if side != -1)
        shape[shape.index(-1)] = count // known if known else 0
    return shape


def tensor_bytes(where: str, datatype: str, shape: list[int], data: list[Any], says_infinity: bool) -> bytes:
    """Return the raw form of a tensor, whose elements *data* holds flat or nested as *shape* is.

    Args:
        where: Names the tensor in what is said of it.
        datatype: As the protocol names it.
        shape: Of the tensor.
        data: Elements, as JSON has them.
        says_infinity: Whether the JSON may have said Infinity; otherwise an infinite number was too large for its type.

    Raises:
        InvalidInput: The elements do not fit datatype or shape, or JSON cannot say the datatype.
    """
    if datatype not in _ELEMENTS:
        numpy_dtype(datatype)  # refuses what is no datatype at all
        raise InvalidInput(f"{where} is {datatype}, which JSON cannot say; send it to infer as binary data")
    elements = _flat(where, shape, data)
    kinds = _ELEMENTS[datatype]
    if not set(map(type, elements)) <= set(kinds):
        odd = next(each for each in elements if type(each) not in kinds)
        raise InvalidInput(f"{where} is {datatype} and holds {quoted(odd)}; give {_WORDS[kinds[0]]}")
    if datatype == "BYTES":
        return b"".join(len(each).to_bytes(4, "little") + each for each in map(str.encode, elements))
    return _number_bytes(where, datatype, elements, says_infinity)


def _flat(where: str, shape: list[int], data: list[Any]) -> list[Any]:
    """Return the elements in one list; they may be nested as *shape* is."""
    if not (data and type(data[0]) is list):
        if len(data) != math.prod(shape):
            raise InvalidInput(
                f"{where} holds {len(data)} values; send {math.prod(shape)} for shape {shape}, or correct the shape"
            )
        return data
    rows: list[Any] = [data]
    for side in shape:
        if not all(type(row) is list and len(row) == side for row in rows):
            raise InvalidInput(f"{where} is not nested as its shape {shape} is; nest it so, or send one flat list")
        rows = list(chain.from_iterable(rows))
    return rows


def _number_bytes(where: str, datatype: str, elements: list[Any], says_infinity: bool) -> bytes:
    dtype = numpy_dtype(datatype)
    try:
        if dtype.kind != "f":
            return np.array(elements, dtype).tobytes()
        exact = np.array(elements, np.float64)
    except OverflowError as error:
        least, most = _range(dtype)
        odd = next(each for each in elements if type(each) is int and not least <= each <= most)
        raise _does_not_fit(where, datatype, odd) from error
    with np.errstate(over="ignore"):
        array = exact.astype(dtype)
    overflown = np.isinf(array) & (np.isfinite(exact) | (not says_infinity))
    if overflown.any():
        raise _does_not_fit(where, datatype, elements[int(overflown.argmax())])
    return array.tobytes()


def _range(dtype: np.dtype) -> tuple[float, float]:
    if dtype.kind == "f":
        return -sys.float_info.max, sys.float_info.max
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _does_not_fit(where: str, datatype: str, element: float) -> InvalidInput:
    return InvalidInput(f"{where} holds {quoted(element)}, which does not fit {datatype}; send another datatype")


def _set_parameters(target: Any, parameters: dict[str, Any], where: str, omit: str) -> None:
    for key, value in parameters.items():
        if key != omit:
            set_parameter(target[key], value, f"{where}: parameter {key!r}")


def set_parameter(target: pb.InferParameter, value: Any, where: str) -> None:
    """Put the JSON *value* into *target*.

    Raises:
        InvalidInput: It is of a kind that parameters don't have.
    """
    if type(value) is bool:
        target.bool_param = value
    elif type(value) is int and -(2**63) <= value < 2**64:
        if value < 2**63:
            target.int64_param = value
        else:
            target.uint64_param = value
    elif type(value) is str:
        target.string_param = value
    elif type(value) is float:
        target.double_param = value
    else:
        raise InvalidInput(f"{where} is {quoted(value)}; give a string, a 64-bit number, or true or false")


def plain_parameters(parameters: Parameters) -> dict[str, Any]:
    """Return *parameters* as JSON has them."""
    return {key: getattr(each, each.WhichOneof("parameter_choice") or "bool_param") for key, each in parameters.items()}


def _output(
    output: pb.ModelInferResponse.InferOutputTensor, raw: bytes, wanted: Wanted, tails: list[bytes]
) -> dict[str, Any]:
    document: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
    if output.name in wanted.in_memory:
        return document
    if not wanted.named.get(output.name, wanted.binary):
        return document | {"data": output_values(output, raw)}
    tails.append(raw)
    # No other parameter ever: the stock C++ client takes any to mean that the output is binary.
    return document | {"parameters": {"binary_data_size": len(raw)}}


def output_values(output: pb.ModelInferResponse.InferOutputTensor, raw: bytes) -> list[Any]:
    """Return the elements of an output in one list.

    Raises:
        InvalidInput: They have no JSON form.
    """
    if output.datatype not in _ELEMENTS:
        raise InvalidInput(
            f"output {output.name!r} is {output.datatype}, which JSON cannot say; ask infer for binary_data"
        )
    elements: list[Any] = to_array(output.name, output.datatype, output.shape, raw).ravel().tolist()
    if output.datatype != "BYTES":
        return elements
    try:
        return [each.decode() for each in elements]
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"output {output.name!r} holds bytes that are not UTF-8; ask infer for binary_data"
        ) from error
