"""What a candidate must show with a part of the traffic: first unseen as a shadow, then with growing shares."""

from datetime import datetime, timedelta

from services.trainer.loop.cycle_payloads import (
    CanaryEnded,
    CanaryIntended,
    ShadowEnded,
    ShadowIntended,
    TrialRestarted,
)
from services.trainer.loop.facts import Facts, TrafficFact
from services.trainer.loop.payloads import Payload
from services.trainer.loop.policy import TrialPolicy
from services.trainer.loop.state import Cycle
from services.trainer.loop.values import Ruling, TrialCounts, TrialVerdict, Wanted
from services.trainer.statistics.tails import binomial_tail

NOISE = 0.05
"""Chance that one part of the traffic refuses a candidate whose requests fail just as often as they may."""
OTHER_PIXELS = "OTHER_PREPROCESS_SPEC"
"""Rule by which a candidate is no shadow: what the champion is asked has not the pixels that it takes."""


def plan_shadow(cycle: Cycle, facts: Facts, traffic: TrafficFact, policy: TrialPolicy, now: datetime) -> Payload | None:
    """Return the next event of a candidate that is to be a shadow; None while there is too little to see."""
    if cycle.trial is None and not facts.comparable:
        return ShadowEnded(verdict=TrialVerdict.SKIPPED, counts=TrialCounts(), ruling=Ruling(rule=OTHER_PIXELS))
    if cycle.trial is None:
        wanted = Wanted(stable=cycle.champion, shadow=cycle.candidate)
        return ShadowIntended(wanted=wanted, generation=traffic.generation, authority=cycle.passed)
    counts = facts.shadow or TrialCounts()
    age = now - cycle.trial.begin_time
    enough = counts.requests >= policy.shadow_requests and age >= timedelta(seconds=policy.shadow_seconds)
    over = age >= timedelta(minutes=policy.shadow_most_minutes)
    if not (enough or over):
        return None
    harm = _disagreement(counts, cycle, policy) or _errors_or_time(counts, "SHADOW", policy)
    verdict, ruling = _verdict(counts, harm, policy.shadow_requests, policy)
    return ShadowEnded(verdict=verdict, counts=counts, ruling=ruling)


def plan_canary(cycle: Cycle, facts: Facts, traffic: TrafficFact, policy: TrialPolicy, now: datetime) -> Payload | None:
    """Return the next event of a candidate that is to have a share; None while there is too little to see."""
    if cycle.trial is None:
        if not policy.canary_shares:
            return CanaryEnded(verdict=TrialVerdict.PASSED, counts=TrialCounts())
        return _step(cycle, traffic, policy.canary_shares[0])
    if facts.canary is None:
        return None
    if _fell(facts.canary, cycle.trial.begin):
        return TrialRestarted(begin=facts.canary)
    counts = _since(facts.canary, cycle.trial.begin)
    age = now - cycle.trial.begin_time
    enough = counts.requests >= policy.canary_requests and age >= timedelta(seconds=policy.canary_seconds)
    if not enough and age < timedelta(minutes=policy.canary_most_minutes):
        return None
    verdict, ruling = _verdict(counts, _errors_or_time(counts, "CANARY", policy), policy.canary_requests, policy)
    if verdict == TrialVerdict.PASSED and cycle.steps < len(policy.canary_shares):
        return _step(cycle, traffic, policy.canary_shares[cycle.steps])
    return CanaryEnded(verdict=verdict, counts=counts, ruling=ruling)


def _step(cycle: Cycle, traffic: TrafficFact, share: float) -> CanaryIntended:
    wanted = Wanted(stable=cycle.champion, canary=cycle.candidate, canary_share=share)
    return CanaryIntended(wanted=wanted, generation=traffic.generation, authority=cycle.passed)


def _verdict(counts: TrialCounts, harm: Ruling | None, least: int, policy: TrialPolicy) -> tuple[TrialVerdict, Ruling]:
    """Return what *counts* say; few requests that show no harm count as the policy has it."""
    if harm is not None:
        return TrialVerdict.FAILED, harm
    if counts.requests >= least:
        return TrialVerdict.PASSED, Ruling()
    ruling = Ruling(rule="NO_TRAFFIC", subject="trial.without_traffic", figure=counts.requests, bound=least)
    return TrialVerdict.NO_TRAFFIC if policy.without_traffic else TrialVerdict.FAILED, ruling


def _disagreement(counts: TrialCounts, cycle: Cycle, policy: TrialPolicy) -> Ruling | None:
    """Compare how often the shadow agrees with the champion with how often it did on what it was judged on."""
    expected = cycle.gate.figures.agreement if cycle.gate is not None else 1.0
    bound = policy.least_agreement * expected
    if not counts.samples or counts.agreed / counts.samples >= bound:
        return None
    return Ruling(
        rule="SHADOW_DISAGREES", subject="trial.least_agreement", figure=counts.agreed / counts.samples, bound=bound
    )


def _errors_or_time(counts: TrialCounts, part: str, policy: TrialPolicy) -> Ruling | None:
    """Compare shares of failed requests and seconds for one request of *part* with the champion's.

    Few requests may fail by chance: more of them are harm where hardly ever so many would, were the true share of
    failures the champion's plus what the policy allows.
    """
    if not counts.requests:
        return None
    stable = counts.stable_requests
    usual = counts.stable_failed / stable if stable else 0.0
    if binomial_tail(counts.failed, counts.requests, min(1.0, usual + policy.error_rise)) <= NOISE:
        rise = counts.failed / counts.requests - usual
        return Ruling(rule=f"{part}_FAILS", subject="trial.error_rise", figure=rise, bound=policy.error_rise)
    if stable and counts.stable_seconds > 0:
        ratio = (counts.seconds / counts.requests) / (counts.stable_seconds / stable)
        if ratio > policy.latency_ratio:
            return Ruling(rule=f"{part}_SLOW", subject="trial.latency_ratio", figure=ratio, bound=policy.latency_ratio)
    return None


def _fell(counts: TrialCounts, begin: TrialCounts) -> bool:
    """Whether inference has started again since."""
    return counts.requests < begin.requests or counts.stable_requests < begin.stable_requests


def _since(counts: TrialCounts, begin: TrialCounts) -> TrialCounts:
    names = TrialCounts.model_fields
    return TrialCounts(**{name: getattr(counts, name) - getattr(begin, name) for name in names})
