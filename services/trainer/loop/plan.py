"""The next step of the loop, from where it is and what is the case.

It is asked again after every step and never needs to remember: a process that dies anywhere is followed by one that
asks the same question.
"""

from collections.abc import Mapping
from datetime import datetime

from services.trainer.feedback.capturing import shortage
from services.trainer.loop.cycle_payloads import (
    CanaryMoved,
    CycleStarted,
    MoveAbandoned,
    PromotionIntended,
    RollbackIntended,
    Withdrawn,
)
from services.trainer.loop.facts import Facts, TrafficFact
from services.trainer.loop.payloads import (
    AlarmRaised,
    CapturePaused,
    CaptureResumed,
    DeletionExpired,
    DeletionStuck,
    Payload,
    PolicyChanged,
    PromotionWished,
    ProposalWished,
    RejectionWished,
    TrafficChanged,
    TriggerWished,
    WishDeclined,
)
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.loop.stages import plan_cycle
from services.trainer.loop.state import Deletion, LoopState, Move, Wished
from services.trainer.loop.steps import Action, EraseRows, EraseVersions, Record, SetTraffic
from services.trainer.loop.strategy import choose_strategy
from services.trainer.loop.triggers import due, gap_over
from services.trainer.loop.values import Goal, Outcome, Reason, Wanted
from services.trainer.loop.versions import clean_version, goes_back, unfit, version_before

NO_HOLDOUT = "NO_HOLDOUT"
"""Rule by which nothing is begun: no set is there that a candidate could be judged on."""
_ROOM_TO_RESUME = 1.1
"""Times the least free bytes, so that the log is not filled at the border; gateways, which are told what `shortage`
says at each moment, may capture again a little before."""


def plan(state: LoopState, facts: Facts, policy: LoopPolicy, now: datetime) -> Action | None:
    """Return the next step; None where there is nothing to do but to wait.

    Args:
        state: All events folded.
        facts: Read after the last event was.
        policy: Of the model.
        now: With its zone.
    """
    news = _news(state, facts, policy)
    if news is not None:
        return Record(news)
    if state.move is not None:
        return _carry_out(state.move, facts)
    if state.cycle is not None:
        return plan_cycle(state, state.cycle, facts, policy, now)
    return _plan_idle(state, facts, policy, now)


def _news(state: LoopState, facts: Facts, policy: LoopPolicy) -> Payload | None:
    """Return what has changed around the loop."""
    if policy.digest != state.policy_digest:
        return PolicyChanged(digest=policy.digest)
    traffic = facts.traffic
    if traffic is not None and state.move is None and traffic.generation != state.generation:
        return TrafficChanged(
            generation=traffic.generation,
            stable=traffic.stable,
            previous=traffic.previous,
            canary=traffic.canary,
            canary_share=traffic.canary_share,
            shadow=traffic.shadow,
        )
    for alarm in facts.alarms:
        if alarm.number > state.heard.get(alarm.detector, 0):
            return AlarmRaised(
                alarm=alarm.number, detector=alarm.detector, level=alarm.level, threshold=alarm.threshold
            )
    room = _ROOM_TO_RESUME if state.paused == "DISK_FULL" else 1.0
    pressure = shortage(policy.capture, facts.stored_bytes, facts.free_bytes, room)
    if pressure == state.paused:
        return None
    return CapturePaused(reason=pressure) if pressure else CaptureResumed()


def _carry_out(move: Move, facts: Facts) -> Action | None:
    """Change the traffic as intended, unless somebody else was faster; that it has changed is seen at the next look."""
    traffic = facts.traffic
    if traffic is None:
        return None
    if traffic.fits(move.wanted):
        if move.made is not CanaryMoved:
            return Record(move.made(generation=traffic.generation))
        return None if facts.canary is None else Record(CanaryMoved(generation=traffic.generation, begin=facts.canary))
    if traffic.generation != move.generation:
        return Record(MoveAbandoned(generation=traffic.generation))
    return SetTraffic(move.wanted, move.generation, withdrawal=move.made is Withdrawn)


def _plan_idle(state: LoopState, facts: Facts, policy: LoopPolicy, now: datetime) -> Action | None:
    for deletion in state.deletions:
        if not deletion.erased:
            return EraseRows(deletion.id)
    traffic = facts.traffic
    if traffic is None:
        return None
    if state.wishes:
        return Record(_answer(state, state.wishes[0], facts, traffic, policy))
    for deletion in state.deletions:
        if not {traffic.champion, traffic.on_trial} & set(deletion.versions):
            return EraseVersions(deletion.id, deletion.versions)
    tainting = _tainting(state, traffic)
    obstacle = _cannot_begin(state, facts, traffic, policy)
    if tainting is not None and now >= tainting.deadline:
        payload = _after_deadline(state, tainting, traffic, policy, obstacle)
        if payload is not None:
            return Record(payload)
    if obstacle:
        return None
    if tainting is not None and gap_over(state, policy, now) and (not tainting.refused or tainting.expired):
        return Record(_start(state, facts, traffic, Reason.DELETION, policy, {}))
    trigger = due(state, facts, policy, now)
    return Record(_start(state, facts, traffic, trigger.reason, policy, trigger.figures)) if trigger else None


