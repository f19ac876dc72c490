"""How far votes can be relied on: how often each contributor is right, and what reviewers have shown."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, aliased

from services.common.identity import ANONYMOUS, OWNER
from services.trainer.clock import as_row
from services.trainer.data.observing import State, VoteKind
from services.trainer.data.tables import ObservationRow, VoteRow
from services.trainer.feedback.evidence import Lessons, Reviewed, learn
from services.trainer.feedback.harm import harmful_contributors
from services.trainer.feedback.policy import TrustPolicy
from services.trainer.feedback.tables import ContributorRow, EncoderRow, KeyRow, NeighbourhoodRow
from services.trainer.feedback.trust import support
from services.trainer.statistics.agreement import fuse_votes

REMEMBERED_DAYS = 90
CONFIRMED = 5
"""Labels of a contributor that somebody else has given too and that were accepted, from which on a voice is known."""
_MOST_VOTES = 20_000
_MOST_CELLS = 4_000_000
"""Votes times classes: the table that is fused has as many numbers."""
_MOST_REVIEWED = 2000
"""Pictures, the newest, that are learnt from: more would tell the same."""


@dataclass(frozen=True)
class Reliability:
    """What is known of contributors."""

    accuracy: Mapping[str, float]
    """How often each is right; who is not named has said nothing yet."""
    proven: frozenset[str]
    """Those of whose labels others have confirmed `CONFIRMED` or more."""
    harmful: frozenset[str]
    """Those with whose samples the model gets worse: what they say is worth nothing until it was released."""
    lessons: Lessons
    """Of reviewed pictures."""


def read_reliability(session: Session, model: str, labels: Sequence[str], trust: TrustPolicy) -> Reliability:
    """Return what the newest votes on the pictures of a model say of those who gave them.

    Args:
        session: Of the database.
        model: Name of the model.
        labels: Of the model.
        trust: Says how many neighbours are asked.
    """
    since, classes = _since(), len(labels)
    harmful = harmful_contributors(session, model)
    accuracy = _accuracies(session, model, classes, since, harmful)
    proven = _proven(session, model, since) - harmful
    lessons = learn(_reviewed(session, model, labels, since, trust), accuracy, classes)
    return Reliability(accuracy, proven, harmful, lessons)


def contributor_accuracies(session: Session, model: str, classes: int) -> dict[str, float]:
    """Return how often each contributor is right, as `read_reliability` has it."""
    return _accuracies(session, model, classes, _since(), harmful_contributors(session, model))


def _since() -> str:
    return as_row(datetime.now(UTC) - timedelta(days=REMEMBERED_DAYS))


def _accuracies(session: Session, model: str, classes: int, since: str, harmful: Collection[str]) -> dict[str, float]:
    statement = (
        select(VoteRow.observation, VoteRow.contributor, VoteRow.label, ContributorRow.trusted)
        .join(ObservationRow, VoteRow.observation == ObservationRow.number)
        .outerjoin(ContributorRow, VoteRow.contributor == ContributorRow.name)
        .where(
            ObservationRow.model == model,
            VoteRow.verdict == VoteKind.LABEL,
            VoteRow.time >= since,
            ContributorRow.blocked.is_not(True),
        )
        .order_by(VoteRow.number.desc())
        .limit(min(_MOST_VOTES, _MOST_CELLS // classes))
    )
    rows = [row for row in session.execute(statement) if row.contributor not in harmful]
    names = sorted({name for _, name, _, _ in rows})
    numbers = {name: number for number, name in enumerate(names)}
    trusted = {numbers[name] for _, name, _, is_trusted in rows if is_trusted or name == OWNER.contributor}
    fused = fuse_votes(
        [(item, numbers[name], label) for item, name, label, _ in rows if label is not None], classes, trusted
    )
    known = {name: fused.accuracy[number] for name, number in numbers.items()}
    return known | dict.fromkeys(harmful, 1 / classes)


def _proven(session: Session, model: str, since: str) -> frozenset[str]:
    """Return those of whose labels enough were accepted that somebody else has given too.

    `anonymous` is one only where nobody has a key, and all who call are the people of this machine: else what some of
    those without a key are right about says nothing of the next.
    """
    other, person = aliased(VoteRow), aliased(ContributorRow)
    confirmed = exists(
        select(other.number)
        .outerjoin(person, person.name == other.contributor)
        .where(
            other.observation == VoteRow.observation,
            other.contributor != VoteRow.contributor,
            other.verdict == VoteKind.LABEL,
            other.label == VoteRow.label,
            person.blocked.is_not(True),
        )
    )
    statement = (
        select(VoteRow.contributor)
        .join(ObservationRow, VoteRow.observation == ObservationRow.number)
        .outerjoin(ContributorRow, ContributorRow.name == VoteRow.contributor)
        .where(
            ObservationRow.model == model,
            ObservationRow.state == State.ACCEPTED,
            ContributorRow.blocked.is_not(True),
            VoteRow.contributor != ANONYMOUS,
            VoteRow.verdict == VoteKind.LABEL,
            VoteRow.label == ObservationRow.label,
            VoteRow.time >= since,
            confirmed,
        )
        .group_by(VoteRow.contributor)
        .having(func.count() >= CONFIRMED)
    )
    known = frozenset(session.scalars(statement))
    return known if session.scalar(select(KeyRow.id).limit(1)) else known | {ANONYMOUS}


def newest_encoder(session: Session, model: str) -> str:
    """Return the digest of the encoder whose features pictures of a model are compared by; empty for none."""
    statement = select(EncoderRow.digest).where(EncoderRow.model == model)
    return session.scalar(statement.order_by(EncoderRow.create_time.desc(), EncoderRow.digest).limit(1)) or ""


def _reviewed(
    session: Session, model: str, labels: Sequence[str], since: str, trust: TrustPolicy
) -> Iterator[Reviewed]:
    """Yield the pictures that a reviewer's word has made what they are, with what others say of them."""
    trusted = exists().where(
        VoteRow.observation == ObservationRow.number,
        VoteRow.trusted,
        VoteRow.label == ObservationRow.label,
        VoteRow.time >= since,
    )
    statement = (
        select(ObservationRow.number, ObservationRow.label)
        .where(ObservationRow.model == model, ObservationRow.state == State.ACCEPTED, trusted)
        .order_by(ObservationRow.number.desc())
        .limit(_MOST_REVIEWED)
    )
    pictures = {number: label for number, label in session.execute(statement) if label is not None}
    said: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for row in session.scalars(select(VoteRow).where(VoteRow.observation.in_(pictures), ~VoteRow.trusted)):
        if row.label is not None:
            said[row.observation].append((row.contributor, labels[row.label]))
    near = {
        row.observation: row
        for row in session.scalars(
            select(NeighbourhoodRow).where(
                NeighbourhoodRow.observation.in_(pictures), NeighbourhoodRow.encoder == newest_encoder(session, model)
            )
        )
    }
    for number, label in pictures.items():
        beside = near.get(number)
        lifts, members = (beside.lifts, beside.members) if beside else ({}, {})
        asked = support(lifts, members, trust)
        yield Reviewed(labels[label], tuple(said[number]), {labels[int(key)]: found for key, found in asked.items()})
