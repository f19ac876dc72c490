"""The verdict on a picture: whether what was said of it makes it a sample, and under which label. Pure.

In this order: reviewers decide, but nobody makes a sample of what nearly shows what candidates are judged on; a label
that the model does not know is proposed; findings send the picture to quarantine, and so do neighbours that leave a
label too unlikely; else so many contributors must agree as what is known of them and of the neighbours leaves open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from services.trainer.data.observing import NEAR_COPY as NEAR_COPY
from services.trainer.data.observing import Role, State, VoteKind
from services.trainer.feedback.policy import TrustPolicy

CONTRIBUTOR_HARMS = "CONTRIBUTOR_HARMS"
LIKELY_WRONG = "LIKELY_WRONG"
NEIGHBOURS_DISAGREE = "NEIGHBOURS_DISAGREE"
REVIEWERS_DIFFER = "REVIEWERS_DIFFER"
CONTRIBUTOR_BLOCKED = "CONTRIBUTOR_BLOCKED"
UNDECIDABLE = "UNDECIDABLE"
NEEDS_LABEL = "NEEDS_LABEL"
NEEDS_VOTES = "NEEDS_VOTES"
VOTES_DIFFER = "VOTES_DIFFER"
WAITS_FOR_EMBEDDING = "WAITS_FOR_EMBEDDING"
WAITS_FOR_REVIEW = "WAITS_FOR_REVIEW"

Label = TypeVar("Label")
_SCARCE = 3
"""A class with fewer members than so many times the neighbours that are asked cannot be told from its absence."""
_TOLERANCE = 1e-6
_FOUND = {
    NEAR_COPY: "it is nearly a picture that candidates are judged on",
    CONTRIBUTOR_HARMS: "the model gets worse with what its contributor says",
    LIKELY_WRONG: "a model that has not seen it is sure of another label",
}


class Support(Enum):
    """How far a picture's neighbours bear a label out."""

    NONE = "none"
    """It is rarer among them than among all."""
    SOME = "some"
    MOST = "most"
    """No other label is so much more frequent among them than among all."""


@dataclass(frozen=True)
class VoteFact:
    """What one contributor says."""

    contributor: str
    verdict: VoteKind
    label: str = ""
    """With LABEL and PROPOSAL."""
    trusted: bool = False
    blocked: bool = False


@dataclass(frozen=True)
class ObservationFacts:
    """All that is known of a picture."""

    role: Role
    predicted: str
    """Label that was answered first; empty where no answer is known."""
    votes: tuple[VoteFact, ...]
    label_posterior: Mapping[str, float]
    """Of each label that was voted for, known or not, by all votes that count, and by the neighbours."""
    encoder: bool
    """Whether the model has one, so that there will be neighbours."""
    embedded: bool
    """Whether the neighbours of the picture are known, among them how many there are of each label voted for."""
    lift: Mapping[str, float]
    """By label: its share among the neighbours, of its share among all."""
    class_members: Mapping[str, int]
    """By label: how many there are that a neighbour could be among."""
    findings: frozenset[str]
    known_labels: frozenset[str]
    proven: frozenset[str] = frozenset()
    """Contributors whose labels others have confirmed, so often that they count as known."""
    harmful: frozenset[str] = frozenset()
    """Contributors with whose samples the model gets worse: their word is not counted."""


@dataclass(frozen=True)
class Verdict:
    """How far a picture has come, and why."""

    state: State
    label: str
    """Accepted, or leading; empty where there is none."""
    reason: str
    """Stable word; empty where the state says all."""
    detail: str
    """Sentence with the figures."""


def judge(facts: ObservationFacts, policy: TrustPolicy) -> Verdict:
    """Return the verdict on a picture."""
    votes = [each for each in facts.votes if not each.blocked]
    if facts.votes and not votes:
        return Verdict(State.QUARANTINED, "", CONTRIBUTOR_BLOCKED, "all who said something of it are blocked")
    decided = _reviewed([each for each in votes if each.trusted], facts)
    if decided is not None:
        return _unless_copied(decided, facts)
    leading = _leading(votes, facts)
    if facts.role is Role.JUDGE:  # what judges a model is never what users say
        waits = Verdict(State.PENDING, leading, WAITS_FOR_REVIEW, "candidates are judged on it: a reviewer must say")
        return waits if votes else Verdict(State.CAPTURED, "", "", "")
    if not votes:
        return Verdict(State.CAPTURED, "", "", "")
    if not leading:
        return Verdict(State.PENDING, "", NEEDS_LABEL, "nobody has said what it is")
    if leading not in facts.known_labels:
        return _proposed(leading)
    return _by_quorum(leading, votes, facts, policy)


