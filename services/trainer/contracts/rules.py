"""What the rules mean by which the loop refuses, ends and declines: a sentence for each, and what to change."""

from dataclasses import dataclass

from services.trainer.loop.payloads import (
    PromotionWished,
    ProposalWished,
    RejectionWished,
    RollbackWished,
    TriggerWished,
    Wish,
)
from services.trainer.loop.values import Ruling

NO_HOLDOUT_CHANGE = (
    "bring the set that the champion has learnt onto this machine, or name one with the model's labels in "
    "judging.holdout"
)
_EVIDENCE = "evidence {figure:.4g}, refused from {bound:.4g}"
_COMPARED = "{figure:.4g}, and {subject} is {bound:.4g}"


@dataclass(frozen=True)
class Rule:
    """What a rule means to who reads it; both texts may name `{subject}`, `{figure}` and `{bound}` of a ruling."""

    meaning: str
    change: str = ""
    """What to do for another outcome; empty where somebody has wanted this one, or the loop goes on by itself."""


RULES = {
    # Of the gate
    "WORSE_ON_HOLDOUT": Rule(f"it is worse on pictures that no version learns from: {_EVIDENCE}"),
    "WORSE_ON_LIVE": Rule(f"it is worse on what users send: {_EVIDENCE}"),
    "CLASS_DROP": Rule(
        f"it loses more on one class than {{subject}} allows: {_EVIDENCE}",
        "have more pictures of that class reviewed, or raise {subject}",
    ),
    "CALIBRATION_RISE": Rule(
        f"its probabilities fit its answers worse by {_COMPARED}", "raise {subject} if that may be"
    ),
    "LATENCY_RATIO": Rule(
        f"its time for a picture, of the champion's, is {_COMPARED}", "raise {subject} if that may be"
    ),
    "SIZE_RATIO": Rule(f"its size, of the champion's, is {_COMPARED}", "raise {subject} if that may be"),
    "CORRUPTED_DROP": Rule(f"on spoilt pictures it is worse by {_COMPARED}", "raise {subject} if that may be"),
    "HOLDOUT_DROP": Rule(
        f"on pictures that no version learns from it is worse by {_COMPARED}", "raise {subject} if that may be"
    ),
    "NOT_PROVED": Rule(
        "nothing proved that it is as good as it must be: {figure:.4g} of the {bound:.4g} that {subject} allows",
        "review more of the pictures that the gate asks for, or raise {subject}",
    ),
    "NOT_MEASURED": Rule(
        "{subject} was not measured before the gate ended",
        "see that the analyst runs and has what it measures by, or raise the limits of the gate in the policy",
    ),
    "NOT_MEASURABLE": Rule(
        "{subject} can never be measured: nothing here tells what it takes of both versions",
        "train the candidate from the champion, or let it serve past the gate with `aimass loop promote`",
    ),
    "NOT_WORSE_SPENT": Rule(
        "with it, versions that need not be better could have become worse by {figure:.4g} in all, and {subject} is "
        "{bound:.4g}",
        "raise {subject}, or let it prove that it is better",
    ),
    "NO_THRESHOLD": Rule("the policy does not say what it must reach", "set {subject} in the policy"),
    "DOES_NOT_ANSWER": Rule("{subject} did not answer what both are compared by", "see the log of inference"),
    "OTHER_LABELS": Rule("{subject} tells other classes apart", "propose a version with the champion's labels"),
    "SET_CHANGED": Rule("pictures that {subject} was to be judged on are lost or changed", "restore the hold-out"),
    # Of the trial
    "NO_TRAFFIC": Rule(
        "{figure:.4g} requests came to try it, and it takes {bound:.4g}", "set {subject} to true to let it pass then"
    ),
    "SHADOW_DISAGREES": Rule(
        "it agrees with the champion on {figure:.4g} of what it was asked, and it takes {bound:.4g}",
        "lower {subject} if that may be",
    ),
    "SHADOW_FAILS": Rule(f"as a shadow, more of its requests fail by {_COMPARED}", "see the log of inference"),
    "SHADOW_SLOW": Rule(f"as a shadow, its time of the champion's is {_COMPARED}", "raise {subject} if that may be"),
    "CANARY_FAILS": Rule(f"as a canary, more of its requests fail by {_COMPARED}", "see the log of inference"),
    "CANARY_SLOW": Rule(f"as a canary, its time of the champion's is {_COMPARED}", "raise {subject} if that may be"),
    "OTHER_PREPROCESS_SPEC": Rule("it takes other pixels than the champion, so that it is tried as no shadow"),
    # Of cycles that end otherwise
    "CANDIDATE_GONE": Rule("inference has not had {subject}, the candidate, for {figure:.0f} seconds", "load it again"),
    "CHAMPION_GONE": Rule(
        "inference has not had {subject}, which serves, for {figure:.0f} seconds",
        "load it again, or let another version serve",
    ),
    "DEADLINE": Rule("an earlier version takes its place: the deadline of a deletion has passed"),
    "DELETION": Rule(
        "pictures are to be deleted, and what is trained or judged meanwhile may have learnt from them; the next cycle "
        "begins without them"
    ),
    "PROMOTED_BY_HAND": Rule("somebody lets another version serve"),
    "REJECTED_BY_HAND": Rule("somebody has rejected the candidate"),
    "ROLLED_BACK": Rule("somebody lets the version before serve again"),
    "RUN_CANCELLED": Rule("somebody has cancelled its run"),
    "RUN_FAILED": Rule("its training has failed", "see run {subject} in `aimass runs`"),
    "TOO_LONG": Rule(
        "to make its candidate took {figure:.4g} minutes, and {subject} is {bound:.4g}", "raise {subject}"
    ),
    "TRAFFIC_CHANGED": Rule("which versions answer was changed outside the loop, and that stays as it is"),
    # Of what is asked for by hand
    "CYCLE_UNDER_WAY": Rule("a cycle is under way", "wait for its end, or end it with `aimass loop reject`"),
    "NO_CANDIDATE": Rule(
        "no cycle is under way that has {subject} as its candidate",
        "name the one that `aimass loop` shows, if there is one",
    ),
    "NO_CHAMPION": Rule("the version that serves is not ready", "load it again, or let another version serve"),
    "NO_HOLDOUT": Rule("there is no hold-out, without which no candidate can be judged", NO_HOLDOUT_CHANGE),
    "NO_STRATEGY": Rule(
        "no strategy that may be used can train this model now",
        "allow another in retrain.strategies, or more seconds in retrain.budget_seconds",
    ),
    "NO_VERSION_BEFORE": Rule(
        "no other version is ready that could serve again and was not gone back from",
        "name the one that shall serve with `aimass loop promote`, or publish one",
    ),
    "NOT_READY": Rule(
        "{subject} is not there, or is not ready to answer", "name one that `aimass models` shows as ready"
    ),
    "STABLE_ALREADY": Rule("{subject} serves already", "name another version"),
    "TAINTED": Rule("{subject} has learnt from what must be deleted", "name a version that has not"),
    "TRIAL_UNDER_WAY": Rule(
        "a version is on trial that the loop has not put there", "end its shadow or canary, see `aimass traffic`"
    ),
}
"""By name. Other rules are reasons of errors by which something failed."""

