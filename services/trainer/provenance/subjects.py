"""What goes with a deletion: the pictures that somebody alone has sent, and the word on those of others."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, select
from sqlalchemy.orm import Session

from services.trainer.data.observing import VoteKind, mark_changed
from services.trainer.data.tables import ObservationRow, PredictionRow, SampleRow, SnapshotSampleRow, VoteRow
from services.trainer.feedback.pseudonyms import read_pseudonyms
from services.trainer.feedback.sifting import SOURCE
from services.trainer.feedback.tables import AnswerRow, DeletionRow, EmbeddingRow, FindingRow, NeighbourhoodRow
from services.trainer.provenance.record import Kind, Part

_ABOUT = (
    PredictionRow, VoteRow, FindingRow, EmbeddingRow, NeighbourhoodRow, AnswerRow, SnapshotSampleRow, SampleRow,
)  # fmt: skip
"""Tables of what is known of a picture."""
_AT_ONCE = 500
_Select = Select[*tuple[Any, ...]]


@dataclass(frozen=True)
class Subjects:
    """What goes, in one model."""

    pictures: tuple[int, ...]
    """Numbers of those that go, rising."""
    shared: tuple[int, ...] = ()
    """Of those that others have sent too, or that only a word was said of: they lose that word."""
    labels: dict[int, int] = field(default_factory=dict)
    """Of shared pictures, those whose label nobody else has given: it may have been learnt."""
    names: frozenset[str] = frozenset()
    """Of the contributor; none where a picture goes."""


def find_subjects(session: Session, model: str, row: DeletionRow, part: Part) -> Subjects:
    """Return what a deletion removes from a model, as far as it is still there.

    A picture goes with its only sender. Whoever has labelled the picture of another is no sender of it, so that a
    reviewer's word keeps nobody's picture.
    """
    if row.kind == Kind.SAMPLE:
        there = select(ObservationRow.number).where(ObservationRow.model == model)
        found = _each(session, there, ObservationRow.number, part.observations)
        return Subjects(tuple(number for (number,) in found))
    pseudonym = read_pseudonyms(session)
    names = frozenset(each for each in _contributors(session, model) if pseudonym(each) == row.subject)
    touched = _touched(session, model, names)
    senders = _senders(session, touched)
    alone = tuple(number for number in touched if senders[number] <= names)
    shared = tuple(number for number in touched if not senders[number] <= names)
    return Subjects(alone, shared, _labels_of_nobody_else(session, shared, names), names)


def remove_subjects(session: Session, subjects: Subjects) -> dict[str, int]:
    """Delete the rows of what goes, and return how many there were by table; the session's transaction must be alone.

    Pictures that lose a word are to be judged again, and are no samples until they were.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    for numbers in in_batches(subjects.pictures):
        for table in _ABOUT:
            counts[table.__tablename__] += _delete(session, table, table.observation.in_(numbers))
        counts[ObservationRow.__tablename__] += _delete(session, ObservationRow, ObservationRow.number.in_(numbers))
    for numbers in in_batches(subjects.shared):
        for given in (PredictionRow, VoteRow, SampleRow):
            his = given.observation.in_(numbers) & given.contributor.in_(subjects.names)
            counts[given.__tablename__] += _delete(session, given, his)
    session.flush()
    for numbers in in_batches(subjects.shared):
        rows = list(session.scalars(select(ObservationRow).where(ObservationRow.number.in_(numbers))))
        samples = [each.sample for each in rows]
        left = set(session.scalars(select(SampleRow.number).where(SampleRow.number.in_(samples))))
        for each in rows:
            each.sample = each.sample if each.sample in left else None
    session.flush()
    mark_changed(session, subjects.shared)
    return dict(counts)


def models_of(session: Session, contributor: str) -> list[str]:
    """Return the models that somebody has given something to, by name."""
    voted = select(ObservationRow.model).join(VoteRow, VoteRow.observation == ObservationRow.number)
    statements = (
        select(PredictionRow.model).where(PredictionRow.contributor == contributor),
        select(SampleRow.model).where(SampleRow.contributor == contributor),
        voted.where(VoteRow.contributor == contributor),
    )
    return sorted({model for statement in statements for model in session.scalars(statement.distinct())})


def in_batches(values: Sequence[int], size: int = _AT_ONCE) -> Iterator[Sequence[int]]:
    """Yield *values* in parts that fit into one statement."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _contributors(session: Session, model: str) -> set[str]:
    """Return all who have given something to a model."""
    voted = select(VoteRow.contributor).join(ObservationRow, VoteRow.observation == ObservationRow.number)
    statements = (
        select(PredictionRow.contributor).where(PredictionRow.model == model),
        select(SampleRow.contributor).where(SampleRow.model == model),
        voted.where(ObservationRow.model == model),
    )
    return {name for statement in statements for name in session.scalars(statement.distinct())}


def _touched(session: Session, model: str, names: Iterable[str]) -> list[int]:
    """Return the numbers of the pictures that somebody has sent, or said something of, rising."""
    given = sorted(names)
    voted = select(VoteRow.observation).join(ObservationRow, VoteRow.observation == ObservationRow.number)
    statements = (
        select(PredictionRow.observation).where(PredictionRow.model == model, PredictionRow.contributor.in_(given)),
        select(SampleRow.observation).where(SampleRow.model == model, SampleRow.contributor.in_(given)),
        voted.where(ObservationRow.model == model, VoteRow.contributor.in_(given)),
    )
    found = {number for statement in statements for number in session.scalars(statement)}
    return sorted(number for number in found if number is not None)


def _senders(session: Session, pictures: Sequence[int]) -> defaultdict[int, set[str]]:
    """Return who has sent each picture: who asked for an answer, who imported it, else who spoke first of it."""
    senders: defaultdict[int, set[str]] = defaultdict(set)
    asked = select(PredictionRow.observation, PredictionRow.contributor)
    for number, name in _each(session, asked, PredictionRow.observation, pictures):
        senders[number].add(name)
    imported = select(SampleRow.observation, SampleRow.contributor).where(SampleRow.source != SOURCE)
    for number, name in _each(session, imported, SampleRow.observation, pictures):
        senders[number].add(name)
    unasked = [number for number in pictures if not senders[number]]
    said = select(VoteRow.observation, VoteRow.contributor).order_by(VoteRow.number)
    for number, name in _each(session, said, VoteRow.observation, unasked):
        if not senders[number]:
            senders[number].add(name)
    return senders


def _labels_of_nobody_else(session: Session, pictures: Sequence[int], names: Iterable[str]) -> dict[int, int]:
    """Return by picture the label that its contributor *names* has given and no other has."""
    known = frozenset(names)
    his: dict[int, int] = {}
    others: defaultdict[int, set[int]] = defaultdict(set)
    said = select(VoteRow.observation, VoteRow.contributor, VoteRow.label).where(VoteRow.verdict == VoteKind.LABEL)
    for number, name, label in _each(session, said, VoteRow.observation, pictures):
        if name in known:
            his[number] = label
        else:
            others[number].add(label)
    return {number: label for number, label in his.items() if label not in others[number]}


def _each(session: Session, statement: _Select, column: Any, values: Sequence[int]) -> Iterator[Any]:
    """Yield the rows of *statement* in which *column* has one of *values*, which may be many."""
    for some in in_batches(values):
        yield from session.execute(statement.where(column.in_(some)))


def _delete(session: Session, table: Any, condition: ColumnElement[bool]) -> int:
    """Delete rows, and return how many there were."""
    result: Any = session.execute(delete(table).where(condition))
    return int(result.rowcount)
