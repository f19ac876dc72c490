"""Arrays to the wire and back, and everything that is refused on the way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from services.common.errors import InvalidInput
from services.common.tensors import numpy_dtype, to_array, to_raw

INTEGERS = ["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
NUMBERS = [*INTEGERS, "BOOL", "FP16", "FP32", "FP64"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@pytest.mark.parametrize("datatype", NUMBERS)
@settings(max_examples=20)
@given(data=st.data())
def test_numbers_survive_the_wire(datatype, data):
    array = data.draw(hnp.arrays(numpy_dtype(datatype), SHAPES))

    back = to_array("x", datatype, array.shape, to_raw(array))

    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(hnp.arrays(np.uint16, SHAPES))
def test_bf16_survives_the_wire_bit_for_bit(bits):
    back = to_array("x", "BF16", bits.shape, bits.tobytes())

    assert (back.dtype, back.shape, to_raw(back)) == (numpy_dtype("BF16"), bits.shape, bits.tobytes())


@given(hnp.arrays(np.object_, SHAPES, elements=st.binary(max_size=300), fill=st.nothing()))
def test_bytes_survive_the_wire(array):
    back = to_array("x", "BYTES", array.shape, to_raw(array))

    assert (back.shape, back.tolist()) == (array.shape, array.tolist())


def test_strings_go_out_as_utf8():
    assert to_raw(np.array(["ä", b"\xff"], np.object_)) == b"\x02\x00\x00\x00\xc3\xa4\x01\x00\x00\x00\xff"


def test_raw_is_row_major_and_little_endian_whatever_the_array_is():
    array = np.array([[1, 2], [3, 4]], "<i2")

    assert to_raw(array.T) == b"\1\0\3\0\2\0\4\0"


def test_array_is_a_view_of_the_message():
    raw = bytes(1000)

    assert not to_array("x", "UINT8", [1000], raw).flags.owndata


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "words"),
    [
        ("FLOAT", [1], b"1234", "datatype 'FLOAT' is unknown"),
        ("BF16", [1], b"1", r"holds 1 bytes; send 2 for shape \[1\] of BF16"),
        ("FP32", [2, -1], b"12345678", r"shape \[2, -1\]; give 0 or more for each dimension"),
        ("FP32", [2], b"1234567", r"holds 7 bytes; send 8 for shape \[2\] of FP32"),
        ("FP32", [2**40, 2**40], b"", "holds 0 bytes"),
        ("FP32", [0, 2**62, 2**62], b"", "which no array can have"),
        ("BYTES", [0, 2**62, 2**62], b"", "which no array can have"),
        ("BYTES", [2**62], b"\0\0\0\0", "has 4 bytes, which are not exactly"),
        ("BYTES", [1], b"", "has 0 bytes, which are not exactly 1 elements"),
        ("BYTES", [1], b"\0\0\0\0" * 2, "has 8 bytes, which are not exactly 1 elements"),
        ("BYTES", [2], b"\1\0\0\0a\1\0", "ends inside element 1"),
        ("BYTES", [1], b"\5\0\0\0abcd", "ends inside element 0"),
        ("BYTES", [3], b"\0\0\0\0\5\0\0\0abcd", "ends inside element 1"),
        ("BYTES", [3], b"\0\0\0\0" * 2, "has 8 bytes, which are not exactly 3 elements"),
        ("BYTES", [1], b"\xff\xff\xff\xff", "ends inside element 0"),
    ],
)
def test_tensor_is_refused_with_the_numbers_that_disagree(datatype, shape, raw, words):
    with pytest.raises(InvalidInput, match=words):
        to_array("x", datatype, shape, raw)
