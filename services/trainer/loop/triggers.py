"""When a cycle begins by itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.trainer.loop.facts import Facts
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.state import LoopState
from services.trainer.loop.values import Reason

_DAY = timedelta(days=1)
_MOST_DOUBLINGS = 10  # more would be days anyway


@dataclass(frozen=True)
class Trigger:
    """Why a cycle shall begin."""

    reason: Reason
    figures: Mapping[str, float] = field(default_factory=dict)
    """That it follows from."""


def due(state: LoopState, facts: Facts, policy: LoopPolicy, now: datetime) -> Trigger | None:
    """Return why a cycle shall begin now; None where none shall.

    Without a new sample nothing begins: the same samples would make the same candidate. New samples alone and drift
    begin one only where it is worth more than it costs; an accuracy or an interval that the operator has set always do.
    """
    if not rested(state, policy, now) or facts.accepted_since < 1:
        return None
    return next(_triggers(state, facts, policy, now), None)


def rested(state: LoopState, policy: LoopPolicy, now: datetime) -> bool:
    """Whether the last cycle is long enough ago, and the day has not seen too many."""
    today = [each for each in state.starts if now - each < _DAY]
    return len(today) < policy.trigger.most_per_day and gap_over(state, policy, now)


def gap_over(state: LoopState, policy: LoopPolicy, now: datetime) -> bool:
    """Whether the last cycle is long enough ago; longer with each that failed in a row."""
    if state.last_cycle is None or state.last_cycle.end_time is None:
        return True
    least = timedelta(minutes=policy.trigger.least_gap_minutes)
    doubled: timedelta = least * 2 ** min(state.failures, _MOST_DOUBLINGS)
    return now - state.last_cycle.end_time >= max(least, min(doubled, _DAY))


def _triggers(state: LoopState, facts: Facts, policy: LoopPolicy, now: datetime) -> Iterator[Trigger]:
    trigger, accuracy, worth = policy.trigger, facts.accuracy, facts.worth
    figures = {"accepted_since": float(facts.accepted_since)}
    if accuracy is not None:
        figures |= {"accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
    if worth is not None:
        figures |= {"worth_value": worth.value, "worth_cost": worth.cost}
    pays = not trigger.cost.enabled or worth is None or worth.pays
    if trigger.accuracy_below is not None and accuracy is not None and accuracy.high < trigger.accuracy_below:
        yield Trigger(Reason.ACCURACY, figures)
    if trigger.drift and state.alarms and pays:
        yield Trigger(Reason.DRIFT, figures | {"detectors": float(len(state.alarms))})
    if facts.accepted_since >= trigger.accepted and pays:
        yield Trigger(Reason.ACCEPTED_SAMPLES, figures)
    if trigger.every_days is not None:
        last = state.last_cycle.start_time if state.last_cycle else None
        if last is None or now - last >= timedelta(days=trigger.every_days):
            yield Trigger(Reason.SCHEDULE, figures)
