"""Graphs on their way into the repository: each a hidden file beside the models, which an upload can go on with."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from services.common.errors import Conflict, InvalidInput, NotReady
from services.common.manifest import Graph
from services.inference.models.repository import check_model_name, on_disk

RETENTION_SECONDS = 3 * 24 * 3600
"""How long an upload that nobody goes on with is kept; the contract states it."""
MAX_UPLOADS = 8
"""Uploads that are kept, those in progress not counted; the contract states it."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_PREFIX = ".upload-"


class Upload:
    """A graph that is being received; nobody else writes to its file."""

    def __init__(self, path: Path, file: IO[bytes], graph: Graph) -> None:
        self._path = path
        self._file = file
        self._graph = graph
        self.finished = False
        """Whether nothing of it is to be kept."""

    @property
    def received_bytes(self) -> int:
        """How much of the graph is here."""
        return os.fstat(self._file.fileno()).st_size

    def append(self, chunk: bytes) -> None:
        """Take in the next bytes; what is written outlives this process.

        Raises:
            InvalidInput: They are more than the manifest states.
        """
        received = self.received_bytes + len(chunk)
        if received > self._graph.size_bytes:
            self.finished = True
            raise InvalidInput(
                f"{received} bytes of the graph arrived; the manifest states {self._graph.size_bytes}; upload it again",
                reason="SIZE_MISMATCH",
            )
        try:
            self._file.write(chunk)
            self._file.flush()
        except OSError:  # such as a full disk, which it must not keep full
            self.finished = True
            raise

    def complete(self) -> None:
        """Make sure that the whole graph is here and on disk, also what came before the last interruption.

        Raises:
            InvalidInput: It is too short, which can be mended, or another one.
        """
        received = self.received_bytes
        if received < self._graph.size_bytes:
            raise InvalidInput(
                f"{received} bytes of the graph arrived; the manifest states {self._graph.size_bytes}; upload it again "
                f"from offset {received} on",
                reason="INCOMPLETE_UPLOAD",
            )
        os.fsync(self._file.fileno())
        with open(
            self._file.fileno(), "rb", closefd=False
        ) as file:  # not by its path, where another one may lie by now
            file.seek(0)
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != self._graph.sha256:
            self.finished = True
            raise InvalidInput(
                f"the graph that arrived has digest {found}; the manifest states {self._graph.sha256}; upload it again",
                reason="DIGEST_MISMATCH",
            )

    def copy_to(self, path: Path) -> None:
        """Let the graph lie at *path* too."""
        with contextlib.suppress(OSError):  # the model's folder is a link to another disk, or the disk knows no links
            path.hardlink_to(self._path)
            if os.path.samestat(path.stat(), os.fstat(self._file.fileno())):
                return
            path.unlink()  # somebody has put another file there
        self._file.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(self._file, copy)
            copy.flush()
            os.fsync(copy.fileno())


class Uploads:
    """The uploads in one repository, which other processes may share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def received_bytes(self, model: str, graph_digest: str) -> int:
        """Return how much is kept of a graph.

        Raises:
            InvalidInput: The model's name or the digest is malformed.
        """
        try:
            status = self._path(model, graph_digest).stat()
        except FileNotFoundError:
            return 0
        return 0 if _is_a_versions(status) else status.st_size

    @contextmanager
    def receiving(self, model: str, graph: Graph, offset: int) -> Iterator[Upload]:
        """Go on with the upload of *graph* at *offset*, where 0 begins anew; what came is kept unless it is finished.

        Raises:
            InvalidInput: The model's name is malformed.
            Conflict: The kept bytes do not end at *offset*.
            NotReady: Another call is at work on the same upload.
            Overloaded: The disk is full; nothing is kept.
        """
        path = self._path(model, graph.sha256)
        with on_disk(f"the upload of graph {graph.sha256} of model {model!r}"):
            try:
                with _unshared(path) as file:
                    upload = Upload(path, file, graph)
                    self.remove_abandoned()
                    try:
                        _begin_at(offset, upload, file)
                        yield upload
                    finally:
                        if upload.finished or not upload.received_bytes:
                            path.unlink(missing_ok=True)
            except BlockingIOError as error:
                raise NotReady(
                    f"graph {graph.sha256} of model {model!r} is being uploaded by another call; try again when that "
                    "has ended",
                    reason="UPLOAD_IN_PROGRESS",
                    retry_after_seconds=1.0,
                ) from error

    def remove_abandoned(self) -> None:
        """Remove what nobody has gone on with for long, and the oldest where there are too many."""
        ages = sorted((_age_seconds(path), path) for path in self._root.glob(f"{_PREFIX}*"))
        too_many = len(ages) > MAX_UPLOADS
        kept = 0
        for age, path in ages:
            if too_many or age > RETENTION_SECONDS:
                with contextlib.suppress(OSError), _locked(path, "r+b"):  # in progress; gone; no file of ours
                    kept += 1
                    if kept > MAX_UPLOADS or age > RETENTION_SECONDS:
                        path.unlink()

    def _path(self, model: str, graph_digest: str) -> Path:
        check_model_name(model)
        digest = _DIGEST.fullmatch(graph_digest)
        if digest is None:
            raise InvalidInput(
                f"graph digest {graph_digest[:100]!r} is not valid; give sha256: and 64 hexadecimal digits, as the "
                "manifest states it",
                field="graph_digest",
            )
        return self._root / f"{_PREFIX}{model}-{digest[1]}"


def _begin_at(offset: int, upload: Upload, file: IO[bytes]) -> None:
    if offset == 0:
        file.truncate(0)
    elif offset != upload.received_bytes:
        raise Conflict(
            f"offset is {offset}, but {upload.received_bytes} bytes of the graph are kept; set offset to that, or to 0 "
            "and send all of it",
            reason="WRONG_OFFSET",
            details={"received_bytes": str(upload.received_bytes)},
        )


def _age_seconds(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):  # finished meanwhile
        return time.time() - path.stat().st_mtime
    return 0.0


def _is_a_versions(status: os.stat_result) -> bool:
    """Whether a version has the file as its graph too: what is written to it would change a version that serves."""
    return status.st_nlink > 1


@contextmanager
def _unshared(path: Path) -> Iterator[IO[bytes]]:
    """Open the upload at *path*, or a new one where a process that was killed has left it to a version.

    Raises:
        BlockingIOError: As `_locked`.
    """
    with _locked(path, "a+b") as file:
        if not _is_a_versions(os.fstat(file.fileno())):
            yield file
            return
        path.unlink()
    with _locked(path, "a+b") as file:
        yield file


def _open_itself(path: str, flags: int) -> int:
    """Open *path*, but not what a link there leads to."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


@contextmanager
def _locked(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """Open the file at *path* for this call alone, among all processes.

    Raises:
        BlockingIOError: Another one has it, or had it and took it away.
    """
    with open(path, mode, opener=_open_itself) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Without this a file that has become a version's graph since it was opened would be written to.
        try:
            is_there = os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise BlockingIOError
        yield file
