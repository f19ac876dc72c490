"""Which tensors of a request lie in shared memory, by the parameters that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aimass.open_inference import grpc_service_pb2 as pb
from services.common.errors import InvalidInput
from services.inference.contracts.shared_memory import MemorySlice, SharedMemory

REGION, BYTE_SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"


@dataclass(frozen=True)
class MemoryRequest:
    """What is read of a `ModelInferRequest`, where not all of its inputs came with it."""

    model_name: str
    model_version: str
    id: str
    parameters: Mapping[str, pb.InferParameter]
    inputs: Iterable[pb.ModelInferRequest.InferInputTensor]
    outputs: Iterable[pb.ModelInferRequest.InferRequestedOutputTensor]
    raw_input_contents: list[bytes | MemorySlice | None]
    """One for each input."""

    @classmethod
    def of(cls, request: pb.ModelInferRequest, contents: list[bytes | MemorySlice | None]) -> MemoryRequest:
        """Return *request* with *contents* as its inputs'."""
        return cls(
            request.model_name,
            request.model_version,
            request.id,
            request.parameters,
            request.inputs,
            request.outputs,
            contents,
        )


def uses_shared_memory(request: pb.ModelInferRequest) -> bool:
    """Whether any tensor of *request* lies in shared memory."""
    return any(REGION in tensor.parameters for tensor in request.inputs) or any(
        REGION in tensor.parameters for tensor in request.outputs
    )


def memory_inputs(request: pb.ModelInferRequest, memory: SharedMemory) -> list[bytes | MemorySlice | None]:
    """Return what each input of *request* holds, where some lie in shared memory; None is for typed contents.

    Raises:
        InvalidInput: An input has two contents, is too large, or the raw contents are not one for each other input.
        NotFound: A region is not registered.
    """
    slices = [_slice_of(memory, tensor.parameters, f"input {tensor.name!r}") for tensor in request.inputs]
    raw = list(request.raw_input_contents)
    if raw and len(raw) != slices.count(None):
        raise InvalidInput(
            f"the request has {slices.count(None)} inputs outside of shared memory but {len(raw)} "
            "raw_input_contents; give one for each",
            field="raw_input_contents",
        )
    for tensor, part in zip(request.inputs, slices, strict=True):
        if part is not None and (tensor.HasField("contents") or part.byte_size > memory.max_tensor_bytes):
            raise InvalidInput(
                f"input {tensor.name!r} has {part.byte_size} bytes in shared memory; give at most "
                f"{memory.max_tensor_bytes} (INFERENCE_MAX_MESSAGE_BYTES), and no other contents",
                field="inputs",
            )
    others = iter(raw)
    return [next(others, None) if part is None else part for part in slices]


def memory_outputs(request: pb.ModelInferRequest, memory: SharedMemory) -> dict[str, MemorySlice]:
    """Return where those outputs go that *request* wants in shared memory.

    Raises:
        InvalidInput: A place reaches out of its region.
        NotFound: A region is not registered.
    """
    slices = {
        output.name: _slice_of(memory, output.parameters, f"output {output.name!r}") for output in request.outputs
    }
    return {name: part for name, part in slices.items() if part is not None}


def _slice_of(memory: SharedMemory, parameters: Mapping[str, pb.InferParameter], tensor: str) -> MemorySlice | None:
    if REGION not in parameters:
        return None
    name = parameters[REGION].string_param
    byte_size = _integer(parameters[BYTE_SIZE]) if BYTE_SIZE in parameters else -1
    offset = _integer(parameters[OFFSET]) if OFFSET in parameters else 0
    if not name or byte_size < 0 or offset < 0:
        raise InvalidInput(
            f"{tensor} is in region {name!r}, {byte_size} bytes from byte {offset}; give {REGION} a name, and "
            f"{BYTE_SIZE} and {OFFSET} integers from 0"
        )
    return memory.slice(name, offset, byte_size)


def _integer(parameter: pb.InferParameter) -> int:
    """Return the parameter's value, or -1 where it is none that counts bytes."""
    return parameter.int64_param if parameter.HasField("int64_param") else -1
