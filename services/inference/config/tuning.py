"""ONNX Runtime's options as a model's config gives them, by the names of Triton's onnxruntime backend."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime as ort

from aimass.open_inference import model_config_pb2 as pb
from services.common.errors import InvalidInput, Unsupported
from services.inference.engine import Tuning, gpu_found

_LEVELS = {
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_BOOLEANS = {"0": False, "false": False, "1": True, "true": True}
MAX_THREADS = 1024


def tuning_of(config: pb.ModelConfig | None) -> Tuning:
    """Return the options in *config*; the service's own where there is none.

    Raises:
        InvalidInput: A value is none that the option has.
        Unsupported: An option is unknown; none is ignored silently.
    """
    if config is None:
        return Tuning()
    texts = {key: parameter.string_value for key, parameter in config.parameters.items()}
    unknown = sorted(texts.keys() - _FIELDS.keys() - _CUDA.keys() - {_INITIALIZERS, _SHRINKAGE})
    if unknown:
        raise Unsupported(
            f"the config sets parameters {', '.join(map(repr, unknown))}, which are not supported; remove them or use "
            f"{', '.join((*_FIELDS, *_CUDA, _INITIALIZERS, _SHRINKAGE))}"
        )
    level = config.optimization.graph.level
    if level not in _LEVELS:
        raise InvalidInput(f"optimization.graph.level is {level}; use one of {', '.join(map(str, _LEVELS))}")
    fields: dict[str, Any] = {
        name: read(key, texts[key]) for key, (name, read) in _FIELDS.items() if texts.get(key) is not None
    }
    if _INITIALIZERS in texts:
        fields["session_entries"] = ((_INITIALIZERS, str(int(_boolean(_INITIALIZERS, texts[_INITIALIZERS])))),)
    if _SHRINKAGE in texts:
        fields["run_entries"] = ((_SHRINKAGE, _arenas(texts[_SHRINKAGE], fields.get("memory_arena", True))),)
    cuda = tuple((key, read(key, texts[key])) for key, read in _CUDA.items() if key in texts)
    return Tuning(optimization=_LEVELS[level], cuda_options=cuda, **fields)


def _boolean(key: str, text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise InvalidInput(f"parameter {key!r} is {text!r}; use 1 or 0")
    return _BOOLEANS[text.lower()]


def _count(key: str, text: str, most: int = MAX_THREADS) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise InvalidInput(f"parameter {key!r} is {text!r}; use an integer from 0 to {most}")
    return int(text)


def _arenas(text: str, arena: bool) -> str:
    """Return the memories to give back after each run, such as `cpu:0` or `cpu:0;gpu:0`."""
    if not re.fullmatch(r"(cpu:0|gpu:\d{1,2})(;(cpu:0|gpu:\d{1,2}))*", text):
        raise InvalidInput(f"parameter {_SHRINKAGE!r} is {text!r}; use cpu:0, gpu:0 or both with ';' between them")
    if ("cpu" in text and not arena) or ("gpu" in text and not gpu_found()):
        raise InvalidInput(
            f"parameter {_SHRINKAGE!r} is {text!r}, but there is no such arena; remove it, or see that "
            "enable_mem_arena is 1 and the GPU is there"
        )
    return text


def _choice(choices: Mapping[str, str]) -> Callable[[str, str], str]:
    def read(key: str, text: str) -> str:
        if text not in choices:
            raise InvalidInput(f"parameter {key!r} is {text!r}; use one of {', '.join(choices)}")
        return choices[text]

    return read


def _flag(key: str, text: str) -> str:
    return str(int(_boolean(key, text)))


def _bytes(key: str, text: str) -> str:
    return str(_count(key, text, 2**63 - 1))


_INITIALIZERS = "session.use_device_allocator_for_initializers"
_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_FIELDS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "intra_op_thread_count": ("intra_op_threads", _count),
    "inter_op_thread_count": ("inter_op_threads", _count),
    "execution_mode": ("parallel", lambda key, text: _choice({"0": "", "1": "1"})(key, text) == "1"),
    "enable_mem_arena": ("memory_arena", _boolean),
    "enable_mem_pattern": ("memory_pattern", _boolean),
}
_CUDA: dict[str, Callable[[str, str], str]] = {
    "cudnn_conv_algo_search": _choice({"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"}),
    "gpu_mem_limit": _bytes,
    "arena_extend_strategy": _choice({"0": "kNextPowerOfTwo", "1": "kSameAsRequested"}),
    "do_copy_in_default_stream": _flag,
    "cudnn_conv_use_max_workspace": _flag,
    "use_ep_level_unified_stream": _flag,
}
