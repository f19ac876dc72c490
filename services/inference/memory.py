"""How much memory this process takes, and less of it."""

import ctypes
import os
from pathlib import Path


def resident_bytes() -> int:
    """Return the resident size of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back_memory() -> None:
    """Return to the system what was freed; takes milliseconds.

    While a graph is loaded its weights are rearranged for the processor's kernels: of what is freed in between, glibc
    would keep as much as a third of the weights, and later most of every version that was ever unloaded.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # other C libraries have none
        trim(0)
