"""How far votes can be relied on: how often each contributor is right, and what a picture is by all that was said."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.trainer.data.observing import VoteKind
from services.trainer.data.tables import ObservationRow, VoteRow
from services.trainer.feedback.tables import ContributorRow
from services.trainer.feedback.trust import VoteFact
from services.trainer.statistics.agreement import fuse_votes

REMEMBERED_DAYS = 90
STRANGER = 0.8
"""Of somebody who has not voted yet: what `fuse_votes` takes for granted too."""
TRUSTED = 0.995
_MOST_VOTES = 20_000
_MOST_CELLS = 4_000_000
"""Votes times classes: the table that is fused has as many numbers."""


def contributor_accuracies(session: Session, model: str, classes: int) -> dict[str, float]:
    """Return how often each contributor is right, by the newest votes on the pictures of a model.

    Args:
        session: Of the database.
        model: Name of the model.
        classes: How many labels it has.
    """
    since = (datetime.now(UTC) - timedelta(days=REMEMBERED_DAYS)).isoformat(timespec="milliseconds")
    statement = (
        select(VoteRow.observation, VoteRow.contributor, VoteRow.label, VoteRow.trusted)
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
    rows = session.execute(statement).all()
    names = sorted({name for _, name, _, _ in rows})
    numbers = {name: number for number, name in enumerate(names)}
    trusted = {numbers[name] for _, name, _, is_trusted in rows if is_trusted}
    fused = fuse_votes(
        [(item, numbers[name], label) for item, name, label, _ in rows if label is not None], classes, trusted
    )
    return {name: fused.accuracy[number] for name, number in numbers.items()}


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
