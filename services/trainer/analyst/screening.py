"""Looks at all samples of users together: labels that are likely wrong, contributors whose samples do harm."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from services.trainer.analyst.encoders import OpenedEncoder
from services.trainer.analyst.figures import add_figure
from services.trainer.analyst.placing import Ground, rows_to_place_again
from services.trainer.analyst.spaces import Placed
from services.trainer.analyst.stopping import GoOn
from services.trainer.analyst.suspicion import (
    FOLDS,
    LEAST_BLOCK,
    Labelled,
    class_thresholds,
    find_harm,
    fit,
    likely_wrong,
    out_of_fold,
)
from services.trainer.clock import now
from services.trainer.data.observing import Role, mark_changed
from services.trainer.data.tables import ObservationRow, SampleRow, VoteRow
from services.trainer.feedback.tables import FindingRow, NeighbourhoodRow
from services.trainer.feedback.trust import CONTRIBUTOR_HARMS, LIKELY_WRONG
from services.trainer.loop.kinds import SCREENING
from services.trainer.statistics.heads import head_probabilities
from services.trainer.storage.database import Database

MOST_BASE = 5000
"""Samples of the base set that heads are fitted to, drawn once: more would tell the same."""
MOST_CONTRIBUTORS = 50
"""Whose effect is measured, those with the most samples: each takes a fit."""
_PLACED_AGAIN = 500


@dataclass(frozen=True)
class _Finding:
    number: int
    kind: str
    level: float
    detail: str


def screen(database: Database, ground: Ground, encoder: OpenedEncoder, changed_number: int, go_on: GoOn) -> None:
    """Keep what is found, take back what is found no more, and let those be judged again whom it concerns.

    Args:
        database: Has the rows.
        ground: Refreshed.
        encoder: Whose features the ground has.
        changed_number: Newest change that the ground has taken in.
        go_on: As it says.
    """
    accepted = ground.space.select(Role.TRAIN, accepted=True)
    base = _base(ground)
    with database.read() as session:
        suspects = _suspects(session, ground, accepted)
        blocks = _blocks(session, ground.task.name)
        reviewed = _reviewed(session, ground.task.name)
    found, cleared = _doubt(ground, encoder, base, accepted, suspects, go_on)
    harmful = _find_harm(ground, encoder, base, accepted, blocks, reviewed, go_on)
    with database.begin(alone=True) as session:
        concerned = {each.number for each in [*found, *harmful]} | set(cleared)
        mine = select(ObservationRow.number).where(ObservationRow.model == ground.task.name)
        there = concerned & set(session.scalars(mine)) if concerned else set()
        for each in [*found, *harmful]:
            if each.number in there:
                row = FindingRow(
                    observation=each.number, kind=each.kind, level=each.level, detail=each.detail, time=now()
                )
                session.merge(row)
        session.execute(delete(FindingRow).where(FindingRow.kind == LIKELY_WRONG, FindingRow.observation.in_(cleared)))
        again = rows_to_place_again(session, ground.task.name, _PLACED_AGAIN)
        session.execute(delete(NeighbourhoodRow).where(NeighbourhoodRow.observation.in_(again)))
        session.flush()
        mark_changed(session, there)
        values = {
            "samples": len(accepted.numbers),
            "likely_wrong": len(found),
            "cleared": len(cleared),
            "harmful": len(harmful),
        }
        add_figure(session, ground.task.name, SCREENING, {"changed_number": changed_number}, values)


def _base(ground: Ground) -> Labelled:
    if ground.basis is None or ground.features is None:
        empty = ground.space.select(numbers=())
        return Labelled(empty.features, empty.labels)
    chosen = np.random.default_rng(0).permutation(len(ground.basis.train))[:MOST_BASE]
    chosen.sort()
    return Labelled(ground.features.train[chosen], ground.basis.train.labels[chosen])


def _suspects(session: Session, ground: Ground, accepted: Placed) -> Placed:
    """Return the pictures that were said to be labelled wrong and are no samples now, with their leading labels."""
    statement = (
        select(ObservationRow.number, ObservationRow.label)
        .join(FindingRow, FindingRow.observation == ObservationRow.number)
        .where(
            ObservationRow.model == ground.task.name,
            FindingRow.kind == LIKELY_WRONG,
            ObservationRow.label.is_not(None),
        )
    )
    labels = dict(session.execute(statement).all())
    placed = ground.space.select(numbers=tuple(labels.keys() - set(accepted.numbers.tolist())))
    return Placed(placed.numbers, placed.features, np.array([labels[n] for n in placed.numbers.tolist()], np.int64))


def _blocks(session: Session, model: str) -> dict[str, set[int]]:
    """Return the pictures that each untrusted contributor has made samples of, those of the largest blocks."""
    trusted = exists().where(VoteRow.observation == SampleRow.observation, VoteRow.trusted)
    statement = select(SampleRow.contributor, SampleRow.observation).where(
        SampleRow.model == model, SampleRow.contributor != "", ~trusted
    )
    blocks: defaultdict[str, set[int]] = defaultdict(set)
    for contributor, number in session.execute(statement):
        if number is not None:
            blocks[contributor].add(number)
    large = sorted((name for name in blocks if len(blocks[name]) >= LEAST_BLOCK), key=lambda name: -len(blocks[name]))
    return {name: blocks[name] for name in large[:MOST_CONTRIBUTORS]}


def _reviewed(session: Session, model: str) -> set[int]:
    """Return the samples that a trusted contributor has labelled."""
    statement = (
        select(SampleRow.observation)
        .join(VoteRow, VoteRow.observation == SampleRow.observation)
        .where(SampleRow.model == model, VoteRow.trusted)
    )
    return {number for number in session.scalars(statement) if number is not None}


def _doubt(
    ground: Ground, encoder: OpenedEncoder, base: Labelled, accepted: Placed, suspects: Placed, go_on: GoOn
) -> tuple[list[_Finding], list[int]]:
    """Return the samples whose labels are likely wrong, and the suspects whose labels are not any more."""
    if not len(accepted.numbers):
        return [], []
    samples = Labelled(accepted.features, accepted.labels)
    probabilities = out_of_fold(encoder.head, base, samples, accepted.numbers % FOLDS, go_on)
    thresholds = class_thresholds(accepted.labels, probabilities)
    wrong = np.flatnonzero(likely_wrong(accepted.labels, probabilities, thresholds))
    found = [_finding(ground, accepted, row, probabilities) for row in wrong.tolist()]
    if not len(suspects.numbers):
        return found, []
    go_on()
    others = head_probabilities(fit(encoder.head, base.joined(samples)), suspects.features)
    cleared = others.argmax(axis=1) == suspects.labels
    return found, suspects.numbers[cleared].tolist()


def _finding(ground: Ground, accepted: Placed, row: int, probabilities: NDArray[np.float32]) -> _Finding:
    given, better = int(accepted.labels[row]), int(probabilities[row].argmax())
    labels = ground.task.labels
    detail = (
        f"a model that has not seen it gives {labels[better]} {probabilities[row, better]:.0%} and {labels[given]} "
        f"{probabilities[row, given]:.0%}"
    )
    return _Finding(int(accepted.numbers[row]), LIKELY_WRONG, float(probabilities[row, better]), detail)


def _find_harm(
    ground: Ground,
    encoder: OpenedEncoder,
    base: Labelled,
    accepted: Placed,
    blocks: Mapping[str, set[int]],
    reviewed: set[int],
    go_on: GoOn,
) -> list[_Finding]:
    """Return the samples of contributors with whom the model gets worse on what reviewers and the base set say."""
    judging = _members(accepted.numbers, reviewed)
    samples, numbers = Labelled(accepted.features, accepted.labels), accepted.numbers[~judging]
    judges = samples[judging]
    if ground.basis is not None and ground.features is not None:
        judges = judges.joined(Labelled(ground.features.validation, ground.basis.validation.labels))
    theirs = {name: _members(numbers, block) for name, block in blocks.items()}
    found = []
    for name, harm in find_harm(encoder.head, base, samples[~judging], theirs, judges, go_on).items():
        block: Sequence[int] = numbers[theirs[name]].tolist()
        detail = f"with the {len(block)} samples of its contributor the model gets worse (log e-value {harm:.1f})"
        found += [_Finding(number, CONTRIBUTOR_HARMS, harm, detail) for number in block]
    return found


def _members(numbers: NDArray[np.int64], some: set[int]) -> NDArray[np.bool_]:
    return np.isin(numbers, np.fromiter(some, np.int64, len(some)))
