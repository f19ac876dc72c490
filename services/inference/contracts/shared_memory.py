"""Shared memory of clients on this machine: regions that they registered, and the tensors that lie in them."""

import os
import stat
import weakref
from dataclasses import dataclass

from services.common.errors import Conflict, InvalidInput, NotFound, Overloaded

SHARED_MEMORY = "/dev/shm"  # noqa: S108  # where POSIX shared memory is; its names are the clients'
MAX_REGIONS = 512
"""Each holds a file descriptor, of which a process often has 1,024."""


class Region:
    """A part of a shared memory object, open for as long as anything refers to it."""

    def __init__(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open the object *key*.

        Raises:
            InvalidInput: The key is no name of shared memory, or the object is smaller than the region.
            NotFound: There is no such object, or it is not ours to open.
        """
        self.name, self.key, self.offset, self.byte_size = name, key, offset, byte_size
        # Not multiprocessing.shared_memory: its tracker unlinks at exit what belongs to the client.
        self._descriptor = _open(key)
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size < offset + byte_size:
            raise InvalidInput(
                f"region {name!r} ends at byte {offset + byte_size} of shared memory {key!r}, which has "
                f"{found.st_size} bytes; register less or make it larger"
            )

    # Read and written as a file, not mapped: a client that shrinks its object would end us with SIGBUS, and one
    # that writes meanwhile could change a tensor after it was checked.

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes from *offset* of the region."""
        parts: list[bytes] = []
        start, stop = self.offset + offset, self.offset + offset + size
        while start < stop:
            part = os.pread(self._descriptor, stop - start, start)
            if not part:
                raise self._shrunk()
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Put *data* at *offset* of the region."""
        start, rest = self.offset + offset, memoryview(data)
        if os.fstat(self._descriptor).st_size < start + len(rest):  # writing would make it grow again
            raise self._shrunk()
        while rest:
            written = os.pwrite(self._descriptor, rest, start)
            start, rest = start + written, rest[written:]

    def _shrunk(self) -> InvalidInput:
        return InvalidInput(
            f"shared memory {self.key!r} of region {self.name!r} became smaller than its {self.byte_size} bytes; "
            "register it again"
        )


def _open(key: str) -> int:
    name = key.removeprefix("/")
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(name.encode()) > 255:
        raise InvalidInput(
            f"key {key[:80]!r} is no name of shared memory; give '/' and up to 255 other characters, as shm_open takes",
            field="key",
        )
    try:
        return os.open(f"{SHARED_MEMORY}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotFound(
            f"shared memory {key!r} cannot be opened ({error.strerror}); create it before it is registered, by the "
            "server's own user and in the same container"
        ) from error


@dataclass(frozen=True)
class MemorySlice:
    """Where one tensor lies."""

    region: Region
    offset: int
    """In the region."""
    byte_size: int

    def read(self) -> bytes:
        """Return the tensor's raw form."""
        return self.region.read(self.offset, self.byte_size)

    def write(self, name: str, raw: bytes) -> None:
        """Put output *name* there.

        Raises:
            InvalidInput: It does not fit.
        """
        if len(raw) > self.byte_size:
            raise InvalidInput(
                f"output {name!r} has {len(raw)} bytes, but its shared memory has {self.byte_size}; give it more"
            )
        self.region.write(self.offset, raw)


class SharedMemory:
    """The regions that are registered, by name."""

    def __init__(self, max_tensor_bytes: int) -> None:
        self.max_tensor_bytes = max_tensor_bytes
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Make *byte_size* bytes from *offset* of the shared memory *key* known as *name*.

        Raises:
            InvalidInput: The key, or the place, is not one.
            NotFound: There is no such shared memory.
            Conflict: The name is taken.
            Overloaded: Too many regions are registered.
        """
        if not name or not 0 < byte_size < 2**62 or not offset < 2**62:
            raise InvalidInput(
                f"region {name!r} has {byte_size} bytes from byte {offset}; give it a name, 1 byte or more and an "
                "offset below 2^62"
            )
        if name in self._regions:
            raise Conflict(f"region {name!r} is registered already; unregister it first", reason="ALREADY_REGISTERED")
        if len(self._regions) >= MAX_REGIONS:
            raise Overloaded(f"{MAX_REGIONS} regions are registered and more cannot be; unregister some")
        self._regions[name] = Region(name, key, offset, byte_size)

    def unregister(self, name: str) -> None:
        """Forget a region, or all where *name* is empty; requests in flight keep what they use.

        An unknown name is no error: the region is not registered, as was asked for.
        """
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def regions(self, name: str = "") -> list[Region]:
        """Return the region *name*, or all.

        Raises:
            NotFound: It is not registered.
        """
        return [self._find(name)] if name else list(self._regions.values())

    def slice(self, name: str, offset: int, byte_size: int) -> MemorySlice:
        """Return a part of a region.

        Raises:
            InvalidInput: It reaches out of the region.
            NotFound: The region is not registered.
        """
        region = self._find(name)
        if offset + byte_size > region.byte_size:
            raise InvalidInput(
                f"{byte_size} bytes from byte {offset} reach out of region {name!r}, which has {region.byte_size} "
                "bytes; give an offset and a size inside of it"
            )
        return MemorySlice(region, offset, byte_size)

    def _find(self, name: str) -> Region:
        if name not in self._regions:
            known = ", ".join(self._regions) or "none"
            raise NotFound(f"region {name!r} is not registered; register it first (registered are: {known})")
        return self._regions[name]
