"""Snapshots: which samples of users a run learns from, and which of a base set beside them, pinned for ever."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from services.common.errors import Conflict, InvalidInput, NotFound
from services.trainer.clock import now
from services.trainer.data.choosing import (
    Base,
    Candidate,
    Caps,
    choose_validation,
    content_lines,
    count_beside,
    draw_base,
    snapshot_digest,
    within_caps,
)
from services.trainer.data.observing import NEAR_COPY, Role, VoteKind
from services.trainer.data.tables import (
    FindingRow,
    ModelRow,
    ObservationRow,
    SampleRow,
    SnapshotRow,
    SnapshotSampleRow,
    VoteRow,
)
from services.trainer.storage.database import Database

_REPLAYED = "replayed"


@dataclass(frozen=True)
class Snapshot:
    """What was chosen."""

    digest: str
    base: str
    """Name of the set that is learnt beside users' samples; empty for none."""
    counts: Mapping[str, int]
    """`train` and `validation`: samples of each part; `replayed`: those of `train` that are of the base."""
    newest: int
    """Highest number of a sample that was there to be chosen; 0 where there was none."""


@dataclass(frozen=True)
class PinnedPicture:
    """One sample of a snapshot that users have given."""

    sample: int
    """Number that it had."""
    content_digest: str
    """SHA-256 of its file."""
    orientation: int
    label: int
    part: str
    """`train` or `validation`."""


@dataclass(frozen=True)
class PinnedSnapshot:
    """A snapshot as it is kept."""

    digest: str
    model: str
    base: str
    base_digest: str
    base_drawn: tuple[int, ...]
    """Positions among the base's training samples."""
    pictures: tuple[PinnedPicture, ...]
    """By rising pixel digest."""


def make_snapshot(
    session: Session,
    model: str,
    base: Base | None,
    *,
    caps: Caps,
    base_per_new: float,
    base_least: int = 0,
    without: Collection[int] = (),
) -> Snapshot:
    """Choose of what is accepted now, and write it down; the same contents give the same snapshot.

    What candidates are judged on is never chosen, nor what shows nearly the same, whoever labelled it; nor are samples
    of an earlier release that no observation stands for.

    Args:
        session: Its transaction is alone.
        model: Name of the model.
        base: As `describe_base` has returned it; None for none.
        caps: What those may have who are not trusted.
        base_per_new: Samples of the base beside each one of users.
        base_least: Samples of the base in any case, where it has them.
        without: Observations that are left out, as if they had never been seen.

    Raises:
        NotFound: The model is unknown.
        InvalidInput: There is nothing to choose.
    """
    task = session.get(ModelRow, model)
    if task is None:
        raise NotFound(f"model {model[:150]!r} is unknown; create it with CreateModel first", field="model")
    samples = _samples(session, model, without)
    candidates = _candidates(session, model, list(samples.values()))
    classes = np.empty(0, np.int64) if base is None else base.classes
    base_counts = np.bincount(classes, minlength=len(task.labels))
    chosen = within_caps(candidates, base_counts, caps, lambda count: count_beside(count, base_per_new, base_least))
    if not chosen and not classes.size:
        raise InvalidInput(
            f"model {model!r} has no accepted samples to learn from and no base set; label some, or name a base set",
            reason="NO_SAMPLES",
        )
    validation = choose_validation(chosen)
    lines = content_lines(chosen, validation, task.labels)
    drawn = []
    name, base_digest = ("", "") if base is None else (base.name, base.digest)
    if base is not None:
        learnt = [each for each in chosen if each.pixel_digest not in validation]
        seed = hashlib.sha256("\n".join([base_digest, *lines]).encode()).hexdigest()
        drawn = draw_base(base, count_beside(len(learnt), base_per_new, base_least), learnt, seed).tolist()
    digest = snapshot_digest(model, name, base_digest, drawn, lines)
    train = len(chosen) - len(validation) + len(drawn)
    counts = {"train": train, "validation": len(validation), _REPLAYED: len(drawn)}
    if session.get(SnapshotRow, digest) is None:
        session.add(
            SnapshotRow(
                digest=digest,
                model=model,
                base=name,
                base_digest=base_digest,
                base_drawn=drawn,
                counts=counts,
                create_time=now(),
            )
        )
        session.flush()
    _pin(session, digest, [samples[each.pixel_digest] for each in chosen], validation)
    return Snapshot(digest, name, counts, _newest(session, model))


