"""Makes samples of what users say: judges each picture of which something new was said or found.

Nothing else writes the state of a picture that is there, or makes and withdraws samples of what came from users. A
sample never changes: one with another label is another sample.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from services.trainer.clock import now
from services.trainer.data.models import Model, find_model
from services.trainer.data.observing import Role, State, VoteKind, next_change
from services.trainer.data.tables import ObservationRow, PredictionRow, SampleRow, VoteRow
from services.trainer.feedback.evidence import label_posterior
from services.trainer.feedback.policy import PolicyOf, TrustPolicy
from services.trainer.feedback.reliability import Reliability, newest_encoder, read_reliability
from services.trainer.feedback.tables import ContributorRow, FindingRow, NeighbourhoodRow
from services.trainer.feedback.trust import ObservationFacts, Verdict, VoteFact, judge, support
from services.trainer.storage.database import Database

SOURCE = "feedback"
"""Of samples that users have given."""
_AT_ONCE = 100
Number = TypeVar("Number", int, float)
_REMEMBERED_SECONDS = 10.0


@dataclass
class SiftCounts:
    """What was done."""

    judged: int = 0
    accepted: int = 0
    """Samples that were made."""
    withdrawn: int = 0
    """Samples that are none any more."""
    states: Counter[str] = field(default_factory=Counter)
    """Of what was judged, by state."""


class Sifter:
    """Sifts models; any number of threads may. Those that come while a model is sifted find little left to do.

    Args:
        database: Migrated.
        policy_of: Whom to trust.
        clock: Gives seconds; how right contributors are is worked out anew after ten of them.
    """

    def __init__(self, database: Database, policy_of: PolicyOf, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._policy_of = policy_of
        self._clock = clock
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._known: dict[str, tuple[float, Reliability]] = {}

    def sift(self, model: str) -> SiftCounts:
        """Judge what has changed of a model, a hundred pictures in a transaction.

        Raises:
            NotFound: There is no such model.
            NotReady: The database does not answer; what is not judged stays marked.
        """
        task = find_model(self._database, model)
        counts = SiftCounts()
        with self._locks[model]:
            while self._is_stale(model):
                reliability = self._reliability(task)  # before the transaction: others wait for that one
                with self._database.begin(alone=True) as session:
                    self._sift_some(session, task, reliability, counts)
        return counts

    def _is_stale(self, model: str) -> bool:
        with self._database.read() as session:
            return session.scalar(_stale(model).limit(1)) is not None

    def _sift_some(self, session: Session, task: Model, reliability: Reliability, counts: SiftCounts) -> None:
        rows = list(session.scalars(_stale(task.name).limit(_AT_ONCE)))
        trust = self._policy_of(task.name).trust
        facts = _gather(session, task, rows, reliability, trust)
        change = next_change(session)
        for row in rows:
            verdict = judge(facts[row.number], trust)
            row.stale = False
            if _apply(session, task, row, verdict, facts[row.number], counts):
                row.changed_number = change
                change += 1
            counts.judged += 1
            counts.states[verdict.state] += 1

    def _reliability(self, task: Model) -> Reliability:
        """Return what is known of contributors; to fuse all votes for each new one would take more than it gives."""
        remembered = self._known.get(task.name)
        if remembered is not None and self._clock() < remembered[0]:
            return remembered[1]
        with self._database.read() as session:
            known = read_reliability(session, task.name, task.labels, self._policy_of(task.name).trust)
        self._known[task.name] = (self._clock() + _REMEMBERED_SECONDS, known)
        return known


def _stale(model: str) -> Select[ObservationRow]:
    return (
        select(ObservationRow)
        .where(ObservationRow.model == model, ObservationRow.stale)
        .order_by(ObservationRow.number)
    )


def _apply(
    session: Session, task: Model, row: ObservationRow, verdict: Verdict, facts: ObservationFacts, counts: SiftCounts
) -> bool:
    """Write a verdict; return whether it changes anything."""
    label = task.label_number(verdict.label) if verdict.label in facts.known_labels else None
    values: dict[str, Any] = {
        "state": verdict.state,
        "reason": verdict.reason,
        "detail": verdict.detail,
        "label": label,
        "label_probability": facts.label_posterior.get(verdict.label, 0.0),
        "sample": _sample(session, row, label if verdict.state is State.ACCEPTED else None, verdict, facts),
    }
    counts.accepted += values["sample"] not in (None, row.sample)
    counts.withdrawn += row.sample not in (None, values["sample"])
    changed = any(getattr(row, name) != value for name, value in values.items())
    for name, value in values.items():
        setattr(row, name, value)
    return changed


def _sample(
    session: Session, row: ObservationRow, label: int | None, verdict: Verdict, facts: ObservationFacts
) -> int | None:
    """Let the picture be a sample of *label*, or none; return its number."""
    sample = session.get(SampleRow, row.sample) if row.sample else None
    if sample is not None and sample.label == label:
        return sample.number
    if sample is not None:
        session.delete(sample)
        session.flush()
    if label is None:
        return None
    sample = SampleRow(
        model=row.model,
        content_digest=row.content_digest,
        pixel_digest=row.pixel_digest,
        label=label,
        width=row.width,
        height=row.height,
        format=row.format,
        orientation=row.orientation,
        client_id="",
        source=SOURCE,
        create_time=now(),
        contributor=_giver(verdict.label, facts.votes),
        observation=row.number,
    )
    session.add(sample)
    session.flush()
    return sample.number


def _giver(label: str, votes: Sequence[VoteFact]) -> str:
    """Return who said first what was accepted, of those whose word counts most."""
    said = [each for each in votes if each.label == label and not each.blocked]
    return min(said, key=lambda each: not each.trusted).contributor


def _gather(
    session: Session, task: Model, rows: Sequence[ObservationRow], reliability: Reliability, trust: TrustPolicy
) -> dict[int, ObservationFacts]:
    """Return what is known of pictures, by their numbers."""
    numbers = [row.number for row in rows]
    votes = _votes(session, task, numbers)
    predicted = first_labels(session, numbers)
    findings: defaultdict[int, set[str]] = defaultdict(set)
    for each in session.scalars(select(FindingRow).where(FindingRow.observation.in_(numbers))):
        findings[each.observation].add(each.kind)
    encoder = newest_encoder(session, task.name)
    near = {
        each.observation: each
        for each in session.scalars(
            select(NeighbourhoodRow).where(
                NeighbourhoodRow.observation.in_(numbers), NeighbourhoodRow.encoder == encoder
            )
        )
    }
    known = frozenset(task.labels)
    facts = {}
    for row in rows:
        said = votes[row.number]
        first = predicted.get(row.number, "")
        members = _by_label(task, near[row.number].members) if row.number in near else {}
        lifts = _by_label(task, near[row.number].lifts) if row.number in near else {}
        beside = support(lifts, members, trust)
        facts[row.number] = ObservationFacts(
            role=Role(row.role),
            predicted=first,
            votes=tuple(said),
            label_posterior=label_posterior(
                said, first, reliability.accuracy, len(task.labels), beside, reliability.lessons
            ),
            encoder=bool(encoder),
            embedded={each.label for each in said if each.label in known} <= set(members) and row.number in near,
            lift=lifts,
            class_members=members,
            findings=frozenset(findings[row.number]),
            known_labels=known,
            proven=reliability.proven,
            harmful=reliability.harmful,
        )
    return facts


def first_labels(session: Session, observations: Sequence[int]) -> dict[int, str]:
    """Return the label that was answered first for each of *observations* that has an answer."""
    statement = (
        select(PredictionRow.observation, PredictionRow.labels)
        .where(PredictionRow.observation.in_(observations))
        .order_by(PredictionRow.time.desc(), PredictionRow.id.desc())
    )
    return {observation: str(labels[0][0]) for observation, labels in session.execute(statement)}


def _votes(session: Session, task: Model, observations: Sequence[int]) -> defaultdict[int, list[VoteFact]]:
    statement = (
        select(VoteRow, ContributorRow.blocked)
        .outerjoin(ContributorRow, VoteRow.contributor == ContributorRow.name)
        .where(VoteRow.observation.in_(observations))
        .order_by(VoteRow.time, VoteRow.number)
    )
    votes: defaultdict[int, list[VoteFact]] = defaultdict(list)
    for row, blocked in session.execute(statement):
        label = row.proposal if row.label is None else task.labels[row.label]
        fact = VoteFact(row.contributor, VoteKind(row.verdict), label, row.trusted, bool(blocked))
        votes[row.observation].append(fact)
    return votes


def _by_label(task: Model, values: Mapping[str, Number]) -> dict[str, Number]:
    return {task.labels[int(number)]: value for number, value in values.items()}
