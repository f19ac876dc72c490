"""Locks of files, which end with the process that holds them."""

import fcntl
from pathlib import Path


def try_lock(descriptor: int) -> bool:
    """Lock an open file, and return whether nobody else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Glance at a lock; who wants it at this moment is refused."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
