"""Whether a candidate is proved to fulfil its goal: one decision from what both versions answered to judged contents.

Two streams are evidence: the hold-out, and contents of the traffic. The mean of their e-values is an e-value, so that
either can carry a candidate, at the price of ln 2; evidence of harm on either refuses it.
"""

import math
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from services.trainer.loop.cycle_payloads import GateBegun, GateDecided
from services.trainer.loop.guards import HARM, not_measured, violation, without_bound
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.refusals import Refusal
from services.trainer.loop.state import Cycle, Gate, LoopState
from services.trainer.loop.values import GateFigures, GateOutcome, Goal, Paired, Ruling
from services.trainer.statistics.betting import LOSS, TIE, WIN, highest_log_e, highest_log_mean_e
from services.trainer.statistics.budget import error_share


def threshold_missing(cycle: Cycle, policy: LoopPolicy) -> str:
    """Return the key of a threshold that the policy lacks for this cycle; empty where it has all.

    A deletion has an error of its own, and needs the guards alone.
    """
    return "gate.error" if policy.gate.error is None and not cycle.deletion else without_bound(policy.guard)


def begin(state: LoopState, cycle: Cycle, policy: LoopPolicy) -> GateBegun:
    """Return what the candidate of *cycle*, which is the next at the gate, must prove.

    All candidates of a model share one error; those of a deletion have one of their own.
    """
    if cycle.deletion:
        deletion = policy.deletion
        return GateBegun(candidate_count=state.judged, error_share=deletion.error, margin=deletion.margin)
    assert policy.gate.error is not None, "threshold_missing is asked before"
    margin = policy.gate.margin_not_worse if cycle.goal == Goal.NOT_WORSE else 0.0
    count = state.judged + 1
    return GateBegun(candidate_count=count, error_share=error_share(policy.gate.error, count), margin=margin)


def pair(outcomes: NDArray[np.int8], margin: float) -> Paired:
    """Return the counts of one stream with the evidence both ways.

    Args:
        outcomes: WIN, TIE or LOSS of each content, (n,), in an order that does not depend on who is right.
        margin: By how much the candidate may be worse.
    """
    wins, ties, losses = (int((outcomes == kind).sum()) for kind in (WIN, TIE, LOSS))
    better, worse = highest_log_e(outcomes, margin), highest_log_e(-outcomes, -margin)
    return Paired(wins=wins, ties=ties, losses=losses, log_e_better=better, log_e_worse=worse)


def joint_log_e(holdout: NDArray[np.int8], live: NDArray[np.int8], margin: float, policy: LoopPolicy) -> float:
    """Return the highest evidence for the candidate from the streams that the policy lets count.

    Args:
        holdout: As `pair` takes them.
        live: As *holdout*.
        margin: By how much the candidate may be worse.
        policy: Of the model.
    """
    if policy.gate.evidence == "live":
        return highest_log_e(live, margin)
    return highest_log_mean_e(holdout, live, margin)


def decide(figures: GateFigures, bound: float, policy: LoopPolicy) -> GateDecided | None:
    """Return what *figures* say of the candidate; None while more contents could still tell.

    Args:
        figures: All that was measured.
        bound: Evidence that the candidate needs, as a logarithm.
        policy: Of the model, with all thresholds.
    """
    for rule, stream in (("WORSE_ON_HOLDOUT", figures.holdout), ("WORSE_ON_LIVE", figures.live)):
        if stream.log_e_worse >= -math.log(HARM):
            return _refused(Ruling(rule=rule, figure=stream.log_e_worse, bound=-math.log(HARM)))
    spoiled = violation(figures.guards, policy.guard)
    if spoiled is not None:
        return _refused(spoiled)
    if figures.guards.impossible:
        ruling = Ruling(rule="NOT_MEASURABLE", subject=f"guard.{figures.guards.impossible[0]}")
        return GateDecided(outcome=GateOutcome.EXHAUSTED, ruling=ruling)
    if figures.log_e >= bound and not not_measured(figures.guards, policy.guard):
        ruling = Ruling(rule="EVIDENCE", figure=figures.log_e, bound=bound)
        return GateDecided(outcome=GateOutcome.PASSED, ruling=ruling)
    count, most = figures.holdout.count + figures.live.count, policy.gate.most_labels
    return _exhausted(figures, policy, "gate.most_labels", count, most) if count >= most else None


