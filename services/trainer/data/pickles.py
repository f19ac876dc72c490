"""Reads the pickled batches of CIFAR sets without running anything that is in them."""

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput

_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric")


class _Array:
    """Stands for a numpy array: takes its state and runs none of numpy's code on it."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state  # version, shape, dtype, column order, bytes


class _Type:
    """Stands for a numpy dtype."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Take no notice of byte order, which single bytes do not have."""


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, kind, order == "F", data)
    return array


def _encode(text: Any, coding: Any = "latin1") -> bytes:
    """Give the bytes that Python 3 writes as text into old protocols."""
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("text that is not latin1")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stands = {"_reconstruct": _Array, "ndarray": _Array, "dtype": _Type, "_frombuffer": _from_buffer}
        if module in _MODULES and name in stands:
            return stands[name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_pickle(data: bytes, source: str) -> dict[str, Any]:
    """Return the dictionary in *data*: keys as text, arrays as uint8, texts as bytes or text, numbers, lists.

    Raises:
        InvalidInput: It is no such pickle, or it names anything else than the arrays that those files hold.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"a {type(content).__name__}")
        return {_text(key): _plain(value) for key, value in content.items()}
    except Exception as error:  # hostile bytes make it raise anything
        raise InvalidInput(
            f"{source} is not a pickled batch of a CIFAR set, or holds something else too ({str(error)[:100]}); "
            "convert it to the binary layout or leave it out",
            reason="NOT_A_BATCH",
        ) from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    return _array(value) if isinstance(value, _Array) else value


def _array(array: _Array) -> NDArray[np.uint8]:
    _, shape, kind, by_column, data = array.state
    if not isinstance(kind, _Type) or _text(kind.name).lstrip("|") != "u1":
        raise pickle.UnpicklingError("an array of another type than uint8")
    values = np.frombuffer(data, np.uint8)
    return values.reshape(shape, order="F" if by_column else "C")
