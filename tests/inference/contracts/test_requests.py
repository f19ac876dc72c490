"""Protocol messages to arrays: what is taken and what is refused, with the numbers that disagree."""

import asyncio
import math

import numpy as np
import pytest

from aimass.open_inference import grpc_service_pb2 as pb
from services.common.errors import Conflict, InvalidInput
from services.common.tensors import numpy_dtype
from services.inference.contracts.requests import (
    MANY_VALUES,
    RequestOptions,
    check_batch_size,
    check_digest,
    read_inputs,
    request_options,
    requested_outputs,
    requested_version,
    unpack_inputs,
)
from services.inference.engine import Signature, TensorSpec

PAIR = Signature((TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1,))), (), max_batch_size=4)


def one(datatype: str, shape=(-1,), max_batch_size: int = 0) -> Signature:
    return Signature((TensorSpec("x", datatype, shape),), (), max_batch_size)


def request(*tensors, raw=()) -> pb.ModelInferRequest:
    """Return a request; a tensor is (name, datatype, shape) or (name, datatype, shape, contents)."""
    message = pb.ModelInferRequest(raw_input_contents=raw)
    for name, datatype, shape, *contents in tensors:
        message.inputs.add(name=name, datatype=datatype, shape=shape, **({"contents": contents[0]} if contents else {}))
    return message


@pytest.mark.parametrize(("text", "number"), [("", 0), ("1", 1), ("007", 7), (str(2**63 - 1), 2**63 - 1)])
def test_version_is_a_number(text, number):
    assert requested_version(text) == number


@pytest.mark.parametrize(
    "text", ["v1", "0", "-1", "1.0", " 1", "\N{ARABIC-INDIC DIGIT ONE}", str(2**63), "0" * 19 + "1" * 5000, "latest"]
)
def test_version_that_is_no_positive_integer_is_refused(text):
    with pytest.raises(InvalidInput, match="is not a version; give an integer from 1"):
        requested_version(text)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("FP32", "fp32_contents", [0.5, -1.5]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
        ("BYTES", "bytes_contents", [b"a", b""]),
    ],
)
def test_typed_contents_and_raw_contents_make_the_same_array(datatype, field, values):
    typed = request(("x", datatype, [2], pb.InferTensorContents(**{field: values})))

    arrays, _ = unpack_inputs(typed, one(datatype))

    assert arrays["x"].dtype == numpy_dtype(datatype)
    assert arrays["x"].tolist() == values


def test_inputs_are_matched_by_name_not_by_order():
    raw = [np.array([7], "<i8").tobytes(), np.array([[1, 2]], "<f4").tobytes()]
    arrays, samples = unpack_inputs(request(("b", "INT64", [1]), ("a", "FP32", [1, 2]), raw=raw), PAIR)

    assert (arrays["a"].tolist(), arrays["b"].tolist(), samples) == ([[1, 2]], [7], 1)


@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
def test_timeout_is_in_microseconds_and_priority_a_number_in_either_kind_of_integer(kind):
    message = pb.ModelInferRequest()
    for name, value in (("timeout", 1500), ("priority", 3), ("sequence_id", 7), ("unknown", 8)):
        setattr(message.parameters[name], kind, value)

    assert request_options(message) == RequestOptions(timeout_seconds=0.0015, priority=3)


def test_timeout_of_nothing_or_of_0_is_none():
    message = pb.ModelInferRequest()
    assert request_options(message) == RequestOptions(math.inf, 0)

    message.parameters["timeout"].int64_param = 0
    assert request_options(message) == RequestOptions(math.inf, 0)


@pytest.mark.parametrize("name", ["timeout", "priority"])
@pytest.mark.parametrize("value", [{"int64_param": -1}, {"string_param": "1"}, {"bool_param": True}, {}])
def test_reserved_parameter_that_is_no_number_is_refused(name, value):
    message = pb.ModelInferRequest(parameters={name: pb.InferParameter(**value)})

    with pytest.raises(InvalidInput, match=f"parameter '{name}' is .*; give an integer from 0"):
        request_options(message)


def test_bf16_is_taken_raw():
    arrays, _ = unpack_inputs(request(("x", "BF16", [2]), raw=[b"\x80\x3f\x00\xc0"]), one("BF16"))

    assert arrays["x"].tolist() == [1, -2]
    with pytest.raises(InvalidInput, match="of BF16 has no typed contents; send it raw"):
        unpack_inputs(request(("x", "BF16", [2], pb.InferTensorContents(fp32_contents=[1, -2]))), one("BF16"))


@pytest.mark.parametrize(
    ("datatype", "raw", "contents", "aside"),
    [
        ("BYTES", [b"\0\0\0\0" * (MANY_VALUES + 1)], {}, True),
        ("BYTES", [b"\0\0\0\0" * MANY_VALUES], {}, False),
        ("BYTES", [], {"bytes_contents": [b""] * (MANY_VALUES + 1)}, True),
        ("FP32", [], {"fp32_contents": [0] * (MANY_VALUES + 1)}, True),
        ("FP32", [], {"fp32_contents": [0] * MANY_VALUES}, False),
        ("FP32", [bytes(16 * MANY_VALUES)], {}, False),  # a view of the message
    ],
)
async def test_large_inputs_are_taken_apart_outside_of_the_event_loop(datatype, raw, contents, aside):
    count = len(raw[0]) // 4 if raw else len(next(iter(contents.values())))
    typed = [pb.InferTensorContents(**contents)] if contents else []
    reading = asyncio.ensure_future(read_inputs(request(("x", datatype, [count], *typed), raw=raw), one(datatype)))
    await asyncio.sleep(0)  # one step: all that is done in the loop itself

    assert reading.done() is not aside
    arrays, _ = await reading
    assert arrays["x"].shape == (count,)


