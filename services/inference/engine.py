"""An ONNX Runtime session behind arrays: load, describe, run."""

import ctypes
import functools
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, get_all_operator_schema

from services.common.errors import REFUSED_BY_GRAPH, InvalidInput, Unsupported
from services.inference.memory import give_back_memory

Device = Literal["auto", "cpu", "cuda"]
Arrays = Mapping[str, np.ndarray]
Operator = tuple[str, str]
"""Domain and name; the domain of the standard operators is empty."""

ENDLESS = "ENDLESS_GRAPH"
"""Reason of the error about a graph that was given up."""
TRIAL_SECONDS = 60.0
"""How long one run may take while a version is checked and warmed up."""

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ONNX_BFLOAT16 = 16
"""`TensorProto.BFLOAT16`."""


@dataclass(frozen=True)
class Tuning:
    """What a model's config may set of ONNX Runtime; the defaults are the service's own."""

    intra_op_threads: int = 0
    """Threads of one node; 0 leaves it to the service's setting."""
    inter_op_threads: int = 1
    """Nodes at a time, where `parallel`."""
    parallel: bool = False
    """Whether branches of a graph run side by side."""
    memory_arena: bool = True
    memory_pattern: bool = True
    optimization: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session_entries: tuple[tuple[str, str], ...] = ()
    run_entries: tuple[tuple[str, str], ...] = ()
    cuda_options: tuple[tuple[str, str], ...] = ()
    """Of the CUDA provider; without effect on the CPU."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, datatype and shape of a graph's input or output; -1 stands for a dimension that is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What a version takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    """0 where the first dimension is not a batch."""

    @property
    def samples_per_run(self) -> int:
        """Samples that one run takes: the largest batch, or 1 where each must run alone; 0 where there are none."""
        alone = all(spec.shape[:1] in ((1,), (-1,)) for spec in (*self.inputs, *self.outputs))
        return self.max_batch_size or int(alone)


class OnnxModel:
    """A loaded graph."""

    def __init__(
        self, path: Path, device: Device, threads: int, tuning: Tuning | None = None, gpu: int | None = None
    ) -> None:
        """Load a graph.

        Args:
            path: The file.
            device: Where it shall run.
            threads: Of one run, where *tuning* names none; 0 means one per processor.
            tuning: ONNX Runtime's options.
            gpu: Number of the GPU, where *device* lets it run on one; None takes the first.

        Raises:
            InvalidInput: ONNX Runtime cannot load the graph.
            Unsupported: The graph uses a datatype that the protocol does not have, or there is no GPU to use.
        """
        tuning = tuning or Tuning()
        self._run_entries = tuning.run_entries
        providers = _providers(device, {"device_id": str(gpu or 0), **dict(tuning.cuda_options)})
        try:
            self._session = ort.InferenceSession(path, _session_options(threads, tuning), providers=providers)
        except Exception as error:  # ONNX Runtime raises a class of its own for each kind of bad graph
            text = str(error).replace(str(path), path.name)
            raise InvalidInput(
                f"{path.name} cannot be loaded: {text}; export it again", reason="INVALID_GRAPH"
            ) from error
        give_back_memory()
        if device == "cuda" and not self.on_gpu:  # ONNX Runtime falls back without a word
            raise Unsupported("INFERENCE_DEVICE is cuda, but its libraries were not found; install the extra cuda")
        try:
            self.inputs = tuple(_describe(argument) for argument in self._session.get_inputs())
            self.outputs = tuple(_describe(argument) for argument in self._session.get_outputs())
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"{path.name} cannot be loaded: the name of an input or output is not UTF-8; export it with another",
                reason="INVALID_GRAPH",
            ) from error
        self._has_bfloat16 = any(spec.datatype == "BF16" for spec in (*self.inputs, *self.outputs))

    @property
    def on_gpu(self) -> bool:
        """Whether the graph runs on a GPU."""
        return "CUDAExecutionProvider" in self._session.get_providers()

    def try_out(self, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        """Do as `run`, but give a graph up that does not come to an end.

        Raises:
            InvalidInput: As `run`, or the graph takes longer than `TRIAL_SECONDS`.
        """
        options = ort.RunOptions()
        timer = threading.Timer(TRIAL_SECONDS, lambda: setattr(options, "terminate", True))
        timer.start()
        try:
            return self.run(inputs, outputs, options)
        except Exception as error:
            if options.terminate:
                raise InvalidInput(
                    f"the graph did not end within {TRIAL_SECONDS:g} s; export one that ends sooner", reason=ENDLESS
                ) from error
            raise
        finally:
            timer.cancel()

    def run(self, inputs: Arrays, outputs: Sequence[str], options: ort.RunOptions | None = None) -> list[np.ndarray]:
        """Run the graph in this thread, without the interpreter lock, and return *outputs* in order.

        Raises:
            InvalidInput: The graph refuses these values, such as an index out of range, or text is not UTF-8.
        """
        inputs = {name: _text(name, array) if array.dtype.hasobject else array for name, array in inputs.items()}
        options = self._with_entries(options)
        try:
            if self._has_bfloat16:
                return self._run_values(inputs, outputs, options)
            return [np.asarray(array) for array in self._session.run(outputs, inputs, options)]
        except InvalidArgument as error:
            raise InvalidInput(
                f"the graph refuses these inputs; correct them: {error}", reason=REFUSED_BY_GRAPH
            ) from error

    def _with_entries(self, options: ort.RunOptions | None) -> ort.RunOptions | None:
        if self._run_entries:
            options = options or ort.RunOptions()
            for key, value in self._run_entries:
                options.add_run_config_entry(key, value)
        return options

    def _run_values(self, inputs: Arrays, outputs: Sequence[str], options: ort.RunOptions | None) -> list[np.ndarray]:
        """Run on OrtValues: the binding's arrays have no bfloat16."""
        feeds = {name: _value_of(array) for name, array in inputs.items()}
        return [_array_of(value) for value in self._session.run_with_ort_values(outputs, feeds, options)]


