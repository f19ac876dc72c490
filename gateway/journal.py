"""What is captured, on the disk until the trainer has it, so that a gateway that is killed loses none of it.

A file begins with the place of its first record that is not settled, 64 bits big-endian. A record is its length and its
CRC-32, 32 bits each, and the bytes. They are handed to the system before the answer leaves, and not forced to the disk:
they outlive the process, and not a power cut. Each file is locked by the gateway that has it, so that several may share
a folder, and the lock ends with the process, however that ends.
"""

import fcntl
import os
import struct
import uuid
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

FILE_BYTES = 8 * 1024 * 1024
"""So large is a file at least when the next one is begun."""
_PLACE = struct.Struct(">Q")
_HEADER = struct.Struct(">II")
_SUFFIX = ".captured"


@dataclass(frozen=True)
class Left:
    """What a gateway that is no more has left."""

    path: Path
    descriptor: int
    """Open and locked."""
    place: int
    """Of the first of the records."""
    records: list[bytes]
    """Those that are not settled; one that was cut off is not there."""


class Journal:
    """Records by rising sequence until they are settled.

    Args:
        folder: Of all gateways on this machine; made with the first record, for its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = uuid.uuid4().hex
        self._made = 0
        self._files: list[_File] = []
        self._current: _File | None = None
        """The one of them that records are added to."""

    def left(self) -> list[Left]:
        """Return what gateways have left that are no more; each must be adopted. What cannot be read stays there."""
        found = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")) if self._folder.is_dir() else ():
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:  # another gateway has just settled it
                continue
            except OSError as error:
                log.warning("a file of captured predictions cannot be read", path=str(path), reason=str(error))
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(Left(path, descriptor, *_read(descriptor)))
            except BlockingIOError:  # its gateway is at work
                os.close(descriptor)
        return found

    def adopt(self, left: Left, first: int) -> None:
        """Have the records of *left* as this gateway's own, with consecutive sequences from *first*."""
        file = _File(left.path, left.descriptor, left.place)
        for number, data in enumerate(left.records):
            file.count(first + number, len(data))
        self._files.append(file)

    def append(self, sequence: int, data: bytes) -> None:
        """Add a record; its sequence is above all before it.

        Raises:
            OSError: The disk does not take it.
        """
        if self._current is None or self._current.end >= FILE_BYTES:
            self._current = self._new_file()
            self._files.append(self._current)
        self._current.append(sequence, data)

    def settle(self, sequence: int) -> None:
        """Forget the records up to *sequence*.

        Raises:
            OSError: The disk does not take what must be noted for it.
        """
        for file in list(self._files):
            file.settle(sequence)
            if file.is_empty and file is not self._current:
                file.remove()
                self._files.remove(file)

    def close(self) -> None:
        """Leave what is not settled to the next gateway."""
        for file in self._files:
            if file.is_empty:
                file.remove()
            else:
                file.close()
        self._files.clear()
        self._current = None

    def _new_file(self) -> "_File":
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._made += 1
        path = self._folder / f"{self._name}-{self._made}{_SUFFIX}"
        beginning = path.with_suffix(".new")
        descriptor = os.open(beginning, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        beginning.rename(path)  # others see it when it is locked already
        return _File(path, descriptor)


class _File:
    """A file of the journal that is this gateway's."""

    def __init__(self, path: Path, descriptor: int, place: int = _PLACE.size) -> None:
        self._path = path
        self._descriptor = descriptor
        self._records: deque[tuple[int, int]] = deque()
        """Sequence and end of each record that is not settled."""
        self.end = place
        """Of the last record."""

    @property
    def is_empty(self) -> bool:
        """Whether all of its records are settled."""
        return not self._records

    def count(self, sequence: int, size: int) -> None:
        """Know of a record of *size* bytes that is there."""
        self.end += _HEADER.size + size
        self._records.append((sequence, self.end))

    def append(self, sequence: int, data: bytes) -> None:
        """Add a record, the whole of it or nothing."""
        record = _HEADER.pack(len(data), zlib.crc32(data)) + data
        if self.end == _PLACE.size:
            _write(self._descriptor, _PLACE.pack(self.end), 0)
        _write(self._descriptor, record, self.end)
        self.count(sequence, len(data))

    def settle(self, sequence: int) -> None:
        """Forget the records up to *sequence*."""
        begin = 0
        while self._records and self._records[0][0] <= sequence:
            _, begin = self._records.popleft()
        if not begin:
            return
        if self._records:
            _write(self._descriptor, _PLACE.pack(begin), 0)
        else:
            os.ftruncate(self._descriptor, 0)
            self.end = _PLACE.size

    def remove(self) -> None:
        """Remove it."""
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Unlock it."""
        os.close(self._descriptor)


def _read(descriptor: int) -> tuple[int, list[bytes]]:
    """Return the records of a file that are not settled, and the place of the first."""
    data = memoryview(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    records: list[bytes] = []
    if len(data) < _PLACE.size:
        return _PLACE.size, records
    (first,) = _PLACE.unpack_from(data)
    place = first = max(first, _PLACE.size)
    while place + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, place)
        place += _HEADER.size
        record = data[place : place + length]
        if not length or len(record) < length or zlib.crc32(record) != checksum:  # zeros are what a power cut leaves
            break
        records.append(bytes(record))
        place += length
    return first, records


def _write(descriptor: int, data: bytes, place: int) -> None:
    """Write all of *data* at *place*, or have the file end there as if nothing had been written."""
    try:
        if (written := os.pwrite(descriptor, data, place)) < len(data):
            raise OSError(f"{written} of {len(data)} bytes were written; the disk is full")
    except OSError:
        if place:
            os.ftruncate(descriptor, place)
        raise
