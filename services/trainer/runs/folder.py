"""A run's folder: what was asked for, and what its process has written so far."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from services.common.errors import Conflict, InvalidInput, NotFound
from services.trainer.runs.locks import is_locked, try_lock
from services.trainer.runs.record import Outcome, Request

REQUEST_FILE = "run.json"
OUTCOME_FILE = "outcome.json"
PROGRESS_FILE = "progress.jsonl"
LOCK_FILE = "lock"
SUPERVISED_FILE = "supervised"
"""Locked by the supervisor that sees the run through, for as long as both live."""
LOG_FILE = "log.txt"
"""What the process printed."""
CHECKPOINT_FILE = "checkpoint.pt"
BEST_FILE = "best.pt"
"""Weights of the best epoch so far."""
WEIGHTS_FILE = "weights.pt"
"""The network as it was exported, for other runs to start from."""
EVALUATION_FILE = "evaluation.json"
CARD_FILE = "card.html"
CARD_DOCUMENT_FILE = "card.json"
CONFUSION_FILE = "confusion.csv"
CHOICE_FILE = "choice.json"
"""Whether a converted graph shall be served, and the measurements that say so."""
REPORT_FILE = "report.html"
REPORT_DOCUMENT_FILE = "report.json"
"""What an inspection has found out about a data set."""
LEARNT_FILE = "learnt.npy"
"""What stands for each picture that the model of a run has learnt, itself or before it was started from."""
ENCODER_FILE = "encoder.onnx"
"""The layers before the last, as they were; the same bytes for all models that share them."""
DATASET_FILE = "dataset.json"
"""Which samples a run was begun with."""
ID_FILE = ".folder-id"
"""Beside the folders of runs."""
LINE_BYTES = 300
"""Of the last line that was printed: as much as a sentence can quote."""

Document = TypeVar("Document", bound=BaseModel)


def identify_folder(runs_dir: Path) -> str:
    """Return what the folder of all runs is known by, wherever it is mounted; a new folder gets a random id.

    Raises:
        OSError: It cannot be written.
    """
    path = runs_dir / ID_FILE
    with suppress(FileNotFoundError):
        if known := path.read_text(errors="replace").strip():
            return known
    runs_dir.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process may be here too
        file.seek(0)
        known = file.read().strip()
        if not known:
            known = secrets.token_hex(8)
            file.write(known + "\n")
            file.flush()
            os.fsync(file.fileno())
    return known


class RunFolder:
    """Files of one run. Only its process writes here, except for the request.

    Args:
        path: `<runs>/<run id>`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def create(self, request: Request) -> None:
        """Write the request; the folder is made where it is missing.

        Raises:
            Conflict: Another request lies there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if (self / REQUEST_FILE).exists() and self.request() != request:
            raise Conflict(f"{self.path} belongs to another run; give this one another id")
        write_document(self / REQUEST_FILE, request)

    def request(self) -> Request:
        """Return what was asked for.

        Raises:
            NotFound: The folder holds no run.
            InvalidInput: The record is damaged.
        """
        request = read_document(self / REQUEST_FILE, Request)
        if request is None:
            raise NotFound(f"run {self.path.name!r} is unknown; `aimass runs` names those that exist", field="id")
        return request

    def outcome(self) -> Outcome | None:
        """Return how the run ended, if it has.

        Raises:
            InvalidInput: The record is damaged.
        """
        return read_document(self / OUTCOME_FILE, Outcome)

    def forget_outcome(self) -> None:
        """Let a run that has failed begin again."""
        (self / OUTCOME_FILE).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the run for as long as the block lasts, or as a process does that inherits the descriptor.

        The kernel lets go when the last holder is gone, however it ended; nothing has to be cleaned up.

        Raises:
            Conflict: A process is at work on this run.
        """
        with self._opened(LOCK_FILE) as descriptor:
            if not try_lock(descriptor):
                raise Conflict(f"a process is at work on run {self.path.name!r}; cancel it or wait for its end")
            os.ftruncate(descriptor, 0)  # it named a process that is gone
            yield descriptor

    @property
    def is_held(self) -> bool:
        """Whether a process is at work on this run."""
        return is_locked(self / LOCK_FILE)

    @contextmanager
    def supervised(self) -> Iterator[None]:
        """Be the supervisor of the run for as long as the block lasts; the kernel tells others when we are gone.

        Raises:
            Conflict: It has another one.
        """
        with self._opened(SUPERVISED_FILE) as descriptor:
            if not try_lock(descriptor):
                raise Conflict(f"run {self.path.name!r} is seen through elsewhere; cancel it or wait for its end")
            yield

    @property
    def is_supervised(self) -> bool:
        """Whether a supervisor sees the run through."""
        return is_locked(self / SUPERVISED_FILE)

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def sign(self, pid: int) -> None:
        """Note which process is at work, for others to send it signals; the lock must be held."""
        (self / LOCK_FILE).write_text(f"{pid}\n")

    def signed(self) -> int | None:
        """Return the process that is at work, where one is and has signed.

        Its id means a process only as long as the run is held: it leads a session, whose number the kernel does not
        give out again while any process of it holds the lock.
        """
        try:
            text = (self / LOCK_FILE).read_text()
        except FileNotFoundError:
            return None
        return int(text) if text.endswith("\n") and self.is_held else None

    def last_line(self) -> str:
        """Return what the process printed last; empty where it printed nothing."""
        try:
            with (self / LOG_FILE).open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - LINE_BYTES, 0))
                lines = file.read().decode(errors="replace").split("\n")
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def write_document(path: Path, document: BaseModel) -> None:
    """Write *document* as JSON, as `write_text` does."""
    write_text(path, document.model_dump_json(indent=1, exclude_none=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write *text*, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of *path* when the block has ended well.

    Whoever reads *path*, also after a crash or a power cut, has the old file or the new one.
    """
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_document(path: Path, kind: type[Document]) -> Document | None:
    """Return the document of *kind* at *path*, or nothing where there is no such file.

    Raises:
        InvalidInput: It is damaged.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InvalidInput(f"{path.name} of run {path.parent.name} is damaged: {error}") from error
