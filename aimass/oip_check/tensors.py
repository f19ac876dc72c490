"""Makes tensors that fit what a model says of itself, mostly of zeros, which any model can take, and compares them."""

import math
import struct
from collections.abc import Iterable, Sequence

from aimass.open_inference import grpc_service_pb2 as pb

BYTES_PER_ELEMENT = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8"), 1),
    **dict.fromkeys(("INT16", "UINT16", "FP16", "BF16"), 2),
    **dict.fromkeys(("INT32", "UINT32", "FP32"), 4),
    **dict.fromkeys(("INT64", "UINT64", "FP64"), 8),
}
DATATYPES = (*BYTES_PER_ELEMENT, "BYTES")
TYPED_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""FP16 and BF16 have no typed form."""

_FLOATS = {"FP16": "e", "FP32": "f", "FP64": "d"}
_ELEMENT = b"0"
"""Of a BYTES tensor: a string that also reads as a number."""


def size_in_bytes(datatype: str, shape: Iterable[int]) -> int:
    """Return how long the raw form of zeros is."""
    return math.prod(shape) * BYTES_PER_ELEMENT.get(datatype, 4 + len(_ELEMENT))


def raw_zeros(datatype: str, shape: Iterable[int]) -> bytes:
    """Return the raw form of zeros; each element of BYTES is led by its length."""
    return raw_filled(datatype, shape, 0)


def raw_filled(datatype: str, shape: Iterable[int], value: int) -> bytes:
    """Return the raw form of a tensor whose elements all are a small *value*; of BOOL, whether it is odd."""
    match datatype:
        case "BYTES":
            element = struct.pack("<I", len(str(value))) + str(value).encode()
        case "BOOL":
            element = struct.pack("<B", value % 2)
        case "BF16":
            element = struct.pack("<f", value)[2:]  # the upper half of an FP32
        case _ if datatype in _FLOATS:
            element = struct.pack(f"<{_FLOATS[datatype]}", value)
        case _:
            element = value.to_bytes(BYTES_PER_ELEMENT[datatype], "little")
    return element * math.prod(shape)


def same_values(datatype: str, one: bytes, other: bytes) -> bool:
    """Whether two raw forms hold the same; floats may differ in their last digits, as runs in other batches do."""
    if datatype not in _FLOATS or len(one) != len(other):
        return one == other
    form = f"<{len(one) // BYTES_PER_ELEMENT[datatype]}{_FLOATS[datatype]}"
    if struct.calcsize(form) != len(one):
        return one == other
    pairs = zip(struct.unpack(form, one), struct.unpack(form, other), strict=True)
    return all(math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-4) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


def typed_zeros(datatype: str, shape: Iterable[int]) -> pb.InferTensorContents:
    """Return the typed form of zeros."""
    contents = pb.InferTensorContents()
    value = _ELEMENT if datatype == "BYTES" else 0
    getattr(contents, TYPED_CONTENTS[datatype]).extend([value] * math.prod(shape))
    return contents


def elements_of(raw: bytes) -> list[bytes] | None:
    """Split the raw form of a BYTES tensor; None where a length points past the end."""
    elements, position = [], 0
    while position < len(raw):
        if position + 4 > len(raw):
            return None
        (length,) = struct.unpack_from("<I", raw, position)
        position += 4 + length
        if position > len(raw):
            return None
        elements.append(raw[position - length : position])
    return elements


def fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """Whether *shape* is one of those that *declared* stands for; -1 is any size."""
    return len(shape) == len(declared) and all(want in (-1, own) for own, want in zip(shape, declared, strict=True))


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Parse `input:1,3,224`; a name may hold colons.

    Raises:
        ValueError: Says which one is not of this form.
    """
    shapes = {}
    for text in texts:
        name, _, sides = text.rpartition(":")
        if not name or not all(side.isdecimal() for side in sides.split(",")):
            raise ValueError(f"{text!r} is no shape; write input:1,3,224")
        shapes[name] = tuple(map(int, sides.split(",")))
    return shapes