def _after_deadline(
    state: LoopState, deletion: Deletion, traffic: TrafficFact, policy: LoopPolicy, obstacle: str
) -> Payload | None:
    """Return what becomes of a tainted champion whose time is over; None where a successor is made and promoted.

    Where none can be made, any clean version must do; where there is none, a person must help.
    """
    if not deletion.expired:
        return DeletionExpired(deletion_id=deletion.id)
    if goes_back(deletion, state, traffic, policy):
        return _go_back(version_before(state, traffic), traffic, deletion.expired)
    last = state.last_cycle
    failed = last is not None and last.deletion == deletion.id and last.outcome == Outcome.FAILED
    rule = obstacle or (last.ruling.rule if last is not None and failed else "")
    if not rule:
        return None
    version = 0 if deletion.no_way_back else clean_version(state, traffic)
    if version:
        return _go_back(version, traffic, deletion.expired)
    return None if rule == deletion.stuck else DeletionStuck(deletion_id=deletion.id, rule=rule)


def _answer(state: LoopState, wished: Wished, facts: Facts, traffic: TrafficFact, policy: LoopPolicy) -> Payload:
    """Return what becomes of the oldest wish while no cycle is under way."""
    number, wish = wished.number, wished.wish
    match wish:
        case TriggerWished():
            rule = _cannot_begin(state, facts, traffic, policy, wish.strategy)
            if not rule:
                return _start(state, facts, traffic, Reason.BY_HAND, policy, {}, wish=number, strategy=wish.strategy)
        case ProposalWished():
            rule = unfit(wish.version, state, traffic) or _trial_by_hand(traffic)
            rule = rule or ("" if facts.has_holdout else NO_HOLDOUT)
            if not rule:
                return CycleStarted(
                    reason=Reason.PROPOSED,
                    accepted=facts.accepted,
                    goal=wish.goal,
                    champion=traffic.champion,
                    candidate=wish.version,
                    generation=traffic.generation,
                    policy_digest=policy.digest,
                    wish=number,
                )
        case PromotionWished():
            rule = unfit(wish.version, state, traffic)
            if not rule:
                wanted = Wanted(stable=wish.version)
                return PromotionIntended(wanted=wanted, generation=traffic.generation, authority=number)
        case RejectionWished():
            rule = "NO_CANDIDATE"
        case _:
            back = version_before(state, traffic)
            if back:
                return _go_back(back, traffic, number)
            rule = "NO_VERSION_BEFORE"
    return WishDeclined(wish=number, rule=rule)


def _cannot_begin(
    state: LoopState, facts: Facts, traffic: TrafficFact, policy: LoopPolicy, wished: Strategy | None = None
) -> str:
    """Return why no candidate can be made now, as a stable word; empty where one can."""
    if traffic.champion not in traffic.ready:
        return "NO_CHAMPION"
    if not facts.has_holdout and _tainting(state, traffic) is None:  # what must be forgotten goes without proof, too
        return NO_HOLDOUT
    if choose_strategy(state, facts, policy, wished=wished) is None:
        return "NO_STRATEGY"
    return _trial_by_hand(traffic)


def _trial_by_hand(traffic: TrafficFact) -> str:
    return "TRIAL_UNDER_WAY" if traffic.on_trial else ""


def _tainting(state: LoopState, traffic: TrafficFact) -> Deletion | None:
    """Return the first deletion that taints the champion."""
    return next((each for each in state.deletions if traffic.champion in each.versions), None)


def _start(
    state: LoopState,
    facts: Facts,
    traffic: TrafficFact,
    reason: Reason,
    policy: LoopPolicy,
    figures: Mapping[str, float],
    *,
    wish: int = 0,
    strategy: Strategy | None = None,
) -> CycleStarted:
    """Begin a cycle that makes a candidate; where the champion is tainted, its successor need not be better."""
    tainting = _tainting(state, traffic)
    return CycleStarted(
        reason=reason,
        figures=dict(figures),
        accepted=facts.accepted,
        goal=Goal.NOT_WORSE if tainting else Goal.BETTER,
        strategy=strategy,
        champion=traffic.champion,
        generation=traffic.generation,
        policy_digest=policy.digest,
        wish=wish,
        deletion=tainting.id if tainting else "",
    )


def _go_back(version: int, traffic: TrafficFact, authority: int) -> RollbackIntended:
    return RollbackIntended(
        wanted=Wanted(stable=version),
        generation=traffic.generation,
        authority=authority,
        taken_back=traffic.champion,
    )