def give_up(gate: Gate, begin_time: datetime, policy: LoopPolicy, now: datetime) -> GateDecided | None:
    """Return the decision for a candidate that has been judged for too long; None where it has not."""
    age = now - begin_time
    if age >= timedelta(days=policy.gate.most_days):
        return _exhausted(gate.figures, policy, "gate.most_days", age / timedelta(days=1), policy.gate.most_days)
    idle = now - gate.move_time if gate.move_time else age
    if idle >= timedelta(hours=policy.gate.idle_hours):
        return _exhausted(gate.figures, policy, "gate.idle_hours", idle / timedelta(hours=1), policy.gate.idle_hours)
    return None


def outgrown(gate: Gate, cycle: Cycle, accepted: int, policy: LoopPolicy) -> GateDecided | None:
    """Return the decision for a candidate whose successor would know far more; None where none would.

    To stop early for want of evidence never promotes wrongly; what waits longer keeps a better one from its turn. One
    that is not measured yet has its chance first.

    Args:
        gate: Of the candidate.
        cycle: Has chosen samples, where it was not proposed.
        accepted: Samples now.
        policy: Of the model.
    """
    grown, bound = accepted - cycle.accepted, policy.gate.outgrown_by * max(1, cycle.accepted)
    waits = not cycle.snapshot or cycle.deletion or not_measured(gate.figures.guards, policy.guard)
    if waits or grown < max(bound, policy.trigger.accepted):
        return None
    return _exhausted(gate.figures, policy, "gate.outgrown_by", grown, bound)


def spent(state: LoopState, cycle: Cycle, policy: LoopPolicy) -> GateDecided | None:
    """Return the decision for a candidate that need not be better where earlier ones have used the margin up.

    Each may be worse by a margin than the one before it; without a sum, ten of them could be worse by ten. None where
    the candidate may be judged.
    """
    margin = policy.gate.margin_not_worse
    if cycle.goal == Goal.BETTER or cycle.deletion or state.given_up + margin <= margin:
        return None
    return _refused(
        Ruling(rule="NOT_WORSE_SPENT", subject="gate.margin_not_worse", figure=state.given_up + margin, bound=margin)
    )


def unanswered(refusal: Refusal | None, cycle: Cycle) -> GateDecided | None:
    """Return the decision where a version does not answer; None where both do.

    That the champion does not says nothing of the candidate, which is then not measured.
    """
    if refusal is None:
        return None
    outcome = GateOutcome.REFUSED if refusal.version == cycle.candidate else GateOutcome.EXHAUSTED
    return GateDecided(outcome=outcome, ruling=Ruling(rule=refusal.rule, subject=f"version {refusal.version}"))


def refuse_without_threshold(key: str) -> GateDecided:
    """Return the decision for a candidate that the policy has no threshold for."""
    return _refused(Ruling(rule="NO_THRESHOLD", subject=key))


def _refused(ruling: Ruling) -> GateDecided:
    return GateDecided(outcome=GateOutcome.REFUSED, ruling=ruling)


def _exhausted(figures: GateFigures, policy: LoopPolicy, key: str, figure: float, bound: float) -> GateDecided:
    missing = not_measured(figures.guards, policy.guard)
    ruling = Ruling(rule="NOT_PROVED", subject=key, figure=figure, bound=bound)
    if missing:  # how long it took is no figure of the guard
        ruling = Ruling(rule="NOT_MEASURED", subject=missing)
    return GateDecided(outcome=GateOutcome.EXHAUSTED, ruling=ruling)