def _reviewed(trusted: Sequence[VoteFact], facts: ObservationFacts) -> Verdict | None:
    """Return what reviewers decide; None where none of them does."""
    words = {(each.verdict, each.label) for each in trusted if each.verdict is not VoteKind.WRONG}
    if len(words) > 1:
        words.discard((VoteKind.UNDECIDABLE, ""))  # who cannot tell does not contradict who can
    if not words:
        return None
    if len(words) > 1:
        said = ", ".join(sorted(label or kind.lower() for kind, label in words))
        return Verdict(State.QUARANTINED, _leading(trusted, facts), REVIEWERS_DIFFER, f"reviewers say {said}")
    kind, label = words.pop()
    if kind is VoteKind.REJECT:
        return Verdict(State.REJECTED, "", "", "a reviewer does not want it")
    if kind is VoteKind.UNDECIDABLE:
        return Verdict(State.REJECTED, "", UNDECIDABLE, "a reviewer says that nobody can tell what it is")
    if label not in facts.known_labels:
        return _proposed(label)
    return Verdict(State.ACCEPTED, label, "", f"a reviewer says {label}")


def _unless_copied(decided: Verdict, facts: ObservationFacts) -> Verdict:
    """Return what reviewers decide; to learn a near copy of what judges would spoil the judgement, whoever wants it."""
    if decided.state is State.ACCEPTED and facts.role is Role.TRAIN and NEAR_COPY in facts.findings:
        return Verdict(State.QUARANTINED, decided.label, NEAR_COPY, _FOUND[NEAR_COPY])
    return decided


def _leading(votes: Sequence[VoteFact], facts: ObservationFacts) -> str:
    """Return the likeliest label that was voted for; of equally likely ones the first by name; empty for none."""
    named = {each.label for each in votes if each.label}
    return min(named, key=lambda label: (-facts.label_posterior.get(label, 0.0), label), default="")


def _proposed(label: str) -> Verdict:
    return Verdict(State.PROPOSED, label, "", f"the model does not know the label {label[:100]}")


def _by_quorum(label: str, votes: Sequence[VoteFact], facts: ObservationFacts, policy: TrustPolicy) -> Verdict:
    if facts.encoder and not facts.embedded:
        return Verdict(State.PENDING, label, WAITS_FOR_EMBEDDING, "its neighbours are not known yet")
    for finding, sentence in _FOUND.items():
        if finding in facts.findings:
            return Verdict(State.QUARANTINED, label, finding, sentence)
    probability = facts.label_posterior.get(label, 0.0)
    sure = probability >= policy.posterior - _TOLERANCE
    likely = f"it is {label} with probability {probability:.2f}; it takes {policy.posterior:g}"
    fits = support(facts.lift, facts.class_members, policy).get(label) if facts.encoder else None
    about = f"whose neighbours have that label {facts.lift.get(label, 0.0):.1f} times as often as others"
    if fits is Support.NONE and not sure:
        return Verdict(State.QUARANTINED, label, NEIGHBOURS_DISAGREE, f"by all votes on a picture {about}, {likely}")
    agreeing = {each.contributor for each in votes if each.label == label} - facts.harmful
    count, known = len(agreeing), len(agreeing & facts.proven)
    instead = ""
    if fits is None:
        wanted, about = policy.quorum_unknown, "without neighbours to ask"
    else:
        wanted = policy.quorum if known >= policy.quorum else max(policy.quorum, policy.quorum_unknown)
        instead = f", or {policy.quorum} whose labels others have confirmed before" if wanted > policy.quorum else ""
    if count < wanted:
        detail = f"{count} say {label}, {about}; it takes {wanted}{instead}"
        return Verdict(State.PENDING, label, NEEDS_VOTES, detail)
    if not sure:
        return Verdict(State.PENDING, label, VOTES_DIFFER, f"by all votes {likely}")
    return Verdict(State.ACCEPTED, label, "", f"{count} say {label}, {about}")


def support(lift: Mapping[Label, float], members: Mapping[Label, int], policy: TrustPolicy) -> dict[Label, Support]:
    """Return how far neighbours bear a label out, for each that has enough members to be told from its absence.

    Args:
        lift: By label: its share among the neighbours, of its share among all; 0 where it is not there.
        members: By label: how many there are that a neighbour could be among.
        policy: Says how many neighbours are asked.
    """
    highest = max(lift.values(), default=0.0)
    found = {}
    for label, count in members.items():
        if count >= _SCARCE * policy.neighbours:
            own = lift.get(label, 0.0)
            found[label] = Support.NONE if own < 1 else Support.MOST if own == highest else Support.SOME
    return found
