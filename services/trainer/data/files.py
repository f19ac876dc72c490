"""Files of others, which may be anything that has a name."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import InvalidInput


@dataclass(frozen=True)
class PictureFile:
    """One labelled picture on the disk."""

    name: str
    """What people call it."""
    path: Path
    label: int
    part: str = ""
    """Such as `test`; empty where that is left open."""
    orientation: int | None = None
    """Where it is kept apart from the file, 1 to 8."""
    content: str = ""
    """Digest of the file, where it is known; else its size and time stand for it."""
    refusal: str = ""
    """Why it must not be opened; empty where it may."""


def read_file(path: Path, most: int = -1) -> bytes:
    """Return the content of a regular file, *most* bytes of it where that is given.

    Raises:
        InvalidInput: It is a pipe or a device, which a reader may wait for without end, or it cannot be read.
    """
    try:
        # A pipe is opened without waiting for its writer; what was opened is what is looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidInput("the file cannot be read: it is a pipe, a device or a folder; leave it out")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InvalidInput(f"the file cannot be read: {error.strerror}; make it readable or leave it out") from error
