"""The next step of a cycle that is under way."""

import hashlib
from datetime import datetime, timedelta

from services.trainer.loop.cycle_payloads import (
    CANDIDATE_GONE,
    CHAMPION_GONE,
    LEFT_ALONE,
    TRAFFIC_CHANGED,
    CycleEnded,
    GateDecided,
    GateMeasured,
    PinIntended,
    PromotionIntended,
    PublicationIntended,
    RunEnded,
    WithdrawalIntended,
)
from services.trainer.loop.facts import Absence, Facts, TrafficFact
from services.trainer.loop.gate import (
    begin,
    decide,
    give_up,
    outgrown,
    refuse_without_threshold,
    spent,
    threshold_missing,
    unanswered,
)
from services.trainer.loop.payloads import (
    DeletionExpired,
    Payload,
    PromotionWished,
    RejectionWished,
    RollbackWished,
    WishDeclined,
)
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.state import Cycle, Ending, Gate, LoopState, Stage
from services.trainer.loop.steps import Action, CancelRun, CreateRun, MakeSnapshot, PublishCandidate, Record
from services.trainer.loop.strategy import choose_strategy
from services.trainer.loop.trial import plan_canary, plan_shadow
from services.trainer.loop.values import Outcome, Ruling, Wanted
from services.trainer.loop.versions import goes_back, unfit, version_before

_FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED")
ABSENT_SECONDS = 60.0
"""In which inference answers without a version of the cycle before that ends: a folder that is moved may come back."""
_MEASURE_GAP = timedelta(seconds=10)
"""Between two events of figures that decide nothing."""


def plan_cycle(state: LoopState, cycle: Cycle, facts: Facts, policy: LoopPolicy, now: datetime) -> Action | None:
    """Return the next step of *cycle*; None where there is nothing to do but to wait.

    Args:
        state: Of the loop, which intends no change of the traffic.
        cycle: Under way.
        facts: Read after the last event was.
        policy: Of the model.
        now: With its zone.
    """
    traffic = facts.traffic
    if cycle.promoted:
        return _end(cycle, Ending(Outcome.PROMOTED, Ruling()), traffic)
    if traffic is not None and traffic.generation != cycle.generation:
        ruling = Ruling(rule=TRAFFIC_CHANGED, figure=traffic.generation, bound=cycle.generation)
        return _end(cycle, Ending(Outcome.ABANDONED, ruling), traffic)
    if any(not each.erased for each in state.deletions):
        return _end(cycle, _abandoned("DELETION"), traffic)
    if state.wishes:
        answer = _answer(state, cycle, traffic)
        if answer is not None:
            return _end(cycle, answer, traffic) if isinstance(answer, Ending) else Record(answer)
    expired = _at_deadline(state, cycle, traffic, policy, now)
    if expired is not None:
        return _end(cycle, expired, traffic) if isinstance(expired, Ending) else Record(expired)
    if cycle.ending is not None:
        return _end(cycle, cycle.ending, traffic)
    if facts.absence is not None and facts.absence.seconds >= ABSENT_SECONDS:
        return _end(cycle, _without(facts.absence, cycle), traffic)
    if cycle.stage in (Stage.SNAPSHOT, Stage.RUN, Stage.PUBLISH):
        return _make_candidate(state, cycle, facts, policy, now)
    return _prove_candidate(state, cycle, facts, policy, now)


def _end(cycle: Cycle, ending: Ending, traffic: TrafficFact | None) -> Action | None:
    """Leave nothing behind, then end: the run is cancelled and the candidate withdrawn from the traffic."""
    if cycle.running:
        return CancelRun(cycle.running, ending.ruling.rule)
    if cycle.in_traffic and ending.ruling.rule not in LEFT_ALONE:
        if traffic is None:
            return None
        return Record(WithdrawalIntended(wanted=Wanted(stable=cycle.champion), generation=traffic.generation))
    ended = CycleEnded(outcome=ending.outcome, stage=cycle.stage, ruling=ending.ruling, wish=ending.wish)
    return Record(ended)


