"""Sentences for what may end a run."""

import errno
import re
import shutil
from pathlib import Path

from services.common.errors import ServiceError

_NO_MEMORY = re.compile(
    r"[Cc]an'?t allocate memory|[Cc]annot allocate memory|Failed to allocate memory|not enough memory|bad[_ ]alloc"
    r"|out of memory|could not create a (primitive|memory object)\Z"  # the last ones are oneDNN's
)
_NO_DISK = re.compile(r"disk is full|No space left on device")


def reason(error: BaseException, folder: Path) -> str:
    """Return why the run in *folder* failed, as a sentence that says what to change where that is known."""
    return known_reason(error, folder) or (
        f"{type(error).__name__}: {_first_line(error)}; log.txt of the run has the whole story"
    )


def known_reason(error: BaseException, folder: Path) -> str | None:
    """Return why the run in *folder* failed, where that is an error of ours or a want of memory or disk."""
    if isinstance(error, ServiceError):
        return error.message
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return f"memory ran out ({_first_line(error)}); lower batch_size or take a smaller network"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or _NO_DISK.search(str(error)):
        free = shutil.disk_usage(folder).free
        return f"the disk of {folder} is full ({free / 2**20:.0f} MiB are free); delete old runs there, then resume"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
