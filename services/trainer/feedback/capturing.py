"""What gateways shall capture of each model, now: the policy, the classes that are rare, and whether there is room."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.data.observing import Role
from services.trainer.data.tables import ModelRow, ObservationRow, SampleRow, total_bytes
from services.trainer.feedback.policy import CapturePolicy, PolicyOf
from services.trainer.storage.database import Database


@dataclass(frozen=True)
class CaptureRule:
    """What to capture of one model."""

    model: str
    policy: CapturePolicy
    rare_labels: tuple[str, ...]
    paused_reason: str
    """As `shortage` has it; empty where something is captured."""


def capture_rules(database: Database, blobs: Path, policy_of: PolicyOf) -> list[CaptureRule]:
    """Return what to capture of each model that there is, by name.

    Raises:
        NotReady: The database does not answer.
    """
    free = free_bytes(blobs)
    with database.read() as session:
        models = session.execute(select(ModelRow.name, ModelRow.labels).order_by(ModelRow.name)).all()
        return [_rule(session, name, labels, policy_of(name).capture, free) for name, labels in models]


def shortage(policy: CapturePolicy, stored: int, free: int | None, room: float = 1.0) -> str:
    """Return why no further picture of a model is kept: DISK_FULL, BYTES, or empty where there is room.

    Args:
        policy: Of the model.
        stored: Bytes of its pictures, as `stored_bytes` has it.
        free: Bytes, as `free_bytes` has it; None where that is not known.
        room: Times the least free bytes that must be there.
    """
    if free is not None and free < policy.least_free_bytes * room:
        return "DISK_FULL"
    return "BYTES" if stored >= policy.max_bytes else ""


def stored_bytes(session: Session, model: str) -> int:
    """Return the bytes of all pictures that are kept for a model."""
    statement = select(total_bytes()).where(ObservationRow.model == model)
    return session.scalar(statement) or 0


def free_bytes(blobs: Path) -> int:
    """Return the room on the disk of *blobs*, whether the folder is there yet or not."""
    folder = next(each for each in (blobs.absolute(), *blobs.absolute().parents) if each.is_dir())
    return shutil.disk_usage(folder).free


def _rule(session: Session, model: str, labels: Sequence[str], policy: CapturePolicy, free: int) -> CaptureRule:
    paused = shortage(policy, stored_bytes(session, model), free)
    return CaptureRule(model, policy, _rare_labels(session, model, labels, policy.rare_below), paused)


def _rare_labels(session: Session, model: str, labels: Sequence[str], below: float) -> tuple[str, ...]:
    """Return the labels that have less than *below* of an even share among what is learnt; none without samples."""
    statement = (
        select(SampleRow.label, func.count())
        .outerjoin(ObservationRow, SampleRow.observation == ObservationRow.number)
        .where(SampleRow.model == model, func.coalesce(ObservationRow.role, Role.TRAIN) == Role.TRAIN)
        .group_by(SampleRow.label)
    )
    counts = dict(session.execute(statement).all())
    even = sum(counts.values()) / len(labels)
    return tuple(label for number, label in enumerate(labels) if counts.get(number, 0) < below * even)
