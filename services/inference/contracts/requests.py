"""Protocol messages <-> arrays: what `ModelInfer` and `Classify` have in common."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aimass.open_inference import grpc_service_pb2 as pb
from services.common.errors import Conflict, InvalidInput
from services.common.manifest import DIGEST_PARAMETER
from services.common.tensors import check_byte_count, check_sides, numpy_dtype, shaped, to_array, to_raw
from services.common.traffic import ROUTING_KEY
from services.inference.batching.batcher import Inference
from services.inference.contracts.memory_tensors import BYTE_SIZE, OFFSET, REGION
from services.inference.contracts.shared_memory import MemorySlice
from services.inference.engine import Signature, TensorSpec

TIMINGS_PARAMETER = "aimass_timings"
"""The suite's own parameter: true asks for where the request's time went, as parameters of the response."""
MANY_VALUES = 8192
"""Inputs of more that are converted one by one are unpacked in a thread, so that the loop goes on with others."""

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class RequestOptions:
    """What the protocol's reserved parameters ask for; `sequence_*` and unknown ones change nothing here."""

    timeout_seconds: float = math.inf
    """Longest wait that it asks for; whether it may is the queue policy's to say."""
    priority: int = 0
    """1 is the highest; 0 means the model's default."""
    routing_key: str = ""
    """Decides between stable version and canary; the suite's own parameter."""


def request_options(request: pb.ModelInferRequest) -> RequestOptions:
    """Read the reserved parameters of *request*.

    Raises:
        InvalidInput: One has a value that it cannot have.
    """
    microseconds = _whole_number(request, "timeout")
    return RequestOptions(
        timeout_seconds=microseconds / 1e6 if microseconds else math.inf,
        priority=_whole_number(request, "priority"),
        routing_key=_parameter(request, ROUTING_KEY, ("string_param",), "a string") or "",
    )


def wants_timings(request: pb.ModelInferRequest) -> bool:
    """Whether the answer to *request* shall say where its time went.

    Raises:
        InvalidInput: The parameter is neither true nor false.
    """
    return bool(_parameter(request, TIMINGS_PARAMETER, ("bool_param",), "true or false"))


def _whole_number(request: pb.ModelInferRequest, name: str) -> int:
    """Return an integer parameter; 0 where it is not given. Clients send either kind of integer."""
    wanted = "an integer from 0"
    number: int = _parameter(request, name, ("int64_param", "uint64_param"), wanted) or 0
    if number < 0:
        raise InvalidInput(f"parameter {name!r} is {number}; give {wanted}", field=name)
    return number


def _parameter(request: pb.ModelInferRequest, name: str, kinds: Sequence[str], wanted: str) -> Any:
    """Return the value of a parameter, which has to be of one of *kinds*; None where it is not given."""
    if name not in request.parameters:
        return None
    parameter = request.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None or kind not in kinds:
        given = str(parameter).strip()[:40] or "empty"
        raise InvalidInput(f"parameter {name!r} is {given}; give {wanted}", field=name)
    return getattr(parameter, kind)


def requested_version(text: str) -> int:
    """Parse `model_version`; empty gives 0, which lets traffic decide.

    Raises:
        InvalidInput: It is not a positive integer.
    """
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) < 2**63):
        raise InvalidInput(
            f"model_version {text[:40]!r} is not a version; give an integer from 1, or leave it out",
            field="model_version",
        )
    return int(text)


def check_digest(request: pb.ModelInferRequest, digest: str) -> None:
    """Refuse a tensor that another preprocess spec made than the version's.

    Raises:
        Conflict: The request states another digest.
    """
    if DIGEST_PARAMETER not in request.parameters:
        return
    stated = request.parameters[DIGEST_PARAMETER].string_param
    if stated != digest:
        raise Conflict(
            f"the tensor was made by preprocess spec {stated or 'of no digest'}, but this version was trained with "
            f"{digest or 'no preprocess spec'}; preprocess the image again for this version",
            reason="PREPROCESS_MISMATCH",
            details={"tensor": stated, "version": digest},
        )


async def read_inputs(
    request: pb.ModelInferRequest, signature: Signature, *, split: bool = False
) -> tuple[dict[str, np.ndarray], int]:
    """Do as `unpack_inputs`, in a thread where that would hold up the event loop."""
    if any(_values_to_convert(tensor) > MANY_VALUES for tensor in request.inputs):
        return await asyncio.to_thread(unpack_inputs, request, signature, split=split)
    return unpack_inputs(request, signature, split=split)


def _values_to_convert(tensor: pb.ModelInferRequest.InferInputTensor) -> int:
    """Return how many values become Python's in between: of text and typed contents, where others are only viewed.

    A shape that lies is refused before its values are looked at. Raw contents are not touched: that copies them.
    """
    return math.prod(tensor.shape) if tensor.datatype == "BYTES" or tensor.HasField("contents") else 0


def unpack_inputs(
    request: pb.ModelInferRequest, signature: Signature, *, split: bool = False
) -> tuple[dict[str, np.ndarray], int]:
    """Return the request's arrays by name, and how many samples they hold.

    Args:
        request: As it came.
        signature: Of the version.
        split: Whether the samples may be run in parts, so that any number of them will do.

    Raises:
        InvalidInput: Names, datatypes, shapes or byte counts do not fit the signature.
    """
    given = [tensor.name for tensor in request.inputs]
    any_number = split and signature.samples_per_run > 0
    expected = {spec.name: _of_any_number(spec) if any_number else spec for spec in signature.inputs}
    if len(given) != len(expected) or set(given) != set(expected):
        raise InvalidInput(
            f"the request has inputs {given}; send exactly {list(expected)}, each once",
            field="inputs",
        )
    raw = request.raw_input_contents
    if raw and len(raw) != len(given):
        raise InvalidInput(
            f"the request has {len(given)} inputs but {len(raw)} raw_input_contents; give one for each input",
            field="raw_input_contents",
        )
    arrays = {
        tensor.name: _array(tensor, raw[position] if raw else None, expected[tensor.name])
        for position, tensor in enumerate(request.inputs)
    }
    return arrays, _samples(arrays) if signature.max_batch_size or any_number else 1


