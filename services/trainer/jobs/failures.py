"""Sentences for what may end a run."""

import errno
import re
import shutil
from pathlib import Path

import torch

from services.common.errors import ServiceError

_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_alloc|CUDA out of memory|Cannot allocate memory")


def reason(error: BaseException, folder: Path) -> str:
    """Return why the run in *folder* failed, as a sentence that says what to change where that is known."""
    if isinstance(error, ServiceError):
        return error.message
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY.search(str(error)):
        return f"memory ran out ({_first_line(error)}); lower batch_size or take a smaller network"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(folder).free
        return f"the disk of {folder} is full ({free / 2**20:.0f} MiB are free); delete old runs there, then resume"
    return f"{type(error).__name__}: {_first_line(error)}; log.txt of the run has the whole story"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
