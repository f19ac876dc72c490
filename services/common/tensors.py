"""Tensors between the wire and numpy: raw little-endian bytes, row-major, as the Open Inference Protocol has them."""

import math
import struct
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from services.common.errors import InvalidInput

_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(np.object_),
}
_LENGTH = struct.Struct("<I")  # each BYTES element is preceded by its length


def numpy_dtype(datatype: str) -> np.dtype:
    """Return the numpy dtype of a protocol datatype.

    Raises:
        InvalidInput: The datatype is unknown.
    """
    try:
        return _DTYPES[datatype]
    except KeyError:
        raise InvalidInput(f"datatype {datatype!r} is unknown; use one of {', '.join(_DTYPES)}") from None


def to_array(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> np.ndarray:
    """View *raw* as an array, without a copy where the datatype has a fixed size.

    Raises:
        InvalidInput: The datatype is unknown, a dimension is negative or absurd, or the byte count does not fit the
            shape.
    """
    dtype = numpy_dtype(datatype)
    check_sides(name, shape)
    count = math.prod(shape)
    if dtype.hasobject:
        return _unpack_bytes(name, shape, count, raw)
    check_byte_count(name, datatype, shape, len(raw))
    return shaped(name, np.frombuffer(raw, dtype), shape)


def check_sides(name: str, shape: Sequence[int]) -> None:
    """Check that no dimension of *shape* is negative.

    Raises:
        InvalidInput: One is.
    """
    if any(side < 0 for side in shape):
        raise InvalidInput(f"input {name!r} has shape {list(shape)}; give 0 or more for each dimension")


def check_byte_count(name: str, datatype: str, shape: Sequence[int], given: int) -> None:
    """Refuse contents of *given* bytes where *shape* needs another number; BYTES may have any.

    Raises:
        InvalidInput: They don't agree.
    """
    dtype = numpy_dtype(datatype)
    needed = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and given != needed:
        raise InvalidInput(
            f"input {name!r} holds {given} bytes; send {needed} for shape {list(shape)} of {datatype}, "
            "or correct the shape"
        )


def shaped(name: str, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """View *array* in a *shape* of as many elements.

    Raises:
        InvalidInput: numpy has no such shape: a dimension of 0 can hide sizes that no memory has.

    """
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise InvalidInput(
            f"input {name!r} has shape {list(shape)}, which no array can have; use fewer or smaller dimensions"
        ) from error


def to_raw(array: np.ndarray) -> bytes:
    """Return the wire form of *array*; the inverse of `to_array`."""
    if array.dtype.hasobject:
        return b"".join(_pack_element(element) for element in array.flat)
    return array.tobytes()


def _pack_element(element: object) -> bytes:
    data = element if isinstance(element, bytes) else str(element).encode()
    return _LENGTH.pack(len(data)) + data


def _unpack_bytes(name: str, shape: Sequence[int], count: int, raw: bytes) -> np.ndarray:
    elements, position = _elements(raw, count)
    if position > len(raw):
        raise InvalidInput(
            f"input {name!r} ends inside element {len(elements)}; put the length before each BYTES element, "
            "in 4 bytes, little-endian"
        )
    if len(elements) != count or position != len(raw):
        raise InvalidInput(
            f"input {name!r} has {len(raw)} bytes, which are not exactly {count} elements; "
            f"send {count} for shape {list(shape)}, or correct the shape"
        )
    array = np.empty(count, np.object_)
    array[:] = elements
    return shaped(name, array, shape)


def _elements(raw: bytes, most: int) -> tuple[list[bytes], int]:
    """Return up to *most* elements and where they end: behind *raw* where the last of them, left out, is cut off.

    Millions of empty strings fit a message, so the loop looks nothing up and leaves the checks to its end.
    """
    elements: list[bytes] = []
    append, length_at, position, size = elements.append, _LENGTH.unpack_from, 0, len(raw)
    try:
        for _ in range(min(most, size // _LENGTH.size + 1)):  # one too many finds what is left over
            start = position + _LENGTH.size
            position = start + length_at(raw, position)[0]
            append(raw[start:position])
    except struct.error:  # there is no length at the position any more
        if position <= size:
            return elements, position if position == size else size + 1
    if position > size:
        elements.pop()
    return elements, position