_ASKED = {
    TriggerWished: "a new cycle",
    ProposalWished: "the proposal of {subject}",
    PromotionWished: "the promotion of {subject}",
    RejectionWished: "the rejection of {subject}",
    RollbackWished: "the rollback",
}


def explain(ruling: Ruling) -> str:
    """Return in a sentence why a cycle ended as it did, and what to change."""
    rule = RULES.get(ruling.rule)
    if rule is None:
        about = f" ({ruling.subject})" if ruling.subject else ""
        return f"{ruling.rule or 'no rule'}{about}; the trainer's log says more"
    return _sentence(rule, ruling.subject, ruling.figure or 0.0, ruling.bound or 0.0)


def explain_declined(model: str, wish: Wish, rule: str) -> str:
    """Return in a sentence why the loop of *model* declines *wish*, and what to change."""
    version = getattr(wish, "version", 0)
    subject = f"version {version}" if version else "a version"
    asked = _ASKED[type(wish)].format(subject=subject)
    return f"the loop of model {model!r} declines {asked}: {_sentence(RULES.get(rule, Rule(rule)), subject)}"


def _sentence(rule: Rule, subject: str, figure: float = 0.0, bound: float = 0.0) -> str:
    parts = (rule.meaning, rule.change) if rule.change else (rule.meaning,)
    return "; ".join(parts).format(subject=subject, figure=figure, bound=bound)
