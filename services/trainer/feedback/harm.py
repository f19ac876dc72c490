"""Whose samples make the model worse, by the findings on their pictures and what reviewers have said of those since."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.trainer.data.observing import VoteKind
from services.trainer.data.tables import FindingRow, ObservationRow, VoteRow
from services.trainer.feedback.tables import ContributorRow
from services.trainer.feedback.trust import CONTRIBUTOR_HARMS


def harmful_contributors(session: Session, model: str) -> frozenset[str]:
    """Return those with whose samples the model was found to get worse, and who are not released.

    A contributor is released when reviewers have confirmed the labels of at least half of the pictures with that
    finding. Such a picture counts for the one who has given it: the first without trust to give the label that most
    without trust give it.
    """
    statement = (
        select(VoteRow.observation, VoteRow.contributor, VoteRow.label, VoteRow.trusted)
        .join(FindingRow, FindingRow.observation == VoteRow.observation)
        .join(ObservationRow, ObservationRow.number == VoteRow.observation)
        .outerjoin(ContributorRow, ContributorRow.name == VoteRow.contributor)
        .where(
            ObservationRow.model == model,
            FindingRow.kind == CONTRIBUTOR_HARMS,
            VoteRow.verdict == VoteKind.LABEL,
            ContributorRow.blocked.is_not(True),
        )
        .order_by(VoteRow.time, VoteRow.number)
    )
    untrusted: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
    reviewed: defaultdict[int, set[int]] = defaultdict(set)
    for picture, contributor, label, trusted in session.execute(statement):
        assert label is not None, "a LABEL names one"
        if trusted:
            reviewed[picture].add(label)
        else:
            untrusted[picture].append((contributor, label))
    return not_released(untrusted, reviewed)


def not_released(
    untrusted: Mapping[int, Sequence[tuple[str, int]]], reviewed: Mapping[int, Collection[int]]
) -> frozenset[str]:
    """Return those who have given pictures that were found to do harm, and who are not released.

    Args:
        untrusted: By picture: who without trust says which label, in the order of time.
        reviewed: By picture: the labels that reviewers give.
    """
    found: Counter[str] = Counter()
    released: Counter[str] = Counter()
    for picture, said in untrusted.items():
        giver, label = _giver(said)
        found[giver] += 1
        released[giver] += set(reviewed.get(picture, ())) == {label}
    return frozenset(name for name, count in found.items() if 2 * released[name] < count)


def _giver(said: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """Return who has given the label that most give, and that label; of equals the first."""
    counts = Counter(label for _, label in said)
    leading = counts.most_common(1)[0][0]  # of equals the one that was given first
    return next((name, label) for name, label in said if label == leading)