def _of_any_number(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:]))


def _array(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | MemorySlice | None, spec: TensorSpec
) -> np.ndarray:
    shape = tuple(tensor.shape)
    if tensor.datatype != spec.datatype:
        raise InvalidInput(
            f"input {spec.name!r} has datatype {tensor.datatype!r}; send {spec.datatype}, which this model takes",
            field="inputs",
        )
    fits = len(shape) == len(spec.shape) and all(
        own == want or want == -1 for own, want in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidInput(
            f"input {spec.name!r} has shape {list(shape)}; send {list(spec.shape)}, where -1 is any size",
            field="inputs",
        )
    if raw is None:
        return _typed_array(tensor, shape)
    if tensor.HasField("contents"):
        raise InvalidInput(f"input {spec.name!r} has contents and raw_input_contents; give one of them", field="inputs")
    if isinstance(raw, MemorySlice):
        check_byte_count(spec.name, spec.datatype, shape, raw.byte_size)  # before it is read
        raw = raw.read()
    return to_array(spec.name, spec.datatype, shape, raw)


def _typed_array(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> np.ndarray:
    if tensor.datatype not in _CONTENTS:
        raise InvalidInput(f"input {tensor.name!r} of {tensor.datatype} has no typed contents; send it raw")
    values = getattr(tensor.contents, _CONTENTS[tensor.datatype])
    check_sides(tensor.name, shape)
    if len(values) != math.prod(shape):
        raise InvalidInput(
            f"input {tensor.name!r} holds {len(values)} values; send {math.prod(shape)} for shape {list(shape)}, "
            "or correct the shape"
        )
    dtype = numpy_dtype(tensor.datatype)
    try:
        array = np.array(values, dtype)
    except OverflowError as error:
        limits = np.iinfo(dtype)
        odd = next(each for each in values if not limits.min <= each <= limits.max)
        raise InvalidInput(
            f"input {tensor.name!r} holds {odd}, which does not fit {tensor.datatype}; "
            f"send values from {limits.min} to {limits.max}"
        ) from error
    return shaped(tensor.name, array, shape)


def _samples(arrays: dict[str, np.ndarray]) -> int:
    sizes = {name: len(array) for name, array in arrays.items()}
    samples = next(iter(sizes.values()))
    if set(sizes.values()) != {samples} or samples == 0:
        raise InvalidInput(
            f"the inputs have batch dimensions {sizes}; send the same number of samples in each, 1 or more"
        )
    return samples


def check_batch_size(samples: int, signature: Signature) -> None:
    """Refuse a request of more *samples* than one batch takes.

    Raises:
        InvalidInput: It holds more.
    """
    if samples > signature.max_batch_size > 0:
        raise InvalidInput(
            f"the request holds {samples} samples; this model takes 1 to {signature.max_batch_size} at once; "
            "send fewer",
            field="inputs",
        )


def requested_outputs(request: pb.ModelInferRequest, signature: Signature) -> list[str]:
    """Return the names of the wanted outputs, in the request's order; all where it names none.

    Raises:
        InvalidInput: An output is unknown or named twice.
    """
    known = [spec.name for spec in signature.outputs]
    names = [output.name for output in request.outputs] or known
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) != len(names):
        raise InvalidInput(f"the request wants outputs {names}; ask for each of {known} once at most", field="outputs")
    return names


def pack_response(
    response: pb.ModelInferResponse,
    names: Sequence[str],
    datatypes: Sequence[str],
    arrays: Sequence[np.ndarray],
    memory: Mapping[str, MemorySlice] | None = None,
) -> pb.ModelInferResponse:
    """Add *arrays* to *response*, always raw; those that *memory* has a place for go there.

    Raises:
        InvalidInput: A place in shared memory is too small.
    """
    for name, datatype, array in zip(names, datatypes, arrays, strict=True):
        output = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        raw = to_raw(array)
        if memory and (part := memory.get(name)):
            part.write(name, raw)
            _describe_memory(output, part, len(raw))
            raw = b""
        # Stock clients index the raw contents of every output, also of those in shared memory.
        response.raw_output_contents.append(raw)
    return response


def add_timings(response: pb.ModelInferResponse, inference: Inference) -> None:
    """Say in the parameters of *response* where its request's time went, and with whom it shared a batch."""
    figures = {
        "queue_ns": inference.queue,
        "compute_input_ns": inference.times.compute_input,
        "compute_infer_ns": inference.times.compute_infer,
        "compute_output_ns": inference.times.compute_output,
        "batch_size": inference.batch_size,
        "batch_requests": inference.batch_requests,
    }
    for name, figure in figures.items():
        response.parameters[name].int64_param = figure


def _describe_memory(output: pb.ModelInferResponse.InferOutputTensor, part: MemorySlice, written: int) -> None:
    output.parameters[REGION].string_param = part.region.name
    output.parameters[BYTE_SIZE].int64_param = written
    if part.offset:
        output.parameters[OFFSET].int64_param = part.offset
