"""Triton's generate extension: one flat JSON object, where tensors and parameters stand by name, in both directions."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from aimass.open_inference import grpc_service_pb2 as pb
from gateway.documents import member, parse_object
from gateway.inference_json import output_values, plain_parameters, set_parameter, tensor_bytes
from services.common.errors import InvalidInput

_NESTED = "parameters"
"""A member that may hold further members, as if they stood beside it."""
_RESERVED = ("id", _NESTED)

Specs = Mapping[str, pb.ModelMetadataResponse.TensorMetadata]


def generate_request(model: str, version: str, body: bytes, metadata: pb.ModelMetadataResponse) -> pb.ModelInferRequest:
    """Return the request that *body* holds, for the model that *metadata* describes.

    Raises:
        InvalidInput: It is malformed.
    """
    document = parse_object(body, "the request")
    request = pb.ModelInferRequest(
        model_name=model, model_version=version, id=member(document, "id", str, "the request", "")
    )
    specs = {spec.name: spec for spec in metadata.inputs}
    says_infinity = b"Infinity" in body
    for members in (document, member(document, _NESTED, dict, "the request", {})):
        for name, value in members.items():
            if name in specs and not (members is document and name == _NESTED):
                _add_input(request, specs[name], value, says_infinity)
            elif members is not document or name not in _RESERVED:
                set_parameter(request.parameters[name], value, f"the request: parameter {name[:100]!r}")
    return request


def generate_answer(response: pb.ModelInferResponse) -> bytes:
    """Return the JSON of the answer: an output of one element is that element, any other a flat list.

    Raises:
        InvalidInput: An output has no JSON form.
    """
    document: dict[str, Any] = {"id": response.id} if response.id else {}
    document |= {"model_name": response.model_name, "model_version": response.model_version}
    document |= {key: each for key, each in plain_parameters(response.parameters).items() if key not in document}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = output_values(output, raw)
        document.setdefault(output.name, values[0] if len(values) == 1 else values)
    return to_json(document, inf_nan_mode="constants")


def _add_input(
    request: pb.ModelInferRequest, spec: pb.ModelMetadataResponse.TensorMetadata, value: Any, says_infinity: bool
) -> None:
    where = f"input {spec.name!r}"
    values = value if type(value) is list else [value]
    if any(type(each) is list for each in values):
        raise InvalidInput(f"{where} is a list of lists; give one value or a flat list, or send it to infer")
    shape = _shape(where, list(spec.shape), len(values))
    request.inputs.add(name=spec.name, datatype=spec.datatype, shape=shape)
    request.raw_input_contents.append(tensor_bytes(where, spec.datatype, shape, values, says_infinity))


def _shape(where: str, sides: list[int], count: int) -> list[int]:
    """Return the shape that *count* values have: the innermost free dimension follows, any other is 1."""
    free = [place for place, side in enumerate(sides) if side == -1]
    known = math.prod(side for side in sides if side != -1)
    if count != known and not (free and known and count % known == 0):
        many = "a multiple of " if free else ""
        raise InvalidInput(f"{where} holds {count} values; send {many}{known} for its shape {sides}")
    for place in free:
        sides[place] = 1
    if free and known:
        sides[free[-1]] = count // known
    return sides
