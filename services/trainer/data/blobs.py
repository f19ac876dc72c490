"""A store of files by their content: written once, never changed, named by their SHA-256."""

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.common.errors import InvalidInput, Overloaded

log = structlog.get_logger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blobs:
    """The store in one folder; any number of threads and processes may share it."""

    folder: Path

    def path(self, digest: str) -> Path:
        """Return where the blob lies, or would lie: two levels of folders, so that none grows long.

        Raises:
            InvalidInput: The digest is not 64 hexadecimal digits.
        """
        if not _DIGEST.fullmatch(digest):
            raise InvalidInput(f"digest {digest[:100]!r} is not valid; give 64 hexadecimal digits")
        return self.folder / digest[:2] / digest[2:4] / digest

    def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        return self.path(digest).is_file()

    def read(self, digest: str) -> bytes | None:
        """Return the blob; None where it is not there, or its content is not the one that it is named by."""
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            log.error("a blob is damaged", path=str(self.path(digest)), bytes=len(data))
            return None
        return data

    def remove(self, digest: str) -> bool:
        """Forget a blob; return whether it was there.

        Only for one that no row refers to: look while no other transaction that asks to be alone goes on.
        """
        path = self.path(digest)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        _sync(path.parent)
        return True

    def digests(self) -> Iterator[tuple[str, float]]:
        """Yield all blobs with the times of their writing, seconds since 1970."""
        for path in self.folder.glob("??/??/*"):
            with contextlib.suppress(FileNotFoundError):
                if _DIGEST.fullmatch(path.name):
                    yield path.name, path.stat().st_mtime

    def put(self, data: bytes) -> str:
        """Store *data* and return its SHA-256; what is there already is left as it is. Survives a power cut.

        Raises:
            Overloaded: The disk has no room.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        if not path.is_file():
            try:
                _write_durably(path, data, self.folder)
            except OSError as error:
                raise Overloaded(
                    f"a sample of {len(data):,} bytes cannot be stored in {self.folder}: {error.strerror}; make room "
                    "there",
                    reason="DISK_FULL",
                ) from error
        return digest


def _write_durably(path: Path, data: bytes, root: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    for folder in (path.parent, path.parent.parent, root):  # the names of the blob and of folders made for it
        _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
