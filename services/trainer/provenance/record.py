"""What is kept of a deletion in its row: numbers and names of runs, never contents or names of people."""

from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.trainer.feedback.tables import DeletionRow


class Kind(StrEnum):
    """What is to be forgotten."""

    SAMPLE = "SAMPLE"
    """One picture."""
    CONTRIBUTOR = "CONTRIBUTOR"
    """All that somebody has given."""


class State(StrEnum):
    """How far a deletion is."""

    ERASING = "ERASING"
    """Rows and pictures go."""
    RETRAINING = "RETRAINING"
    """They are gone, and something is still there that has learnt from them."""
    COMPLETED = "COMPLETED"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Document):
    """A deletion in one model."""

    observations: tuple[int, ...] = ()
    """Numbers of the pictures that go, or went."""
    rows_gone: bool = False
    removed: dict[str, int] = Field(default_factory=dict)
    """What was removed, by its kind: rows by their table, files and folders by what they are."""
    learners: tuple[str, ...] = ()
    """Runs that have seen what went."""
    snapshots: tuple[str, ...] = ()
    """Digests of those that held it."""
    runs: tuple[str, ...] = ()
    """Learners, and runs that were started or made from one of them, as found last."""
    versions: tuple[int, ...] = ()
    """Of the model, from these runs, as found last."""
    completed: bool = False

    def with_removed(self, more: dict[str, int]) -> "Part":
        """Return the part after *more* was removed; what counts 0 is not named."""
        both = {name: self.removed.get(name, 0) + more.get(name, 0) for name in sorted({*self.removed, *more})}
        return self.model_copy(update={"removed": {name: count for name, count in both.items() if count}})


class Record(_Document):
    """The whole of `deletions.report`."""

    request_time: AwareDatetime
    parts: dict[str, Part] = Field(default_factory=dict)
    """By model."""
    fingerprints: tuple[str, ...] = ()
    """Of the digests of files and pixels that went, by which it can be shown that they are nowhere any more, and a
    picture that was captured before is known when it comes late."""
    erase_time: AwareDatetime | None = None
    """When the last rows went; of deletions by an earlier release, and before, none is known."""

    @property
    def state(self) -> State:
        """How far it is in all models."""
        if not all(part.rows_gone for part in self.parts.values()):
            return State.ERASING
        return State.COMPLETED if all(part.completed for part in self.parts.values()) else State.RETRAINING

    def with_part(self, model: str, part: Part) -> "Record":
        """Return the record with another part of *model*."""
        return self.model_copy(update={"parts": {**self.parts, model: part}})


def read_record(row: DeletionRow) -> Record:
    """Return what *row* says."""
    return Record.model_validate(row.report)


def write_record(row: DeletionRow, record: Record) -> None:
    """Let *row* say *record*."""
    row.report = record.model_dump(mode="json")
    row.state = record.state