async def test_large_inputs_are_refused_as_small_ones():
    count = MANY_VALUES + 1
    message = request(("x", "BYTES", [count]), raw=[b"\0" * 4])

    with pytest.raises(InvalidInput, match=f"which are not exactly {count} elements"):
        await read_inputs(message, one("BYTES"))


A, B = ("a", "FP32", [1, 2]), ("b", "INT64", [1])


@pytest.mark.parametrize(
    ("message", "signature", "words"),
    [
        (request(A, raw=[bytes(8)]), PAIR, r"has inputs \['a'\]; send exactly \['a', 'b'\]"),
        (request(A, A, raw=[bytes(8)] * 2), PAIR, r"has inputs \['a', 'a'\]"),
        (request(A, B, ("c", "FP32", [1]), raw=[bytes(8)] * 3), PAIR, r"\['a', 'b', 'c'\]"),
        (request(), PAIR, r"has inputs \[\]"),
        (request(A, B, raw=[bytes(8)]), PAIR, "has 2 inputs but 1 raw_input_contents"),
        (request(A, B), PAIR, "input 'a' holds 0 values"),
        (request(A, ("b", "INT32", [1]), raw=[bytes(8)] * 2), PAIR, "datatype 'INT32'; send INT64"),
        (request(("a", "FP32", [1, 3]), B, raw=[bytes(8)] * 2), PAIR, r"shape \[1, 3\]; send \[-1, 2\]"),
        (request(("a", "FP32", [2]), B, raw=[bytes(8)] * 2), PAIR, r"shape \[2\]; send \[-1, 2\]"),
        (request(("a", "FP32", [-1, 2]), B, raw=[bytes(8)] * 2), PAIR, "give 0 or more for each dimension"),
        (request(("a", "FP32", [2, 2]), B, raw=[bytes(8)] * 2), PAIR, "holds 8 bytes; send 16 for"),
        (request(("a", "FP32", [2**62, 2]), B, raw=[bytes(8)] * 2), PAIR, "holds 8 bytes"),
        (request(("a", "FP32", [2, 2]), B, raw=[bytes(16), bytes(8)]), PAIR, "batch dimensions {'a': 2, 'b': 1}"),
        (request(("x", "FP32", [0]), raw=[b""]), one("FP32", max_batch_size=4), "1 or more"),
        (
            request((*A, pb.InferTensorContents(fp32_contents=[1, 2])), B, raw=[bytes(8)] * 2),
            PAIR,
            "has contents and raw_input_contents; give one of them",
        ),
        (
            request(("x", "UINT8", [1], pb.InferTensorContents(uint_contents=[256]))),
            one("UINT8"),
            "holds 256, which does not fit UINT8; send values from 0 to 255",
        ),
        (
            request(("x", "UINT8", [1], pb.InferTensorContents(fp32_contents=[1]))),
            one("UINT8"),
            r"holds 0 values; send 1 for shape \[1\]",
        ),
        (request(("x", "FP16", [1], pb.InferTensorContents(fp32_contents=[1]))), one("FP16"), "send it raw"),
        (request(("x", "FP32", [0, 2**62, 2**62])), one("FP32", (-1, -1, -1)), "which no array can have"),
        (
            request(("x", "FP32", [-1, -1], pb.InferTensorContents(fp32_contents=[1]))),
            one("FP32", (-1, -1)),
            "give 0 or more for each",
        ),
    ],
)
def test_request_that_does_not_fit_is_refused(message, signature, words):
    with pytest.raises(InvalidInput, match=words):
        unpack_inputs(message, signature)


def test_model_without_a_batch_dimension_counts_one_sample():
    assert unpack_inputs(request(("x", "FP32", [3]), raw=[bytes(12)]), one("FP32"))[1] == 1


@pytest.mark.parametrize(("samples", "largest", "fits"), [(4, 4, True), (5, 4, False), (5, 0, True)])
def test_batch_is_as_large_as_the_model_takes(samples, largest, fits):
    if fits:
        check_batch_size(samples, one("FP32", max_batch_size=largest))
    else:
        with pytest.raises(InvalidInput, match="holds 5 samples; this model takes 1 to 4 at once"):
            check_batch_size(samples, one("FP32", max_batch_size=largest))


SIGNATURE = Signature((), (TensorSpec("p", "FP32", (-1,)), TensorSpec("q", "FP32", (-1,))), 0)


@pytest.mark.parametrize(("names", "given"), [([], ["p", "q"]), (["q"], ["q"]), (["q", "p"], ["q", "p"])])
def test_outputs_come_in_the_order_of_the_request(names, given):
    outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names]

    assert requested_outputs(pb.ModelInferRequest(outputs=outputs), SIGNATURE) == given


@pytest.mark.parametrize("names", [["r"], ["p", "p"], [""]])
def test_unknown_or_repeated_output_is_refused(names):
    outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names]

    with pytest.raises(InvalidInput, match=r"ask for each of \['p', 'q'\] once at most"):
        requested_outputs(pb.ModelInferRequest(outputs=outputs), SIGNATURE)


@pytest.mark.parametrize(
    ("stated", "own", "fits"),
    [
        (None, "sha256:a", True),
        ("sha256:a", "sha256:a", True),
        ("sha256:b", "sha256:a", False),
        ("sha256:a", "", False),
    ],
)
def test_digest_is_checked_where_it_is_stated(stated, own, fits):
    message = pb.ModelInferRequest()
    if stated:
        message.parameters["preprocess_digest"].string_param = stated
    if fits:
        check_digest(message, own)
        return

    with pytest.raises(
        Conflict, match=f"{stated}, but this version was trained with {own or 'no preprocess'}"
    ) as caught:
        check_digest(message, own)
    assert caught.value.details == {"tensor": stated, "version": own}
