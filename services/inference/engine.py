"""An ONNX Runtime session behind arrays: load, describe, run."""

import ctypes
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from services.common.errors import InvalidInput, Unsupported

Device = Literal["auto", "cpu", "cuda"]
Arrays = Mapping[str, np.ndarray]

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
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


@dataclass(frozen=True)
class TensorSpec:
    """Name, datatype and shape of a graph's input or output; -1 stands for a dimension that is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class OnnxModel:
    """A loaded graph."""

    def __init__(self, path: Path, device: Device, threads: int) -> None:
        """Load the graph at *path*; *threads* 0 means one per processor.

        Raises:
            InvalidInput: ONNX Runtime cannot load the graph.
            Unsupported: The graph uses a datatype that the protocol does not have, or there is no GPU to use.
        """
        providers = _providers(device)
        try:
            self._session = ort.InferenceSession(path, _session_options(threads), providers=providers)
        except Exception as error:  # ONNX Runtime raises a class of its own for each kind of bad graph
            text = str(error).replace(str(path), path.name)
            raise InvalidInput(f"{path.name} cannot be loaded: {text}", reason="INVALID_GRAPH") from error
        if device == "cuda" and not self.on_gpu:  # ONNX Runtime falls back without a word
            raise Unsupported("INFERENCE_DEVICE is cuda, but its libraries were not found; install the extra cuda")
        self.inputs = tuple(_describe(argument) for argument in self._session.get_inputs())
        self.outputs = tuple(_describe(argument) for argument in self._session.get_outputs())

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
                raise InvalidInput(f"the graph did not end within {TRIAL_SECONDS:g} s", reason=ENDLESS) from error
            raise
        finally:
            timer.cancel()

    def run(self, inputs: Arrays, outputs: Sequence[str], options: ort.RunOptions | None = None) -> list[np.ndarray]:
        """Run the graph in this thread, without the interpreter lock, and return *outputs* in order.

        Raises:
            InvalidInput: The graph refuses these values, such as an index out of range, or text is not UTF-8.

        """
        inputs = {name: _text(name, array) if array.dtype.hasobject else array for name, array in inputs.items()}
        try:
            return [np.asarray(array) for array in self._session.run(outputs, inputs, options)]
        except InvalidArgument as error:
            raise InvalidInput(f"the graph refuses these inputs: {error}", reason="REFUSED_BY_GRAPH") from error


def _session_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised, too
    # Threads that spin between runs take the processors from decoding and from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(device: Device) -> list[str | tuple[str, dict[str, str]]]:
    if device == "cpu" or (device == "auto" and not gpu_found()):
        return ["CPUExecutionProvider"]
    if not gpu_found():
        raise Unsupported("INFERENCE_DEVICE is cuda, but no NVIDIA GPU was found; use auto or cpu")
    if hasattr(ort, "preload_dlls"):  # finds the CUDA libraries that torch's wheels or the extra `cuda` bring
        ort.preload_dlls()
    # TF32 keeps 10 bits of a float's 23: answers would differ from the golden vectors, and from the CPU's.
    return [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


@functools.cache
def gpu_found() -> bool:
    """Whether the CUDA driver is here and knows a device; ONNX Runtime's GPU build names its provider regardless."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _text(name: str, array: np.ndarray) -> np.ndarray:
    """Return an array of str: of bytes objects, ONNX Runtime would take the Python notation."""
    try:
        text = [each.decode() if isinstance(each, bytes) else each for each in array.flat]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r} holds text that is not UTF-8") from error
    return np.array(text, np.object_).reshape(array.shape)


def _describe(argument: ort.NodeArg) -> TensorSpec:
    try:
        datatype = _DATATYPES[argument.type]
    except KeyError:
        raise Unsupported(
            f"tensor {argument.name!r} has type {argument.type}, which the protocol does not have"
        ) from None
    shape = tuple(side if isinstance(side, int) and side >= 0 else -1 for side in argument.shape)
    return TensorSpec(argument.name, datatype, shape)