def _value_of(array: np.ndarray) -> ort.OrtValue:
    if array.dtype == BFLOAT16:
        bits = np.ascontiguousarray(array).view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array_of(value: ort.OrtValue) -> np.ndarray:
    if value.element_type() != _ONNX_BFLOAT16:
        return np.asarray(value.numpy())
    shape = value.shape()
    size = math.prod(shape)
    if not size:
        return np.empty(shape, BFLOAT16)
    # The binding has no array for it, but says where its memory lies; it is given back with the value.
    memory = (ctypes.c_uint16 * size).from_address(value.data_ptr())
    array: np.ndarray = np.frombuffer(memory, BFLOAT16).reshape(shape).copy()
    return array


def _session_options(threads: int, tuning: Tuning) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = tuning.intra_op_threads or threads
    options.inter_op_num_threads = tuning.inter_op_threads
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if tuning.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = tuning.memory_arena
    options.enable_mem_pattern = tuning.memory_pattern
    options.graph_optimization_level = tuning.optimization
    options.log_severity_level = 4  # what goes wrong is raised, too
    # Threads that spin between runs take the processors from decoding and from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    for key, value in tuning.session_entries:
        options.add_session_config_entry(key, value)
    return options


def _providers(device: Device, cuda_options: dict[str, str]) -> list[str | tuple[str, dict[str, str]]]:
    if device == "cpu" or (device == "auto" and not gpu_found()):
        return ["CPUExecutionProvider"]
    if not gpu_found():
        raise Unsupported("INFERENCE_DEVICE is cuda, but no NVIDIA GPU was found; use auto or cpu")
    if hasattr(ort, "preload_dlls"):  # finds the CUDA libraries that torch's wheels or the extra `cuda` bring
        ort.preload_dlls()
    # TF32 keeps 10 bits of a float's 23: answers would differ from the golden vectors, and from the CPU's.
    return [("CUDAExecutionProvider", {"use_tf32": "0", **cuda_options}), "CPUExecutionProvider"]


def gpu_found() -> bool:
    """Whether a GPU can be used."""
    return gpu_count() > 0


@functools.cache
def gpu_count() -> int:
    """Return how many devices the CUDA driver knows; ONNX Runtime's GPU build names its provider regardless."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@functools.cache
def known_operators() -> frozenset[Operator]:
    """Return the operators that ONNX Runtime has, of any version of theirs."""
    return frozenset((schema.domain, schema.name) for schema in get_all_operator_schema())


def _text(name: str, array: np.ndarray) -> np.ndarray:
    """Return an array of str: of bytes objects, ONNX Runtime would take the Python notation."""
    try:
        text = [each.decode() if isinstance(each, bytes) else each for each in array.flat]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r} holds text that is not UTF-8; send it as UTF-8") from error
    return np.array(text, np.object_).reshape(array.shape)


def _describe(argument: ort.NodeArg) -> TensorSpec:
    try:
        datatype = _DATATYPES[argument.type]
    except KeyError:
        raise Unsupported(
            f"tensor {argument.name!r} has type {argument.type}, which the protocol does not have; "
            "export the graph with another type"
        ) from None
    shape = tuple(side if isinstance(side, int) and side >= 0 else -1 for side in argument.shape)
    return TensorSpec(argument.name, datatype, shape)
