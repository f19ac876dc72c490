"""How far votes can be relied on: how often each contributor is right, and what a picture is by all that was said."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, aliased

from services.common.identity import ANONYMOUS, OWNER
from services.trainer.data.observing import State, VoteKind
from services.trainer.data.tables import ObservationRow, VoteRow
from services.trainer.feedback.harm import harmful_contributors
from services.trainer.feedback.tables import ContributorRow, KeyRow
from services.trainer.feedback.trust import VoteFact
from services.trainer.statistics.agreement import fuse_votes

REMEMBERED_DAYS = 90
STRANGER = 0.8
"""Of somebody who has not voted yet: what `fuse_votes` takes for granted too."""
TRUSTED = 0.995
CONFIRMED = 5
"""Labels of a contributor that somebody else has given too and that were accepted, from which on a voice is known."""
_MOST_VOTES = 20_000
_MOST_CELLS = 4_000_000
"""Votes times classes: the table that is fused has as many numbers."""


@dataclass(frozen=True)
class Reliability:
    """What is known of contributors."""

    accuracy: Mapping[str, float]
    """How often each is right; who is not named has said nothing yet."""
    proven: frozenset[str]
    """Those of whose labels others have confirmed `CONFIRMED` or more."""
    harmful: frozenset[str]
    """Those with whose samples the model gets worse: what they say is worth nothing until it was released."""


def read_reliability(session: Session, model: str, classes: int) -> Reliability:
    """Return what the newest votes on the pictures of a model say of those who gave them.

    Args:
        session: Of the database.
        model: Name of the model.
        classes: How many labels it has.
    """
    since = (datetime.now(UTC) - timedelta(days=REMEMBERED_DAYS)).isoformat(timespec="milliseconds")
    harmful = harmful_contributors(session, model)
    right = _accuracies(session, model, classes, since, harmful)
    return Reliability(right | dict.fromkeys(harmful, 1 / classes), _proven(session, model, since) - harmful, harmful)


def contributor_accuracies(session: Session, model: str, classes: int) -> dict[str, float]:
    """Return how often each contributor is right, as `read_reliability` has it."""
    return dict(read_reliability(session, model, classes).accuracy)


def _accuracies(session: Session, model: str, classes: int, since: str, without: Collection[str]) -> dict[str, float]:
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
    rows = [row for row in session.execute(statement) if row.contributor not in without]
    names = sorted({name for _, name, _, _ in rows})
    numbers = {name: number for number, name in enumerate(names)}
    trusted = {numbers[name] for _, name, _, is_trusted in rows if is_trusted or name == OWNER.contributor}
    fused = fuse_votes(
        [(item, numbers[name], label) for item, name, label, _ in rows if label is not None], classes, trusted
    )
    return {name: fused.accuracy[number] for name, number in numbers.items()}


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


def label_posterior(
    votes: Sequence[VoteFact], predicted: str, accuracy: Mapping[str, float], classes: int
) -> dict[str, float]:
    """Return the probability of each label that was voted for, given what all say whose word counts.

    Dawid and Skene's step for one picture with one coin for each contributor, as in `statistics.agreement`; beside that
    a vote that the answer is wrong, which speaks for all labels but one, and labels that the model does not know.

    Args:
        votes: On the picture.
        predicted: Label that was answered; empty where that is not known.
        accuracy: By contributor; others are strangers.
        classes: How many labels the model has.
    """
    votes = [each for each in votes if not each.blocked]
    named = sorted({each.label for each in votes if each.label})
    if not named:
        return {}
    considered = sorted({*named, predicted} - {""})
    others = max(classes, 2, len(considered)) - len(considered)
    total = max(classes, 2, len(considered))
    scores = [_log_likelihood(label, votes, predicted, accuracy, total) for label in considered]
    if others:
        scores.append(math.log(others) + _log_likelihood("", votes, predicted, accuracy, total))
    highest = max(scores)
    shares = [math.exp(score - highest) for score in scores]
    probabilities = dict(zip(considered, (share / sum(shares) for share in shares), strict=False))
    return {label: probabilities[label] for label in named}


def _log_likelihood(
    truth: str, votes: Sequence[VoteFact], predicted: str, accuracy: Mapping[str, float], classes: int
) -> float:
    """Return the logarithm of the probability of all votes, where the label is *truth*; empty is one not named."""
    total = 0.0
    for each in votes:
        right = TRUSTED if each.trusted else accuracy.get(each.contributor, STRANGER)
        if each.label:
            total += math.log(right if each.label == truth else (1 - right) / (classes - 1))
        elif each.verdict is VoteKind.WRONG and predicted:
            total += math.log(1 - right if truth == predicted else right)
    return total
