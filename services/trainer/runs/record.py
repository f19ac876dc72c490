"""What is known of a training run: a folder with `run.json`, its checkpoint and, at the end, the model."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from services.common.errors import Conflict, InvalidInput, NotFound, ServiceError
from services.common.manifest import Dataset
from services.trainer.options import TrainingOptions

log = structlog.get_logger(__name__)

RECORD_FILE = "run.json"
CHECKPOINT_FILE = "checkpoint.pt"
EVALUATION_FILE = "evaluation.json"

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RunState(StrEnum):
    """Where a run is in its life."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class EpochResult(BaseModel):
    """What one pass over the training samples came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    """From 1."""
    learning_rate: float
    """At the end of the epoch."""
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


class Run(BaseModel):
    """The whole of `run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    state: RunState = RunState.RUNNING
    reason: str | None = None
    """Why a run FAILED, as a sentence."""
    options: TrainingOptions
    dataset: Dataset | None = None
    history: tuple[EpochResult, ...] = ()
    metrics: dict[str, float] = {}
    create_time: str
    """RFC 3339, UTC."""
    finish_time: str | None = None

    def replace(self, **fields: Any) -> "Run":
        """Return the record with *fields* changed."""
        return self.model_copy(update=fields)


def now() -> str:
    """Return the present time, RFC 3339 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def check_run_id(run_id: str) -> str:
    """Return *run_id* where it can be the name of a run's folder.

    Raises:
        InvalidInput: It cannot.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise InvalidInput(f"run id {run_id[:100]!r} is not valid; use up to 128 letters, digits, '.', '_' and '-'")
    return run_id


def open_run(folder: Path, options: TrainingOptions) -> Run:
    """Return the record of the run in *folder*, or where it holds none, that of a new run; nothing is written.

    Raises:
        Conflict: The run that lies there was started with other options.
        InvalidInput: Its record is damaged.
    """
    try:
        run = read_run(folder)
    except NotFound:
        return Run(id=folder.name, options=options, create_time=now())
    if run.options != options:
        raise Conflict(
            f"run {run.id!r} was started with other options; give none to go on with its own, or give a new run id"
        )
    return run


@contextmanager
def started_run(folder: Path, run: Run) -> Iterator[Run]:
    """Begin *run*, or go on with it, in *folder*; its record says RUNNING inside the block.

    Where the block ends with an error, the record says FAILED and why.
    """
    run = run.replace(state=RunState.RUNNING, reason=None, finish_time=None)
    write_run(folder, run)
    try:
        yield run
    except BaseException as error:
        failed = read_run(folder).replace(state=RunState.FAILED, reason=_reason(error, run.id), finish_time=now())
        write_run(folder, failed)
        raise


def write_run(folder: Path, run: Run) -> None:
    """Write *run* to its folder; a reader sees the old record or the new one, never a part."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / (RECORD_FILE + ".part")
    aside.write_text(run.model_dump_json(indent=1, exclude_none=True) + "\n")
    aside.replace(folder / RECORD_FILE)


def read_run(folder: Path) -> Run:
    """Read the record of the run in *folder*.

    Raises:
        NotFound: The folder holds no run.
        InvalidInput: Its record is damaged.
    """
    try:
        return Run.model_validate_json((folder / RECORD_FILE).read_bytes())
    except FileNotFoundError:
        raise NotFound(f"run {folder.name!r} is unknown; ListRuns names those that exist", field="id") from None
    except (ValidationError, json.JSONDecodeError) as error:
        raise InvalidInput(f"{RECORD_FILE} of run {folder.name} is not a valid record of a run: {error}") from error


def list_runs(runs_dir: Path) -> list[Run]:
    """Return every run below *runs_dir*, newest first; one whose record is damaged is logged and left out."""
    runs = []
    for path in runs_dir.glob(f"*/{RECORD_FILE}"):
        try:
            runs.append(read_run(path.parent))
        except InvalidInput as error:
            log.warning("run left out", run=path.parent.name, reason=error.message)
    return sorted(runs, key=lambda run: (run.create_time, run.id), reverse=True)


def _reason(error: BaseException, run_id: str) -> str:
    if isinstance(error, ServiceError):
        return error.message
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; `aimass train --run-id {run_id}` goes on"
    return f"{type(error).__name__}: {error}"