def _samples(session: Session, model: str, without: Collection[int]) -> dict[str, SampleRow]:
    """Return the samples that may be learnt from, by their pixel digests."""
    copies = exists().where(FindingRow.observation == SampleRow.observation, FindingRow.kind == NEAR_COPY)
    statement = (
        select(SampleRow)
        .join(ObservationRow, SampleRow.observation == ObservationRow.number)
        .where(SampleRow.model == model, ObservationRow.role == Role.TRAIN, ~copies)
        .order_by(SampleRow.pixel_digest)
    )
    left_out = frozenset(without)
    return {row.pixel_digest: row for row in session.scalars(statement) if row.observation not in left_out}


def _candidates(session: Session, model: str, samples: Sequence[SampleRow]) -> list[Candidate]:
    """Return *samples* with those whose word their labels are."""
    votes = (
        select(VoteRow.observation, VoteRow.contributor, VoteRow.trusted)
        .join(SampleRow, SampleRow.observation == VoteRow.observation)
        .where(SampleRow.model == model, VoteRow.verdict == VoteKind.LABEL, VoteRow.label == SampleRow.label)
    )
    givers: dict[int, set[str]] = {}
    trusted: set[int] = set()
    for observation, contributor, is_trusted in session.execute(votes):
        givers.setdefault(observation, set()).add(contributor)
        if is_trusted:
            trusted.add(observation)
    candidates = []
    for row in samples:
        assert row.observation is not None
        given = () if row.observation in trusted else givers.get(row.observation, {row.contributor})
        candidates.append(Candidate(row.pixel_digest, row.label, frozenset(given)))
    return candidates


def _pin(session: Session, digest: str, samples: Sequence[SampleRow], validation: frozenset[str]) -> None:
    """Add the rows that are missing: after a deletion, a content may have come again under another number."""
    known = select(SnapshotSampleRow.observation).where(SnapshotSampleRow.snapshot == digest)
    there = set(session.scalars(known))
    session.add_all(
        SnapshotSampleRow(
            snapshot=digest,
            observation=row.observation,
            sample=row.number,
            label=row.label,
            part="validation" if row.pixel_digest in validation else "train",
        )
        for row in samples
        if row.observation not in there
    )
    session.flush()


def _newest(session: Session, model: str) -> int:
    return session.scalar(select(func.max(SampleRow.number)).where(SampleRow.model == model)) or 0


def read_snapshot(database: Database, digest: str) -> PinnedSnapshot:
    """Return the snapshot of that digest.

    Raises:
        NotFound: There is none.
        Conflict: Pictures of it were deleted.
    """
    pictures = (
        select(
            SnapshotSampleRow.sample,
            ObservationRow.content_digest,
            ObservationRow.orientation,
            SnapshotSampleRow.label,
            SnapshotSampleRow.part,
        )
        .join(ObservationRow, SnapshotSampleRow.observation == ObservationRow.number)
        .where(SnapshotSampleRow.snapshot == digest)
        .order_by(ObservationRow.pixel_digest)
    )
    with database.read() as session:
        row = session.get(SnapshotRow, digest)
        if row is None:
            raise NotFound(
                f"there is no snapshot {digest!r}; name one that the loop has made", reason="DATASET_NOT_FOUND"
            )
        found = tuple(PinnedPicture(*each) for each in session.execute(pictures))
    pinned = row.counts["train"] + row.counts["validation"] - row.counts[_REPLAYED]
    if len(found) != pinned:
        raise Conflict(
            f"snapshot {digest} was made of {pinned} pictures of users and has {len(found)} of them, since others were "
            "deleted; let the loop make a new one",
            reason="SNAPSHOT_NOT_WHOLE",
        )
    return PinnedSnapshot(row.digest, row.model, row.base, row.base_digest, tuple(row.base_drawn), found)
