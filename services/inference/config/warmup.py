"""The requests that a model's config wants run before its first caller comes (`model_warmup`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aimass.open_inference import model_config_pb2 as pb
from services.common.errors import InvalidInput
from services.common.tensors import numpy_dtype, to_array
from services.inference.engine import Arrays, Signature

FOLDER = "warmup"


@dataclass(frozen=True)
class Warmup:
    """One request and how often it is run."""

    name: str
    inputs: Arrays
    count: int


def read_warmups(config: pb.ModelConfig, signature: Signature, folder: Path, max_bytes: int) -> Iterator[Warmup]:
    """Yield the warm-up requests of a completed *config*, one at a time: together they may be large.

    Args:
        config: Of the model.
        signature: Of the version.
        folder: The model's; files lie in its folder `warmup`.
        max_bytes: Largest input.

    Raises:
        InvalidInput: A request does not fit the model, or a file is missing or of another size.
    """
    random = np.random.default_rng(0)
    for position, warmup in enumerate(config.model_warmup):
        name = warmup.name or str(position)
        _check(warmup, name, signature)
        samples = warmup.batch_size if signature.max_batch_size else 0
        inputs = {
            key: _array(f"{name!r}, input {key!r}", warmup.inputs[key], samples, folder / FOLDER, max_bytes, random)
            for key in sorted(warmup.inputs)
        }
        yield Warmup(name, inputs, warmup.count or 1)


def _check(warmup: pb.ModelWarmup, name: str, signature: Signature) -> None:
    most = signature.max_batch_size
    if not min(most, 1) <= warmup.batch_size <= max(most, 1):
        raise InvalidInput(
            f"model_warmup {name!r} has batch_size {warmup.batch_size}; use {'1 to' if most else '0, or at most'} "
            f"{max(most, 1)}"
        )
    expected = {spec.name: spec for spec in signature.inputs}
    if set(warmup.inputs) != set(expected):
        raise InvalidInput(
            f"model_warmup {name!r} has inputs {sorted(warmup.inputs)}; give exactly the model's, {list(expected)}"
        )
    for key, given in warmup.inputs.items():
        dims = expected[key].shape[1:] if most else expected[key].shape
        fits = len(given.dims) == len(dims) and all(
            side >= 0 and want in (-1, side) for side, want in zip(given.dims, dims, strict=True)
        )
        if _datatype(given) != expected[key].datatype or not fits:
            raise InvalidInput(
                f"model_warmup {name!r} gives input {key!r} {_datatype(given)} {list(given.dims)}; "
                f"use {expected[key].datatype} {list(dims)}, as the model takes it"
            )


def _datatype(given: pb.ModelWarmup.Input) -> str:
    return pb.DataType.Name(given.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")


def _array(
    what: str, given: pb.ModelWarmup.Input, samples: int, folder: Path, max_bytes: int, random: np.random.Generator
) -> np.ndarray:
    """Return one sample, repeated *samples* times where that is not 0."""
    dtype = numpy_dtype(_datatype(given))
    size = int(np.prod(given.dims, dtype=object)) * max(samples, 1) * dtype.itemsize
    if size > max_bytes:
        raise InvalidInput(f"model_warmup {what} has {size:,} bytes; use at most {max_bytes:,}")
    match given.WhichOneof("input_data_type"):
        case "zero_data":
            sample = np.full(given.dims, b"", dtype) if dtype.hasobject else np.zeros(given.dims, dtype)
        case "random_data":
            sample = _random(what, given, dtype, random)
        case "input_data_file":
            sample = to_array(what, _datatype(given), given.dims, _read(what, folder, given.input_data_file, max_bytes))
        case _:
            raise InvalidInput(f"model_warmup {what} has no data; use zero_data, random_data or input_data_file")
    return np.repeat(sample[None], samples, 0) if samples else sample


def _random(what: str, given: pb.ModelWarmup.Input, dtype: np.dtype, random: np.random.Generator) -> np.ndarray:
    if dtype.hasobject:
        raise InvalidInput(f"model_warmup {what} is text and random_data; use zero_data or input_data_file")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, given.dims, dtype, endpoint=True)
    if dtype.kind == "b":
        return random.integers(0, 2, given.dims, np.uint8).astype(dtype)
    return random.random(list(given.dims), np.float32).astype(dtype)


def _read(what: str, folder: Path, name: str, max_bytes: int) -> bytes:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise InvalidInput(
            f"model_warmup {what} names {name!r}, which is not a file in the model's folder {FOLDER}/; put it there"
        )
    if path.stat().st_size > max_bytes:
        raise InvalidInput(
            f"model_warmup {what} names {name!r} of {path.stat().st_size:,} bytes; use a file of at most {max_bytes:,}"
        )
    return path.read_bytes()
