"""What a picture is, by all that was said of it and by what lies next to it. Pure.

Dawid and Skene's step for one picture with one coin for each contributor, as in `statistics.agreement`, which takes
three things for granted. That voices err independently: who agrees may have agreed to lie, so that together they count
no more than one that errs once in 200, and less where reviewers found them wrong together. That pictures say nothing:
neighbours are one more voice, which errs as often as reviewed pictures show. That all that is said is a label: "this
answer is wrong" speaks for all labels but one, and there are labels that the model does not know.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.trainer.data.observing import VoteKind
from services.trainer.feedback.trust import Support, VoteFact

STRANGER = 0.8
"""Of somebody who has not voted yet: what `fuse_votes` takes for granted too."""
TRUSTED = 0.995
TOGETHER = 0.005
"""Chance that contributors who agree err together, before reviewers have said anything."""
OUTWEIGHED_BY = 3
"""Contributors who agree, from which on neighbours are not asked."""
_TOGETHER_PICTURES = 2.0
"""Reviewed pictures of a class that what is taken for granted of its errors weighs as much as."""
_RIGHT = {Support.NONE: 0.05, Support.SOME: 0.15, Support.MOST: 0.8}
"""How far neighbours bear a right label out, before any review."""
_WRONG = {Support.NONE: 0.88, Support.SOME: 0.1, Support.MOST: 0.02}
_NEIGHBOUR_PICTURES = 10.0
"""Reviewed pictures that this weighs as much as."""
_MOSTLY_RIGHT = 0.5
"""Accuracy of a contributor below which each of his words counts for little, and does not speak of the others."""


@dataclass(frozen=True)
class Reviewed:
    """A picture that reviewers have labelled."""

    label: str
    said: tuple[tuple[str, str], ...]
    """Contributor and label of the other votes."""
    beside: Mapping[str, Support]
    """As of `label_posterior`."""


@dataclass(frozen=True)
class Lessons:
    """What reviewed pictures teach of voices and of neighbours."""

    together: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By the true label and the one that was said: the chance that contributors who agree err together so."""
    right: Mapping[Support, float] = field(default_factory=lambda: _RIGHT)
    """How often neighbours bear a label that is right so far out."""
    wrong: Mapping[Support, float] = field(default_factory=lambda: _WRONG)
    """The same of any label that is wrong."""


def learn(reviewed: Iterable[Reviewed], accuracy: Mapping[str, float], classes: int) -> Lessons:
    """Return what reviewed pictures teach.

    Args:
        reviewed: The pictures.
        accuracy: How often contributors are right; the words of those who mostly err are left out.
        classes: How many labels the model has.
    """
    told: Counter[str] = Counter()
    errors: Counter[tuple[str, str]] = Counter()
    right: Counter[Support] = Counter()
    wrong: Counter[Support] = Counter()
    for each in reviewed:
        named = {label for name, label in each.said if accuracy.get(name, STRANGER) > _MOSTLY_RIGHT}
        told[each.label] += bool(named)
        errors.update((each.label, label) for label in named - {each.label})
        if each.label in each.beside:
            right[each.beside[each.label]] += 1
            wrong.update(found for label, found in each.beside.items() if label != each.label)
    usual = TOGETHER / max(1, classes - 1) * _TOGETHER_PICTURES
    return Lessons(
        {pair: (usual + count) / (_TOGETHER_PICTURES + told[pair[0]]) for pair, count in errors.items()},
        _shares(right, _RIGHT, _NEIGHBOUR_PICTURES),
        _shares(wrong, _WRONG, _NEIGHBOUR_PICTURES * max(1, classes - 1)),
    )


def _shares(counts: Mapping[Support, int], usual: Mapping[Support, float], weight: float) -> dict[Support, float]:
    total = weight + sum(counts.values())
    return {each: (weight * usual[each] + counts.get(each, 0)) / total for each in Support}


def label_posterior(
    votes: Sequence[VoteFact],
    predicted: str,
    accuracy: Mapping[str, float],
    classes: int,
    beside: Mapping[str, Support] | None = None,
    lessons: Lessons | None = None,
) -> dict[str, float]:
    """Return the probability of each label that was voted for, given what all say whose word counts.

    Args:
        votes: On the picture.
        predicted: Label that was answered; empty where that is not known.
        accuracy: By contributor; others are strangers.
        classes: How many labels the model has.
        beside: Of each label that neighbours can be asked for, how far they bear it out; none where there are none.
        lessons: What reviewed pictures teach; by default those of none.
    """
    votes = [each for each in votes if not each.blocked]
    named = {each.label for each in votes if each.label}
    if not named:
        return {}
    known = lessons or Lessons()
    asked = beside if beside and _most_agreeing(votes) < OUTWEIGHED_BY else {}
    confused = {truth for truth, said in known.together if said in named}
    near = {label for label, found in asked.items() if found is not Support.NONE}
    considered = sorted((named | confused | near | {predicted}) - {""})
    total = max(classes, 2, len(considered))
    scores = [
        _of_votes(label, votes, predicted, accuracy, known, total) + _of_neighbours(asked.get(label), known)
        for label in considered
    ]
    others = total - len(considered)
    if others:  # neighbours bear none of them out
        rest = _of_neighbours(Support.NONE if asked else None, known)
        scores.append(math.log(others) + _of_votes("", votes, predicted, accuracy, known, total) + rest)
    highest = max(scores)
    shares = [math.exp(score - highest) for score in scores]
    probabilities = dict(zip(considered, (share / sum(shares) for share in shares), strict=False))
    return {label: probabilities[label] for label in sorted(named)}


def _most_agreeing(votes: Collection[VoteFact]) -> int:
    return max(Counter(each.label for each in votes if each.label).values())


def _of_votes(
    truth: str, votes: Sequence[VoteFact], predicted: str, accuracy: Mapping[str, float], lessons: Lessons, classes: int
) -> float:
    """Return the logarithm of the probability of all votes, where the label is *truth*; empty is one not named."""
    total = 0.0
    agreeing: defaultdict[str, float] = defaultdict(float)
    for each in votes:
        right = TRUSTED if each.trusted else accuracy.get(each.contributor, STRANGER)
        if each.label:
            one = math.log(right if each.label == truth else (1 - right) / (classes - 1))
            if each.trusted or each.label == truth:
                total += one
            else:
                agreeing[each.label] += one
        elif each.verdict is VoteKind.WRONG and predicted:
            total += math.log(1 - right if truth == predicted else right)
    usual = TOGETHER / (classes - 1)
    return total + sum(
        max(one_by_one, math.log(lessons.together.get((truth, label), usual))) for label, one_by_one in agreeing.items()
    )


def _of_neighbours(found: Support | None, lessons: Lessons) -> float:
    """Return the logarithm of how much likelier such neighbours are with a label that is right."""
    return math.log(lessons.right[found] / lessons.wrong[found]) if found else 0.0