def _without(absence: Absence, cycle: Cycle) -> Ending:
    rule = CHAMPION_GONE if absence.version == cycle.champion else CANDIDATE_GONE
    ruling = Ruling(rule=rule, subject=f"version {absence.version}", figure=absence.seconds, bound=ABSENT_SECONDS)
    return Ending(Outcome.ABANDONED, ruling)


def _abandoned(rule: str) -> Ending:
    return Ending(Outcome.ABANDONED, Ruling(rule=rule))


def _answer(state: LoopState, cycle: Cycle, traffic: TrafficFact | None) -> Payload | Ending | None:
    """Return what becomes of the oldest wish; an ending that does not grant it leaves it for when the cycle is over."""
    number, wish = state.wishes[0].number, state.wishes[0].wish
    match wish:
        case RejectionWished():
            if wish.version in (0, cycle.candidate):
                return Ending(Outcome.REFUSED, Ruling(rule="REJECTED_BY_HAND"), wish=number)
            return WishDeclined(wish=number, rule="NO_CANDIDATE")
        case PromotionWished():
            if traffic is None:
                return None
            rule = unfit(wish.version, state, traffic)
            if rule:
                return WishDeclined(wish=number, rule=rule)
            if wish.version != cycle.candidate:
                return _abandoned("PROMOTED_BY_HAND")
            wanted = Wanted(stable=wish.version)
            return PromotionIntended(wanted=wanted, generation=traffic.generation, authority=number)
        case RollbackWished():
            if traffic is None:
                return None
            if version_before(state, traffic):
                return _abandoned("ROLLED_BACK")
            return WishDeclined(wish=number, rule="NO_VERSION_BEFORE")
    return WishDeclined(wish=number, rule="CYCLE_UNDER_WAY")


def _at_deadline(
    state: LoopState, cycle: Cycle, traffic: TrafficFact | None, policy: LoopPolicy, now: datetime
) -> Payload | Ending | None:
    """Return what becomes of the successor of a tainted version that has not proved itself by the deadline."""
    deletion = next((each for each in state.deletions if each.id == cycle.deletion), None)
    if deletion is None or now < deletion.deadline or traffic is None:
        return None
    if not deletion.expired:
        return DeletionExpired(deletion_id=deletion.id)
    if goes_back(deletion, state, traffic, policy):
        return _abandoned("DEADLINE")
    if _may_serve_unproved(cycle) and not unfit(cycle.candidate, state, traffic):
        wanted = Wanted(stable=cycle.candidate)
        return PromotionIntended(wanted=wanted, generation=traffic.generation, authority=deletion.expired)
    return None


def _may_serve_unproved(cycle: Cycle) -> bool:
    """Whether nothing worse is known of the candidate than that the gate has refused it."""
    ending = cycle.ending
    return cycle.candidate != 0 and (
        ending is None or (cycle.stage == Stage.GATE and ending.outcome == Outcome.REFUSED)
    )


def _make_candidate(state: LoopState, cycle: Cycle, facts: Facts, policy: LoopPolicy, now: datetime) -> Action | None:
    minutes = (now - cycle.making_time) / timedelta(minutes=1)
    if minutes >= policy.retrain.most_minutes:
        ruling = Ruling(
            rule="TOO_LONG", subject="retrain.most_minutes", figure=minutes, bound=policy.retrain.most_minutes
        )
        return _end(cycle, Ending(Outcome.FAILED, ruling), facts.traffic)
    if cycle.stage == Stage.SNAPSHOT:
        return MakeSnapshot(cycle.number)
    if cycle.stage == Stage.RUN:
        return _run(state, cycle, facts, policy)
    traffic, attempt = facts.traffic, cycle.attempt
    assert attempt is not None, "a cycle publishes what a run has made"
    if traffic is None:
        return None
    if not traffic.stable:
        return Record(PinIntended(wanted=Wanted(stable=cycle.champion), generation=traffic.generation))
    if not cycle.publication_id:
        publication_id = hashlib.sha256(f"{state.model}/{cycle.number}/{attempt.run_id}".encode()).hexdigest()[:32]
        return Record(PublicationIntended(publication_id=publication_id, run_id=attempt.run_id))
    return PublishCandidate(cycle.publication_id, attempt.run_id)


