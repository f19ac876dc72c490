"""What lies next to users' pictures: which labels, and whether one nearly is a picture that judges candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from services.trainer.analyst.basis import Basis, BasisFeatures
from services.trainer.analyst.spaces import FeatureSpace, Placed
from services.trainer.analyst.stored import StoredPictures, find_observations
from services.trainer.clock import now
from services.trainer.data.cleaning import find_near_duplicates
from services.trainer.data.collection import OPEN, Collection
from services.trainer.data.models import Model
from services.trainer.data.observing import Role, State, mark_changed
from services.trainer.data.tables import ObservationRow, VoteRow
from services.trainer.feedback.tables import FindingRow, NeighbourhoodRow
from services.trainer.feedback.trust import NEAR_COPY, NEIGHBOURS_DISAGREE
from services.trainer.statistics.neighbours import label_lift, nearest
from services.trainer.storage.database import Database

LOOKED_AT = 5
"""Nearest pictures by features whose pixels are compared: copies that were compressed again are among them."""
MOST_LABELS = 100
"""Of a model whose classes are all counted for each picture; of a larger one, those alone that matter for it."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What pictures are placed on: the base set, which may be missing, and those of users."""

    task: Model
    space: FeatureSpace
    basis: Basis | None
    features: BasisFeatures | None

    def index(self) -> Placed:
        """Return all that has a label and may be learnt from; the base set has numbers below 0."""
        own = self.space.select(Role.TRAIN, accepted=True)
        if self.basis is None or self.features is None:
            return own
        labels = [self.basis.train.labels, self.basis.validation.labels, own.labels]
        features = [self.features.train, self.features.validation, own.features]
        base = len(labels[0]) + len(labels[1])
        numbers = np.concatenate([np.arange(-base, 0), own.numbers])
        return Placed(numbers, np.concatenate(features), np.concatenate(labels))


def place(database: Database, pictures: StoredPictures, ground: Ground, numbers: Sequence[int], k: int) -> None:
    """Find out and keep what lies next to pictures, and let those be judged again that it matters for.

    Args:
        database: Has the rows.
        pictures: Has the files.
        ground: Refreshed.
        numbers: Of pictures with features.
        k: Neighbours that are asked.
    """
    with database.read() as session:
        voted = _voted(session, numbers)
    index = ground.index()
    placed = ground.space.select(numbers=tuple(numbers))
    rows = _neighbourhoods(ground, placed, index, voted, k)
    copies = {
        **_copies_of_judges(database, pictures, ground, placed),
        **_copied_by_learnt(database, pictures, ground, placed),
    }
    with database.begin(alone=True) as session:
        there = {row.number: row for row in find_observations(session, [*numbers, *copies])}
        for row in rows:
            if row.observation in there:
                session.merge(row)
        found = {number: level for number, level in copies.items() if number in there}
        for number, level in found.items():
            detail = "shows nearly the same as a picture that candidates are judged on"
            session.merge(FindingRow(observation=number, kind=NEAR_COPY, level=level, detail=detail, time=now()))
        session.flush()
        waiting = (State.PENDING, State.QUARANTINED)
        mark_changed(session, {n for n, row in there.items() if row.state in waiting} | set(found))


def _voted(session: Session, numbers: Sequence[int]) -> dict[int, set[int]]:
    voted: dict[int, set[int]] = {number: set() for number in numbers}
    statement = select(VoteRow.observation, VoteRow.label).where(VoteRow.observation.in_(numbers))
    for number, label in session.execute(statement):
        if label is not None:
            voted[number].add(label)
    return voted


def _neighbourhoods(
    ground: Ground, placed: Placed, index: Placed, voted: Mapping[int, set[int]], k: int
) -> list[NeighbourhoodRow]:
    classes = len(ground.task.labels)
    counts = np.bincount(index.labels, minlength=classes)
    neighbours = _neighbour_labels(placed, index, k)
    present = np.unique(neighbours)
    lifts = {int(label): label_lift(np.full(len(neighbours), label), neighbours, counts) for label in present}
    rows = []
    for position, number in enumerate(placed.numbers.tolist()):
        beside = {int(label) for label in neighbours[position]}
        named = range(classes) if classes <= MOST_LABELS else sorted(beside | voted.get(number, set()))
        rows.append(
            NeighbourhoodRow(
                observation=number,
                encoder=ground.space.encoder,
                lifts={str(label): float(lifts[label][position]) for label in sorted(beside)},
                members={str(label): int(counts[label]) for label in named},
                time=now(),
            )
        )
    return rows


