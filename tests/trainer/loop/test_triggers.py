"""When a cycle begins by itself, and how its candidate is made."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.trainer.loop.facts import Facts, OriginFact
from services.trainer.loop.policy import CostPolicy, LoopPolicy, RetrainPolicy, Strategy, TriggerPolicy
from services.trainer.loop.state import Cycle, LoopState
from services.trainer.loop.strategy import choose_strategy
from services.trainer.loop.triggers import due, waits_for
from services.trainer.loop.values import Goal, Reason
from services.trainer.statistics.intervals import Interval
from services.trainer.statistics.value import Worth

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DEAR = Worth(value=1.0, cost=2.0, pays=False)


def state(ended_minutes_ago: float = 60.0, **fields: Any) -> LoopState:
    time = NOW - timedelta(minutes=ended_minutes_ago)
    last = Cycle(1, Reason.BY_HAND, Goal.BETTER, 1, 1, 0, time, end_time=time)
    return LoopState("m", last_cycle=last, **fields)


def reason(policy: TriggerPolicy, before: LoopState | None = None, **facts: Any) -> str:
    trigger = due(before or state(), Facts(None, **facts), LoopPolicy(trigger=policy), NOW)
    return trigger.reason if trigger else ""


def test_enough_new_samples_begin_a_cycle() -> None:
    assert reason(TriggerPolicy(accepted=100), accepted_since=99) == ""
    assert reason(TriggerPolicy(accepted=100), accepted_since=100) == "ACCEPTED_SAMPLES"


@pytest.mark.parametrize(("high", "expected"), [(0.79, "ACCURACY"), (0.81, "")])
def test_accuracy_begins_a_cycle_once_its_whole_interval_is_below_the_bound(high: float, expected: str) -> None:
    accuracy = Interval(low=0.5, high=high, estimate=0.7, count=200)

    assert reason(TriggerPolicy(accuracy_below=0.8), accepted_since=1, accuracy=accuracy) == expected
    assert reason(TriggerPolicy(accuracy_below=0.8), accepted_since=0, accuracy=accuracy) == ""
    assert reason(TriggerPolicy(), accepted_since=1, accuracy=accuracy) == ""


def test_what_costs_more_than_it_is_worth_is_not_begun_for_samples_or_drift() -> None:
    drifted = state(alarms=frozenset({"error"}))

    assert reason(TriggerPolicy(), drifted, accepted_since=500, worth=DEAR) == ""
    assert reason(TriggerPolicy(cost=CostPolicy(enabled=False)), drifted, accepted_since=500, worth=DEAR) == "DRIFT"
    assert reason(TriggerPolicy(drift=False), drifted, accepted_since=500) == "ACCEPTED_SAMPLES"


def test_what_the_operator_has_asked_for_does_not_depend_on_its_worth() -> None:
    accuracy = Interval(low=0.5, high=0.7, estimate=0.6, count=200)

    assert reason(TriggerPolicy(every_days=0.02), accepted_since=1, worth=DEAR) == "SCHEDULE"
    assert reason(TriggerPolicy(every_days=1), accepted_since=1, worth=DEAR) == ""
    assert reason(TriggerPolicy(accuracy_below=0.8), accepted_since=1, accuracy=accuracy, worth=DEAR) == "ACCURACY"


@pytest.mark.parametrize(
    ("minutes", "failures", "expected"),
    [(9, 0, False), (10, 0, True), (39, 2, False), (40, 2, True), (1439, 30, False), (1440, 30, True)],
)
def test_the_gap_grows_with_failures_up_to_a_day(minutes: float, failures: int, expected: bool) -> None:
    assert bool(reason(TriggerPolicy(), state(minutes, failures=failures), accepted_since=100)) == expected


def test_the_day_s_number_counts_the_last_24_hours() -> None:
    policy = TriggerPolicy(most_per_day=2)
    starts = (NOW - timedelta(hours=25), NOW - timedelta(hours=23), NOW - timedelta(hours=1))

    assert reason(policy, state(starts=starts), accepted_since=100) == ""
    assert reason(policy, state(starts=starts[:2]), accepted_since=100) == "ACCEPTED_SAMPLES"


@pytest.mark.parametrize(
    ("policy", "before", "since", "words"),
    [
        (
            TriggerPolicy(),
            state(),
            40,
            "40 of 100 new samples or an alarm of drift, if the cycle is worth more than it costs",
        ),
        (
            TriggerPolicy(accuracy_below=0.8, every_days=7),
            state(),
            150,
            "a cycle that is worth more than it costs (150 new samples are there, and trigger.accepted is 100), or an "
            "accuracy below 0.8, or 7 days since the last one began",
        ),
        (
            TriggerPolicy(cost=CostPolicy(enabled=False)),
            state(alarms=frozenset({"error"})),
            0,
            "a new sample, as drift has raised an alarm; without a new sample nothing begins",
        ),
        (
            TriggerPolicy(drift=False, cost=CostPolicy(enabled=False)),
            state(30, failures=2),
            5,
            "5 of 100 new samples; not before 2026-01-01 00:10 UTC, since trigger.least_gap_minutes is 10, doubled for "
            "each of 2 failures in a row",
        ),
        (
            TriggerPolicy(most_per_day=2, drift=False, cost=CostPolicy(enabled=False)),
            state(starts=(NOW - timedelta(hours=23), NOW - timedelta(hours=1))),
            5,
            "5 of 100 new samples; not before 2026-01-01 01:00 UTC, since trigger.most_per_day is 2",
        ),
    ],
)
def test_what_is_waited_for_is_what_keeps_a_cycle_from_beginning(
    policy: TriggerPolicy, before: LoopState, since: int, words: str
) -> None:
    assert waits_for(before, since, LoopPolicy(trigger=policy), NOW) == words


@pytest.mark.parametrize(
    ("origin", "seconds", "tried", "expected"),
    [
        (OriginFact("r", True, True), {}, (), Strategy.REFIT),
        (OriginFact("r", False, True), {}, (), None),
        (OriginFact("r", False, True), {Strategy.INCREMENTAL: 100.0}, (), Strategy.INCREMENTAL),
        (OriginFact("r", False, True), {Strategy.INCREMENTAL: 901.0, Strategy.SCRATCH: 900.0}, (), Strategy.SCRATCH),
        (OriginFact("r", False, False), {Strategy.SCRATCH: 1.0}, (), None),
        (OriginFact("r", True, True), {Strategy.SCRATCH: 1.0}, (Strategy.REFIT,), Strategy.SCRATCH),
        (None, {Strategy.SCRATCH: 1.0}, (), None),
    ],
)
def test_the_first_strategy_that_can_be_used_is(
    origin: OriginFact | None,
    seconds: dict[Strategy, float],
    tried: tuple[Strategy, ...],
    expected: Strategy | None,
) -> None:
    facts = Facts(None, origin=origin, seconds=seconds)

    assert choose_strategy(state(), facts, LoopPolicy(), tried=tried) == expected


def test_a_wished_strategy_is_taken_or_none_is() -> None:
    policy = LoopPolicy(retrain=RetrainPolicy(strategies=(Strategy.REFIT,)))
    facts = Facts(None, origin=OriginFact("r", True, True), seconds={Strategy.SCRATCH: 1.0})

    assert choose_strategy(state(), facts, policy, wished=Strategy.SCRATCH) == Strategy.SCRATCH
    assert choose_strategy(state(), facts, policy, wished=Strategy.INCREMENTAL) is None
    assert choose_strategy(state(), facts, policy, wished=Strategy.SCRATCH, tried={Strategy.SCRATCH}) is None
