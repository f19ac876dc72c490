"""What the gate decides, and by which rule, figure and bound."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from services.trainer.loop.cycle_payloads import GateBegun, GateDecided
from services.trainer.loop.gate import begin, decide, give_up, joint_log_e, outgrown, pair, threshold_missing
from services.trainer.loop.policy import GatePolicy, GuardPolicy, LoopPolicy
from services.trainer.loop.state import Cycle, Gate, LoopState
from services.trainer.loop.values import GateFigures, GateOutcome, Goal, GuardFigures, Paired, Reason, Ruling
from services.trainer.statistics.betting import log_e_value
from tests.trainer.loop.world import POLICY, outcomes_of

BOUND = math.log(1 / 0.03)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MEASURED = GuardFigures(
    class_count=10,
    worst_class=3,
    class_log_e=0.0,
    calibration_rise=0.0,
    latency_ratio=1.0,
    size_ratio=1.0,
    corrupted_drop=0.0,
    holdout_drop=0.0,
)


def cycle(**fields: Any) -> Cycle:
    given: dict[str, Any] = {
        "number": 1,
        "reason": Reason.BY_HAND,
        "goal": Goal.BETTER,
        "champion": 1,
        "generation": 1,
        "accepted": 100,
        "start_time": NOW,
    }
    return Cycle(**(given | fields))


def figures(**fields: Any) -> GateFigures:
    return GateFigures(**({"guards": MEASURED} | fields))


def ruled(decided: GateDecided | None) -> tuple[str, str]:
    assert decided is not None
    return decided.outcome, decided.ruling.rule


def test_enough_evidence_passes_and_less_waits() -> None:
    assert ruled(decide(figures(log_e=BOUND), BOUND, POLICY)) == ("PASSED", "EVIDENCE")
    assert decide(figures(log_e=BOUND - 0.01), BOUND, POLICY) is None


@pytest.mark.parametrize(("stream", "rule"), [("holdout", "WORSE_ON_HOLDOUT"), ("live", "WORSE_ON_LIVE")])
def test_harm_on_either_stream_refuses_whatever_the_evidence_of_both(stream: str, rule: str) -> None:
    harm = pair(np.repeat(np.array([-1, 1], np.int8), (30, 3)), 0.0)

    decided = decide(figures(log_e=99.0, **{stream: harm}), BOUND, POLICY)

    assert ruled(decided) == ("REFUSED", rule)
    assert decided is not None
    assert decided.ruling.figure == harm.log_e_worse
    assert decided.ruling.bound == pytest.approx(math.log(20))


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("class_log_e", 5.5, math.log(10 / 0.05)),
        ("calibration_rise", 0.031, 0.03),
        ("latency_ratio", 1.6, 1.5),
        ("size_ratio", 2.1, 2.0),
        ("corrupted_drop", 0.06, 0.05),
        ("holdout_drop", 0.02, 0.01),
    ],
)
def test_a_guard_refuses_a_candidate_that_is_more_accurate(field: str, value: float, bound: float) -> None:
    guards = MEASURED.model_copy(update={field: value})

    decided = decide(figures(log_e=99.0, guards=guards), BOUND, POLICY)

    assert ruled(decided) == ("REFUSED", field.removesuffix("_log_e").upper().replace("CLASS", "CLASS_DROP"))
    assert decided is not None
    assert (decided.ruling.figure, decided.ruling.bound) == (value, pytest.approx(bound))


@pytest.mark.parametrize("name", list(GuardPolicy.model_fields))
def test_a_guard_that_is_not_measured_yet_keeps_the_candidate_waiting(name: str) -> None:
    missing = MEASURED.model_copy(update={"class_log_e" if name == "class_drop" else name: None})

    assert decide(figures(log_e=99.0, guards=missing), BOUND, POLICY) is None
    gate = Gate(GateBegun(candidate_count=1, error_share=0.03, margin=0.0), figures(guards=missing), move_time=NOW)
    decided = give_up(gate, NOW, POLICY, NOW + timedelta(days=7))

    assert ruled(decided) == ("EXHAUSTED", "NOT_MEASURED")
    assert decided is not None
    assert decided.ruling == Ruling(rule="NOT_MEASURED", subject=f"guard.{name}")


def test_a_guard_that_can_never_be_measured_ends_the_gate_at_once() -> None:
    guards = MEASURED.model_copy(update={"corrupted_drop": None, "impossible": ("corrupted_drop",)})

    decided = decide(figures(log_e=99.0, guards=guards), BOUND, POLICY)

    assert ruled(decided) == ("EXHAUSTED", "NOT_MEASURABLE")
    assert decided is not None
    assert decided.ruling.subject == "guard.corrupted_drop"


@pytest.mark.parametrize("name", [None, *GuardPolicy.model_fields])
def test_a_threshold_that_is_not_set_is_named(name: str | None) -> None:
    group = "guard" if name else "gate"
    values = getattr(POLICY, group).model_copy(update={name or "error": None})
    policy = POLICY.model_copy(update={group: values})

    assert threshold_missing(cycle(), policy) == f"{group}.{name or 'error'}"
    assert threshold_missing(cycle(), POLICY) == ""


def test_too_many_contents_without_proof_exhaust_the_candidate() -> None:
    policy = POLICY.model_copy(update={"gate": GatePolicy(error=0.05, most_labels=500)})

    decided = decide(figures(holdout=Paired(wins=10, ties=480, losses=10)), BOUND, policy)

    assert ruled(decided) == ("EXHAUSTED", "NOT_PROVED")
    assert decided is not None
    assert (decided.ruling.subject, decided.ruling.figure, decided.ruling.bound) == ("gate.most_labels", 500, 500)


@pytest.mark.parametrize(
    ("after", "moved", "key"),
    [
        (timedelta(days=7), timedelta(days=6, hours=23), "gate.most_days"),
        (timedelta(hours=12), timedelta(), "gate.idle_hours"),
        (timedelta(hours=30), timedelta(hours=19), ""),
    ],
)
def test_time_exhausts_a_candidate_sooner_where_nothing_moves(after: timedelta, moved: timedelta, key: str) -> None:
    begun = GateBegun(candidate_count=1, error_share=0.03, margin=0.0)

    decided = give_up(Gate(begun, figures(), move_time=NOW + moved), NOW, POLICY, NOW + after)

    assert (decided.ruling.subject if decided else "") == key
    assert decided is None or decided.outcome == GateOutcome.EXHAUSTED


def test_the_error_of_a_life_is_shared_by_its_candidates_but_not_by_deletions() -> None:
    state = LoopState("m", judged=2)

    better = begin(state, cycle(), POLICY)
    lighter = begin(state, cycle(goal=Goal.NOT_WORSE), POLICY)
    clean = begin(state, cycle(goal=Goal.NOT_WORSE, deletion="d"), POLICY)

    assert (better.candidate_count, better.margin) == (3, 0.0)
    assert better.error_share == lighter.error_share == pytest.approx(0.05 * 6 / (math.pi * 3) ** 2)
    assert lighter.margin == 0.01
    assert (clean.candidate_count, clean.error_share, clean.margin) == (2, 0.05, 0.03)


def test_a_deletion_needs_no_error_of_the_gate_but_the_guards() -> None:
    unset = POLICY.model_copy(update={"gate": GatePolicy()})

    assert threshold_missing(cycle(deletion="d"), unset) == ""
    assert threshold_missing(cycle(deletion="d"), LoopPolicy()) == "guard.class_drop"


def test_the_hold_out_alone_carries_a_candidate_at_the_price_of_two() -> None:
    outcomes, none = np.repeat(np.array([1, 0], np.int8), (40, 400)), np.zeros(0, np.int8)

    both = joint_log_e(outcomes, none, 0.0, POLICY)
    live = POLICY.model_copy(update={"gate": GatePolicy(error=0.05, evidence="live")})

    assert both == pytest.approx(log_e_value(40, 400, 0) - math.log(2), abs=1e-3)
    assert joint_log_e(outcomes, none, 0.0, live) == 0.0


def test_a_candidate_that_is_no_better_seldom_passes_however_often_it_is_looked_at() -> None:
    passed = 0
    for seed in range(200):
        outcomes = outcomes_of((0.06, 0.06), 100 + seed)[:2_000]
        passed += joint_log_e(outcomes[:1_000], outcomes[1_000:], 0.0, POLICY) >= BOUND

    assert passed <= 200 * 0.03 + 2 * math.sqrt(200 * 0.03)


@pytest.mark.parametrize(
    ("accepted", "fields", "gone"),
    [
        (1_999, {}, False),
        (2_000, {}, True),
        (5_000, {"snapshot": ""}, False),  # it was proposed: no other is like it
        (5_000, {"deletion": "d1"}, False),  # it must be replaced, whatever it is worth
        (1_030, {"accepted": 1_000}, False),
        (90, {"accepted": 30}, False),  # fewer than begin a cycle
    ],
)
def test_a_candidate_without_proof_makes_room_for_one_that_knows_twice_as_much(
    accepted: int, fields: dict[str, Any], gone: bool
) -> None:
    gate = Gate(GateBegun(candidate_count=1, error_share=0.03, margin=0.0), figures(), move_time=NOW)

    decided = outgrown(gate, cycle(**({"accepted": 1_000, "snapshot": "a"} | fields)), accepted, POLICY)

    assert (decided is not None) == gone
    if decided is not None:
        assert ruled(decided) == ("EXHAUSTED", "NOT_PROVED")
        assert (decided.ruling.subject, decided.ruling.figure) == ("gate.outgrown_by", 1_000)


def test_a_candidate_that_nobody_has_measured_yet_is_not_outgrown() -> None:
    unmeasured = Gate(GateBegun(candidate_count=1, error_share=0.03, margin=0.0), GateFigures(), move_time=NOW)

    assert outgrown(unmeasured, cycle(snapshot="a"), 100_000, POLICY) is None
