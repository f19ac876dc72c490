"""When a cycle begins by itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

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
    return all(end <= now for end, _ in _rests(state, policy))


def gap_over(state: LoopState, policy: LoopPolicy, now: datetime) -> bool:
    """Whether the last cycle is long enough ago; longer with each that failed in a row."""
    return all(end <= now for end, _ in _gaps(state, policy))


def waits_for(state: LoopState, accepted_since: int, policy: LoopPolicy, now: datetime) -> str:
    """Return in words what must be the case for a cycle to begin by itself, as `due` has it.

    Args:
        state: With no cycle under way.
        accepted_since: As `Facts` has it.
        policy: Of the model.
        now: With its zone.
    """
    trigger = policy.trigger
    alarmed = trigger.drift and bool(state.alarms)
    if accepted_since >= trigger.accepted or (alarmed and accepted_since > 0):
        pays = "a cycle that is worth more than it costs" if trigger.cost.enabled else "its next look"
        there = f"{accepted_since} new samples are there, and trigger.accepted is {trigger.accepted}"
        words = f"{pays} ({there}{'; drift has raised an alarm' if alarmed else ''})"
    else:
        drift = " or an alarm of drift" if trigger.drift else ""
        samples = f"{accepted_since} of {trigger.accepted} new samples{drift}"
        pays = ", if the cycle is worth more than it costs" if trigger.cost.enabled else ""
        words = f"{'a new sample, as drift has raised an alarm' if alarmed else samples}{pays}"
    if trigger.accuracy_below is not None:
        words += f", or an accuracy below {trigger.accuracy_below:g}"
    if trigger.every_days is not None:
        words += f", or {trigger.every_days:g} days since the last one began"
    if accepted_since < 1:
        words += "; without a new sample nothing begins"
    until, why = max(_rests(state, policy), default=(now, ""))
    return words if until <= now else f"{words}; not before {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC, since {why}"


def _rests(state: LoopState, policy: LoopPolicy) -> Iterator[tuple[datetime, str]]:
    """Yield until when nothing begins by itself, and why."""
    yield from _gaps(state, policy)
    most = policy.trigger.most_per_day
    if len(state.starts) >= most:
        yield sorted(state.starts)[-most] + _DAY, f"trigger.most_per_day is {most}"


def _gaps(state: LoopState, policy: LoopPolicy) -> Iterator[tuple[datetime, str]]:
    """Yield until when the last cycle is too near, and why; nothing where there was none."""
    if state.last_cycle is None or state.last_cycle.end_time is None:
        return
    minutes = policy.trigger.least_gap_minutes
    least = timedelta(minutes=minutes)
    doubled: timedelta = least * 2 ** min(state.failures, _MOST_DOUBLINGS)
    failed = f", doubled for each of {state.failures} failures in a row" if state.failures else ""
    yield (
        state.last_cycle.end_time + max(least, min(doubled, _DAY)),
        f"trigger.least_gap_minutes is {minutes:g}{failed}",
    )


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