def _neighbour_labels(placed: Placed, index: Placed, k: int) -> NDArray[np.int64]:
    """Return the labels of the nearest ones, (n, k or less), each picture itself left out."""
    if not len(placed.numbers) or not len(index.numbers):
        return np.empty((len(placed.numbers), 0), np.int64)
    positions, _ = nearest(placed.features, index.features, k + 1)
    itself = index.numbers[positions] == placed.numbers[:, None]
    if positions.shape[1] <= k and not itself.any():
        return index.labels[positions]
    itself[~itself.any(axis=1), -1] = True  # where it is not among them, the last is one too many
    return np.asarray(index.labels[positions[~itself]].reshape(len(positions), -1))


def _copies_of_judges(database: Database, pictures: StoredPictures, ground: Ground, placed: Placed) -> dict[int, float]:
    """Return those of *placed*, of role train, that copy a picture that is judged on, with their similarity."""
    learnt = ground.space.select(Role.TRAIN, numbers=tuple(placed.numbers.tolist()))
    judges = ground.space.select(Role.JUDGE)
    if ground.basis is not None and ground.features is not None:  # the hold-out is judged on too
        holdout = -1 - np.arange(len(ground.basis.test))
        judges = Placed(
            np.concatenate([judges.numbers, holdout]),
            np.concatenate([judges.features, ground.features.test]),
            np.concatenate([judges.labels, ground.basis.test.labels]),
        )
    copies = _copies(database, pictures, ground, _pairs(learnt, judges))
    return {each.number: each.similarity for each in copies}


def _copied_by_learnt(database: Database, pictures: StoredPictures, ground: Ground, placed: Placed) -> dict[int, float]:
    """Return the pictures of role train that copy one of *placed* that is judged on: it came after them."""
    judges = ground.space.select(Role.JUDGE, numbers=tuple(placed.numbers.tolist()))
    copies = _copies(database, pictures, ground, _pairs(judges, ground.space.select(Role.TRAIN)))
    return {each.other: each.similarity for each in copies}


@dataclass(frozen=True)
class _Pair:
    number: int
    other: int
    """Below 0: of the hold-out, backwards from -1."""
    similarity: float


def _pairs(some: Placed, others: Placed) -> list[_Pair]:
    """Return each of *some* with those of *others* that are nearest it, one after the other."""
    if not len(some.numbers) or not len(others.numbers):
        return []
    positions, similarity = nearest(some.features, others.features, LOOKED_AT)
    return [
        _Pair(int(number), int(others.numbers[position]), float(level))
        for row, number in enumerate(some.numbers)
        for position, level in zip(positions[row], similarity[row], strict=True)
    ]


def _copies(database: Database, pictures: StoredPictures, ground: Ground, pairs: Sequence[_Pair]) -> list[_Pair]:
    """Return those of *pairs* that show nearly the same."""
    numbers = {number for each in pairs for number in (each.number, each.other) if number >= 0}
    with database.read() as session:
        rows = find_observations(session, sorted(numbers))
    readable, pixels, _ = pictures.read(rows, ground.task.spec)
    images = {row.number: image for row, image in zip(readable, pixels, strict=True)}
    if ground.basis is not None:
        images |= {each.other: ground.basis.test.images[-1 - each.other] for each in pairs if each.other < 0}
    copies: list[_Pair] = []
    for _, group in groupby(pairs, lambda each: each.number):
        known = [each for each in group if each.number in images and each.other in images]
        if known:
            shown = np.stack([images[known[0].number], *(images[each.other] for each in known)])
            copies += [known[position - 1] for position in _like_the_first(ground.task, shown)]
    return copies


def _like_the_first(task: Model, images: NDArray[np.uint8]) -> list[int]:
    """Return the positions of the images, (n, H, W, 3), that show nearly the same as the first."""
    count = len(images)
    collection = Collection(
        "nearest",
        task.labels,
        task.spec,
        images,
        np.zeros(count, np.int64),
        np.full(count, OPEN, np.int8),
        [str(number) for number in range(count)],
        np.full((count, 2), images.shape[2:0:-1], np.int32),
        [""] * count,
    )
    near = {each.position for each in find_near_duplicates(collection) if each.other_position == 0}
    equal = (images[1:] == images[0]).reshape(count - 1, -1).all(axis=1)
    return sorted(near | set((1 + np.flatnonzero(equal)).tolist()))


def rows_to_place_again(session: Session, model: str, most: int) -> list[int]:
    """Return pictures that wait for votes or that their neighbours held up, which were found longest ago."""
    waits = or_(ObservationRow.state == State.PENDING, ObservationRow.reason == NEIGHBOURS_DISAGREE)
    statement = (
        select(ObservationRow.number)
        .join(NeighbourhoodRow, NeighbourhoodRow.observation == ObservationRow.number)
        .where(ObservationRow.model == model, waits, ObservationRow.role == Role.TRAIN)
        .order_by(NeighbourhoodRow.time)
        .limit(most)
    )
    return list(session.scalars(statement))
