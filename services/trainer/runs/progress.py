"""How far a run is: lines of JSON that its process appends and anyone may follow."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from services.common.errors import InvalidInput

READ_BYTES = 1024 * 1024
"""How much is read at once."""
TAIL_BYTES = 64 * 1024
"""Longer than any line."""


class Progress(BaseModel):
    """One line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float
    """Seconds since 1970."""
    kind: Literal["stage", "step", "epoch"]
    """A stage began or got further, some steps were done, or an epoch is finished and its checkpoint is safe."""
    stage: str
    """`prepare`, `train`, `export`, `evaluate`, …"""
    fraction: float
    """Of the stage, 0 to 1."""
    step: int = 0
    """Steps done, over all epochs."""
    steps: int = 0
    epoch: int = 0
    """From 1."""
    figures: dict[str, float] = {}
    """Such as `train_loss`, `validation_accuracy`, `images_per_second`."""
    eta_seconds: float | None = None
    """Until the stage is over, at the present rate."""


class ProgressWriter:
    """Appends to a file; what a killed process left of a line is cut off first."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        complete = _complete_bytes(path)
        if complete != self._file.tell():
            self._file.truncate(complete)

    def append(self, entry: Progress) -> None:
        """Write *entry*; a reader sees all of it or nothing, an epoch survives a power cut."""
        self._file.write(entry.model_dump_json(exclude_defaults=True).encode() + b"\n")
        self._file.flush()
        if entry.kind == "epoch":
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_progress(path: Path, position: int = 0) -> list[tuple[int, Progress]]:
    """Return entries behind *position*, each with the position behind itself: where to go on reading.

    At most about a MiB of them at once; there are no more when none is returned.

    Raises:
        InvalidInput: *position* is not the beginning of a line, or a line is damaged.
    """
    try:
        with path.open("rb") as file:
            if position and _before(file, position) != b"\n":
                raise InvalidInput(
                    f"position {position} is not one that the progress of this run has; begin with 0", field="position"
                )
            file.seek(position)
            lines = file.readlines(READ_BYTES)
    except FileNotFoundError:
        if position:
            raise InvalidInput(
                f"position {position} lies behind the progress of this run, which is 0; begin with 0", field="position"
            ) from None
        return []
    entries = []
    for line in lines:
        if not line.endswith(b"\n"):  # being written
            break
        position += len(line)
        entries.append((position, _parse(line, path)))
    return entries


def read_epochs(path: Path) -> int:
    """Return the number of the newest epoch that is finished; 0 where none is."""
    return max((entry.epoch for entry in iterate_progress(path) if entry.kind == "epoch"), default=0)


def read_newest(path: Path) -> Progress | None:
    """Return the last entry, if there is one, without reading those before."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    complete = lines[(1 if size > TAIL_BYTES else 0) : -1]
    return _parse(complete[-1], path) if complete else None


def finished_epochs(entries: list[Progress]) -> dict[int, Progress]:
    """Return the epochs of *entries* by number; of one that was told twice, as after a resumption, the last."""
    return {entry.epoch: entry for entry in entries if entry.kind == "epoch"}


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Return *figures* without what JSON cannot say."""
    return {name: value for name, value in figures.items() if -float("inf") < value < float("inf")}


def _complete_bytes(path: Path) -> int:
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


def _before(file: BinaryIO, position: int) -> bytes:
    if not 0 < position <= file.seek(0, os.SEEK_END):
        return b""
    file.seek(position - 1)
    return file.read(1)


def iterate_progress(path: Path, position: int = 0) -> Iterator[Progress]:
    """Yield all entries behind *position*, as `read_progress` finds them."""
    while entries := read_progress(path, position):
        position = entries[-1][0]
        yield from (entry for _, entry in entries)


def _parse(line: bytes, path: Path) -> Progress:
    try:
        return Progress.model_validate_json(line)
    except ValidationError as error:
        raise InvalidInput(
            f"{path.name} of run {path.parent.name} holds a line that is no progress: {error}"
        ) from error
