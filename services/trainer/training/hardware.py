"""Where a run computes, and how exactly."""

import os

import torch

from services.common.errors import InvalidInput
from services.trainer.options import TrainingOptions


def prepare(options: TrainingOptions, threads: int | None = None) -> torch.device:
    """Set threads and determinism of this process and return the device to train on.

    Args:
        options: Device, precision, determinism and, if it is not given by itself, the number of threads.
        threads: 0 is one per core.

    Raises:
        InvalidInput: A GPU is asked for where none is, or a precision that the device does not have.
    """
    torch.set_num_threads((options.threads if threads is None else threads) or os.cpu_count() or 1)
    device = choose_device(options.device)
    if options.precision == "float16" and device.type == "cpu":
        raise InvalidInput("precision float16 needs a GPU; use bfloat16 or float32 on the processor", field="precision")
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose differently
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return device


def choose_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`.

    Raises:
        InvalidInput: A GPU is asked for where none is.
    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise InvalidInput(
            "device cuda is asked for, but torch finds no NVIDIA GPU here; use device auto or cpu", field="device"
        )
    return torch.device("cuda" if found and wanted != "cpu" else "cpu")


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return the type of activations and gradients; `auto` is bfloat16 where *device* multiplies it natively."""
    if wanted != "auto":
        kind = getattr(torch, wanted)
        assert isinstance(kind, torch.dtype)
        return kind
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def computing_in(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Return the context in which networks compute on *device* with activations in *precision*."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)