def _run(state: LoopState, cycle: Cycle, facts: Facts, policy: LoopPolicy) -> Action | None:
    attempt, run = cycle.attempt, facts.run
    if attempt is not None and cycle.running:
        if run is None or run.run_id != attempt.run_id or run.state not in _FINAL_STATES:
            return None
        return Record(RunEnded(run_id=run.run_id, state=run.state, metrics=dict(run.metrics)))
    if attempt is not None and attempt.state == "CANCELLED":
        return _end(cycle, _abandoned("RUN_CANCELLED"), facts.traffic)
    tried = {each.strategy for each in cycle.attempts}
    strategy = choose_strategy(state, facts, policy, wished=cycle.wished_strategy, tried=tried)
    if facts.origin is None and facts.traffic is None:
        return None  # which run the champion comes from is seen once inference is back
    if strategy is None:
        rule = (attempt.rule or "RUN_FAILED") if attempt else "NO_STRATEGY"
        ruling = Ruling(rule=rule, subject=attempt.run_id if attempt else "")
        return _end(cycle, Ending(Outcome.FAILED, ruling), facts.traffic)
    source = facts.origin.run_id if facts.origin is not None else ""
    return CreateRun(cycle.number, len(cycle.attempts), strategy, cycle.snapshot, source)


def _prove_candidate(state: LoopState, cycle: Cycle, facts: Facts, policy: LoopPolicy, now: datetime) -> Action | None:
    if cycle.stage == Stage.GATE:
        payload = _judge(state, cycle, facts, policy, now)
        return None if payload is None else Record(payload)
    if facts.traffic is None:
        return None
    if cycle.stage == Stage.SHADOW:
        payload = plan_shadow(cycle, facts, facts.traffic, policy.trial, now)
    elif not cycle.cleared:
        payload = plan_canary(cycle, facts, facts.traffic, policy.trial, now)
    else:
        wanted = Wanted(stable=cycle.candidate)
        payload = PromotionIntended(wanted=wanted, generation=facts.traffic.generation, authority=cycle.passed)
    return None if payload is None else Record(payload)


def _judge(state: LoopState, cycle: Cycle, facts: Facts, policy: LoopPolicy, now: datetime) -> Payload | None:
    """Return the next event of the gate. What decides is always recorded before the decision is."""
    missing = threshold_missing(cycle, policy)
    if missing:
        return refuse_without_threshold(missing)
    gate = cycle.gate
    if gate is None:
        return spent(state, cycle, policy) or begin(state, cycle, policy)
    return (
        unanswered(facts.refusal, cycle)
        or _decision(gate, cycle, facts, policy, now)
        or _measurement(gate, facts, policy, now)
    )


def _decision(gate: Gate, cycle: Cycle, facts: Facts, policy: LoopPolicy, now: datetime) -> GateDecided | None:
    decided = decide(gate.figures, gate.begun.log_e_bound, policy) if gate.measure_time else None
    return decided or give_up(gate, cycle.stage_time, policy, now) or outgrown(gate, cycle, facts.accepted, policy)


def _measurement(gate: Gate, facts: Facts, policy: LoopPolicy, now: datetime) -> GateMeasured | None:
    figures = facts.gate
    if figures is None or figures == gate.figures:
        return None
    waited = gate.measure_time is None or now - gate.measure_time >= _MEASURE_GAP
    decisive = decide(figures, gate.begun.log_e_bound, policy) is not None
    return GateMeasured(figures=figures) if waited or decisive else None
