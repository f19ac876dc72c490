"""What the loop does in the situations that operators will meet."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from services.trainer.loop.cycle_payloads import GateDecided
from services.trainer.loop.facts import Alarm, TrafficFact
from services.trainer.loop.payloads import (
    DeletionRequested,
    Payload,
    PromotionWished,
    ProposalWished,
    RejectionWished,
    RollbackWished,
    TrafficChanged,
    TriggerWished,
)
from services.trainer.loop.plan import plan
from services.trainer.loop.policy import DeletionPolicy, LoopPolicy, Strategy
from services.trainer.loop.reducer import replay
from services.trainer.loop.refusals import Refusal
from services.trainer.loop.state import Stage
from services.trainer.loop.steps import Record, SetTraffic
from services.trainer.loop.values import Goal, TrialCounts
from tests.trainer.loop.world import BAD, EQUAL, POLICY, Director, World

STAGES = [Stage.SNAPSHOT, Stage.RUN, Stage.PUBLISH, Stage.GATE, Stage.SHADOW, Stage.CANARY]


def with_group(group: str, **values: Any) -> LoopPolicy:
    return POLICY.model_copy(update={group: getattr(POLICY, group).model_copy(update=values)})


def ended(director: Director) -> tuple[str, str]:
    last = director.state.last_cycle
    assert last is not None
    assert last.outcome is not None
    return last.outcome, last.ruling.rule


@pytest.mark.parametrize("stage", STAGES)
def test_a_hand_that_moves_the_traffic_ends_the_cycle_and_is_left_alone(stage: Stage) -> None:
    director = Director(World(traffic=TrafficFact(3, 2, ready=(1, 2)))).until(stage)
    director.step()
    director.world.move(1, canary=2, share=0.5)

    director.run()

    assert ended(director) == ("ABANDONED", "TRAFFIC_CHANGED")
    traffic = director.world.traffic
    found = TrafficChanged(generation=traffic.generation, stable=1, previous=2, canary=2, canary_share=0.5)
    assert director.last("traffic.changed") == found
    assert (traffic.stable, traffic.canary, traffic.canary_share) == (1, 2, 0.5)


def test_a_hand_that_moves_the_traffic_of_an_idle_loop_is_recorded_once_and_not_undone() -> None:
    director = Director(World(newest_sample=0)).run()
    assert "traffic.changed" not in director.kinds  # nobody has moved it yet
    director.world.traffic = replace(director.world.traffic, ready=(1, 2))
    director.world.move(2)
    director.run()
    director.state = replay("m", director.log)  # another process goes on
    director.world.move(1)
    director.run()

    changes = [each.payload for each in director.log if each.kind == "traffic.changed"]
    assert changes == [
        TrafficChanged(generation=1, stable=2, previous=1),
        TrafficChanged(generation=2, stable=1, previous=2),
    ]

    director.append(RollbackWished(request_id="a"))  # of what the hand has taken back already
    director.run()

    assert director.last("wish.declined").rule == "NO_VERSION_BEFORE"  # type: ignore[attr-defined]
    assert director.world.traffic.stable == 1


def test_a_hand_that_is_faster_than_an_intended_move_wins() -> None:
    director = Director(World()).until_event(lambda state: state.move is not None)
    director.world.move(1, canary=2, share=0.9)

    director.run()

    assert ended(director) == ("ABANDONED", "TRAFFIC_CHANGED")
    assert "move.abandoned" in director.kinds
    assert director.world.traffic.canary_share == 0.9


def test_a_failed_run_leaves_serving_untouched_and_the_next_trigger_starts_clean() -> None:
    director = Director(World(failing=frozenset(Strategy)))
    before = director.world.traffic
    director.until_event(lambda state: state.last_cycle is not None)

    assert ended(director) == ("FAILED", "RUN_FAILED")
    assert director.world.traffic == before
    assert [run.strategy for run in director.world.runs.values()] == ["refit", "incremental", "scratch"]

    director.world.failing = frozenset()
    director.until_event(lambda state: state.cycles == 2 and state.cycle is None)

    assert ended(director) == ("PROMOTED", "")
    assert director.state.failures == 0


def test_cycles_that_fail_come_ever_more_seldom() -> None:
    director = Director(World(failing=frozenset(Strategy)))
    director.until_event(lambda state: state.failures == 5, 2_000)

    starts = [each.time for each in director.log if each.kind == "cycle.started"]
    ends = [each.time for each in director.log if each.kind == "cycle.ended"]
    gaps = [(start - end) / timedelta(minutes=1) for start, end in zip(starts[1:], ends, strict=False)]

    assert gaps == [20, 40, 80, 160]


def test_no_more_cycles_begin_by_themselves_than_the_day_may_have() -> None:
    policy = with_group("trigger", most_per_day=3, least_gap_minutes=0.0)
    director = Director(World(quality=BAD), policy)
    for _ in range(12 * 60):
        director.world.newest_sample += 10
        director.step()

    assert director.state.cycles == 3


def test_a_refusal_names_rule_figure_and_bound_and_the_same_samples_are_not_tried_again() -> None:
    director = Director(World(quality=BAD)).run()

    assert ended(director) == ("REFUSED", "WORSE_ON_HOLDOUT")
    assert director.state.last_cycle is not None
    ruling = director.state.last_cycle.ruling
    assert ruling.figure is not None
    assert ruling.bound is not None
    assert ruling.figure >= ruling.bound
    assert director.state.cycles == 1
    assert director.world.traffic.stable == 1


def test_a_candidate_that_is_neither_better_nor_worse_is_given_up() -> None:
    director = Director(World(quality=EQUAL)).run()

    assert ended(director) == ("REFUSED", "NOT_PROVED")


def test_after_a_refit_without_gain_twice_the_samples_train_the_features_too() -> None:
    director = Director(World(quality=EQUAL)).run()
    director.world.newest_sample += 120
    director.world.accepted += 120
    director.run()
    director.world.newest_sample += 120
    director.world.accepted += 120
    director.run()

    strategies = [run.strategy for run in director.world.runs.values()]
    assert strategies == [Strategy.REFIT, Strategy.REFIT, Strategy.REFIT]  # 390 are not twice 270 yet

    director.world.newest_sample += 400
    director.world.accepted += 400
    director.run()
    assert [run.strategy for run in director.world.runs.values()][-1] == Strategy.INCREMENTAL


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"failing_requests": 0.2}, "SHADOW_FAILS"),
        (
            {"requests": 50, "failing_requests": 3 / 50},
            "SHADOW_FAILS",
        ),  # where 1 in 100 may fail, 3 do in 1.4 % of cases
        ({"requests": 50, "failing_requests": 2 / 50}, ""),  # and 2 in 9 %
        ({"requests": 0}, ""),
        ({"agreement": (1.0, 0.4)}, "SHADOW_DISAGREES"),
        ({"agreement": (0.7, 0.4)}, ""),  # much of what the champion gets wrong was known to be answered otherwise
    ],
)
def test_a_shadow_that_fails_is_withdrawn_and_one_without_traffic_goes_on(fields: dict[str, Any], rule: str) -> None:
    director = Director(World(**fields)).run()

    assert ended(director) == (("REFUSED", rule) if rule else ("PROMOTED", ""))
    assert not director.world.traffic.on_trial


@pytest.mark.parametrize(
    ("requests", "failed", "outcome"),
    [
        (50, 1, ("PROMOTED", "")),
        (50, 4, ("REFUSED", "CANARY_FAILS")),
        (5_000, 60, ("PROMOTED", "")),
        (5_000, 70, ("REFUSED", "CANARY_FAILS")),
    ],
)
def test_a_canary_is_refused_for_more_failures_than_chance_explains(
    requests: int, failed: int, outcome: tuple[str, str]
) -> None:
    director = Director(World(requests=requests)).until(Stage.CANARY)
    director.world.failing_requests = failed / requests

    director.run()

    assert ended(director) == outcome
    ruling = director.state.last_cycle.ruling  # type: ignore[union-attr]
    if outcome[1]:
        assert (ruling.figure, ruling.bound) == (failed / requests, 0.01)


@pytest.mark.parametrize(("failed", "refused"), [(14, False), (18, True)])
def test_what_the_champion_fails_too_is_not_held_against_a_canary(failed: int, refused: bool) -> None:
    director = Director(World(requests=0), with_group("trial", canary_shares=(0.1,))).until(Stage.CANARY)
    director.until_event(lambda state: state.cycle is not None and state.cycle.trial is not None)
    director.world.counts = TrialCounts(requests=100, failed=failed, stable_requests=1_000, stable_failed=100)

    director.run()

    assert ended(director) == (("REFUSED", "CANARY_FAILS") if refused else ("PROMOTED", ""))


def test_without_traffic_a_policy_may_refuse() -> None:
    director = Director(World(requests=0), with_group("trial", without_traffic=False)).run()

    assert ended(director) == ("REFUSED", "NO_TRAFFIC")
    assert director.world.traffic.stable == 1


def test_a_restart_of_inference_starts_the_count_of_a_canary_again() -> None:
    director = Director(World(requests=20), with_group("trial", canary_requests=50)).until_event(
        lambda state: state.cycle is not None and state.cycle.steps == 1
    )
    director.step()
    director.world.counts = TrialCounts(requests=3, stable_requests=3)
    director.run()

    assert director.kinds.count("trial.restarted") == 1
    assert ended(director) == ("PROMOTED", "")


def test_without_canary_shares_the_shadow_is_followed_by_the_whole_traffic() -> None:
    director = Director(World(), with_group("trial", canary_shares=())).run()

    assert ended(director) == ("PROMOTED", "")
    assert "canary.moved" not in director.kinds


def test_nothing_is_decided_while_inference_does_not_answer_and_the_run_goes_on() -> None:
    director = Director(World()).until(Stage.RUN)
    director.world.away = True
    for _ in range(20):
        director.step()

    assert director.state.cycle is not None
    assert director.state.cycle.stage == Stage.PUBLISH
    director.world.away = False
    director.run()
    assert ended(director) == ("PROMOTED", "")


def test_a_candidate_that_takes_too_long_to_make_fails() -> None:
    director = Director(World(), with_group("retrain", most_minutes=1.0)).until_event(
        lambda state: state.last_cycle is not None
    )

    assert ended(director) == ("FAILED", "TOO_LONG")
    assert [run.state for run in director.world.runs.values()] == ["CANCELLED"]


def test_a_run_that_somebody_cancels_ends_the_cycle() -> None:
    director = Director(World()).until_event(lambda state: state.cycle is not None and bool(state.cycle.running))
    next(iter(director.world.runs.values())).state = "CANCELLED"
    director.until_event(lambda state: state.last_cycle is not None)

    assert ended(director) == ("ABANDONED", "RUN_CANCELLED")


@pytest.mark.parametrize(
    ("wish", "traffic", "rule"),
    [
        (RollbackWished(request_id="a"), TrafficFact(1, 1, ready=(1, 2)), "NO_VERSION_BEFORE"),
        (RejectionWished(request_id="a"), TrafficFact(1, 1, ready=(1, 2)), "NO_CANDIDATE"),
        (PromotionWished(request_id="a", version=1), TrafficFact(1, 1, ready=(1, 2)), "STABLE_ALREADY"),
        (PromotionWished(request_id="a", version=9), TrafficFact(1, 1, ready=(1, 2)), "NOT_READY"),
        (ProposalWished(request_id="a", version=1), TrafficFact(1, 1, ready=(1, 2)), "STABLE_ALREADY"),
        (ProposalWished(request_id="a", version=2), TrafficFact(1, 1, canary=2, ready=(1, 2)), "TRIAL_UNDER_WAY"),
        (TriggerWished(request_id="a"), TrafficFact(1, 1, shadow=2, ready=(1, 2)), "TRIAL_UNDER_WAY"),
        (TriggerWished(request_id="a"), TrafficFact(0, 0), "NO_CHAMPION"),
    ],
)
def test_a_wish_that_does_not_fit_is_declined_with_its_reason(wish: Payload, traffic: TrafficFact, rule: str) -> None:
    director = Director(World(traffic=traffic, newest_sample=0))
    director.append(wish)
    director.run()

    assert director.last("wish.declined").rule == rule  # type: ignore[attr-defined]
    assert director.world.traffic == traffic


def test_a_wish_to_begin_while_a_cycle_is_under_way_is_declined() -> None:
    director = Director(World()).until(Stage.GATE)
    director.append(TriggerWished(request_id="a"))
    director.step()

    assert director.last("wish.declined").rule == "CYCLE_UNDER_WAY"  # type: ignore[attr-defined]


@pytest.mark.parametrize("stage", STAGES)
def test_a_wish_to_roll_back_ends_the_cycle_and_takes_the_traffic_back(stage: Stage) -> None:
    director = Director(World(traffic=TrafficFact(3, 2, previous=1, ready=(1, 2)))).until(stage)
    director.append(RollbackWished(request_id="a"))
    director.until_event(lambda state: not state.wishes and state.move is None)

    assert ended(director) == ("ABANDONED", "ROLLED_BACK")
    assert director.world.traffic.stable == 1
    assert not director.world.traffic.on_trial


def test_rolling_back_twice_never_brings_back_what_was_taken_back() -> None:
    director = Director(World(traffic=TrafficFact(3, 3, previous=2, ready=(1, 2, 3)), newest_sample=0))
    stable = []
    for number in range(3):
        director.append(RollbackWished(request_id=f"back-{number}"))
        director.until_event(lambda state: not state.wishes and state.move is None)
        stable.append(director.world.traffic.stable)

    assert stable == [2, 1, 1]
    assert director.last("wish.declined").rule == "NO_VERSION_BEFORE"  # type: ignore[attr-defined]
    assert replay("m", director.log) == director.state

    for number, version in enumerate((2, 3)):  # who lets it serve again knows it to be good
        director.append(PromotionWished(request_id=f"forth-{number}", version=version))
        director.until_event(lambda state: not state.wishes and state.move is None)
    director.append(RollbackWished(request_id="back-3"))
    director.until_event(lambda state: not state.wishes and state.move is None)

    assert director.world.traffic.stable == 2


def test_rolling_back_skips_versions_that_are_tainted() -> None:
    director = Director(World(traffic=TrafficFact(3, 4, previous=3, ready=(1, 2, 3, 4)), newest_sample=0))
    director.world.tainted = (3, 4)
    deadline = director.world.now + timedelta(hours=72)
    director.append(DeletionRequested(deletion_id="d", subject_digest="0", deadline=deadline))
    director.until_event(lambda state: bool(state.tainted))
    director.append(RollbackWished(request_id="a"))
    director.until_event(lambda state: not state.wishes and state.move is None)

    assert director.world.traffic.stable == 2


def test_a_wish_to_promote_goes_past_gate_and_trial_with_the_wish_as_its_permit() -> None:
    director = Director(World(quality=EQUAL)).until(Stage.GATE)
    director.append(PromotionWished(request_id="a", version=2))
    wish = director.log[-1].number
    director.run()

    assert ended(director) == ("PROMOTED", "")
    assert director.last("promotion.intended").authority == wish  # type: ignore[attr-defined]
    assert director.world.traffic.stable == 2


def test_a_wish_for_another_version_ends_the_cycle_first() -> None:
    director = Director(World(traffic=TrafficFact(3, 2, ready=(1, 2)))).until(Stage.CANARY)
    director.append(PromotionWished(request_id="a", version=1))
    director.until_event(lambda state: not state.wishes and state.move is None)

    assert ended(director) == ("ABANDONED", "PROMOTED_BY_HAND")
    assert director.world.traffic.stable == 1


@pytest.mark.parametrize(("at_deadline", "stable"), [("promote", 3), ("previous", 1)])
def test_at_its_deadline_a_deletion_has_its_way_without_proof(at_deadline: Any, stable: int) -> None:
    policy = POLICY.model_copy(update={"deletion": DeletionPolicy(at_deadline=at_deadline)})
    world = World(traffic=TrafficFact(3, 2, previous=1, ready=(1, 2)), newest_sample=0, judged=0)
    director = Director(world, policy)
    world.tainted = (2,)
    deadline = world.now + timedelta(hours=2)
    director.append(DeletionRequested(deletion_id="d", subject_digest="0", deadline=deadline))
    director.run()

    assert world.traffic.stable == stable
    assert 2 not in world.traffic.ready
    assert director.state.deletions == ()
    assert director.kinds.count("deletion.expired") == 1
    assert director.state.judged == 0


@pytest.mark.parametrize("at_deadline", ["promote", "previous"])
def test_traffic_that_cannot_be_changed_does_not_fill_the_log(at_deadline: Any) -> None:
    policy = POLICY.model_copy(update={"deletion": DeletionPolicy(deadline_hours=0, at_deadline=at_deadline)})
    world = World(traffic=TrafficFact(3, 2, previous=1, ready=(1, 2)), newest_sample=0, tainted=(2,))
    director = Director(world, policy)
    world.broken = {SetTraffic}
    director.append(DeletionRequested(deletion_id="d", subject_digest="0", deadline=world.now))
    for _ in range(300):
        director.step()

    assert len(director.log) < 80
    assert world.traffic.stable == 2

    world.broken = set()
    director.until_event(lambda state: not state.deletions, 2_000)
    assert world.traffic.stable not in (2, 0)


def test_a_refused_successor_of_a_tainted_version_waits_for_the_deadline() -> None:
    world = World(traffic=TrafficFact(3, 2, ready=(1, 2)), newest_sample=0, quality=BAD, tainted=(1, 2))
    director = Director(world)
    deadline = world.now + timedelta(hours=5)
    director.append(DeletionRequested(deletion_id="d", subject_digest="0", deadline=deadline))
    director.until_event(lambda state: not state.deletions, 1_000)

    assert [each.cycle for each in director.log if each.kind == "cycle.started"] == [1, 2]
    assert world.now >= deadline
    assert world.traffic.ready == (3, 4)
    assert world.traffic.stable == 4


def test_drift_begins_a_cycle_once_there_is_something_new_to_learn() -> None:
    director = Director(World(newest_sample=0, alarms=(Alarm(1, "error", 9.0, 5.0),))).run()
    assert director.kinds == ["policy.changed", "alarm.raised"]

    director.world.newest_sample = 1
    director.run()

    started = next(each.payload for each in director.log if each.kind == "cycle.started")
    assert started.reason == "DRIFT"  # type: ignore[attr-defined]
    assert director.state.alarms == frozenset()
    assert director.kinds.count("alarm.raised") == 1


def test_every_alarm_of_every_detector_is_told_once() -> None:
    first = (Alarm(2, "error_drift", 1.0, 1.0), Alarm(1, "label_shift", 0.0, 0.1))
    director = Director(World(newest_sample=0, alarms=first)).run()
    director.world.alarms = (*first, Alarm(3, "error_drift", 1.0, 1.0), Alarm(7, "softmax_shift", 0.0, 0.1))
    director.run()

    told = [(each.payload.detector, each.payload.alarm) for each in director.log if each.kind == "alarm.raised"]  # type: ignore[attr-defined]
    assert told == [("error_drift", 2), ("label_shift", 1), ("error_drift", 3), ("softmax_shift", 7)]
    assert director.state.heard == {"error_drift": 3, "label_shift": 1, "softmax_shift": 7}


def test_capturing_pauses_while_the_disk_is_full_and_does_not_stop_and_go_at_the_border() -> None:
    director = Director(World(newest_sample=0)).run()
    least = POLICY.capture.least_free_bytes
    kinds = []
    for free in (least, least - 1, least + 1, 2 * least):
        facts = replace(director.world.facts(director.state), free_bytes=free)
        action = plan(director.state, facts, POLICY, director.world.now)
        if isinstance(action, Record):
            kinds.append((free, action.payload.kind))
            director.append(action.payload)

    assert kinds == [(least - 1, "capture.paused"), (2 * least, "capture.resumed")]


def test_another_policy_is_told_once() -> None:
    director = Director(World(newest_sample=0)).run()
    director.policy = with_group("gate", error=0.01)
    director.run()

    assert director.kinds == ["policy.changed", "policy.changed"]


def test_without_a_hold_out_nothing_is_begun_that_could_never_be_proved() -> None:
    world = World(has_holdout=False, traffic=TrafficFact(3, 1, ready=(1, 2)))
    director = Director(world)
    director.append(TriggerWished(request_id="a"))
    director.append(ProposalWished(request_id="b", version=2))
    director.run()

    declined = [each.payload.rule for each in director.log if each.kind == "wish.declined"]  # type: ignore[attr-defined]
    assert declined == ["NO_HOLDOUT", "NO_HOLDOUT"]
    assert (director.state.cycles, director.state.judged) == (0, 0)

    world.has_holdout = True
    director.run()
    assert ended(director) == ("PROMOTED", "")


def test_what_must_be_forgotten_is_replaced_without_a_hold_out_too() -> None:
    world = World(has_holdout=False, traffic=TrafficFact(3, 1, ready=(1,)), newest_sample=0, judged=0, tainted=(1,))
    director = Director(world)
    deadline = world.now + timedelta(hours=1)
    director.append(DeletionRequested(deletion_id="d", subject_digest="0", deadline=deadline))
    director.run()

    assert world.traffic.stable == 2
    assert world.traffic.ready == (2,)


def forgetting(world: World, hours: float = 1.0) -> Director:
    """Return a director whose champion has learnt what is deleted, after the deadline."""
    director = Director(world)
    deadline = world.now + timedelta(hours=hours)
    director.append(DeletionRequested(deletion_id="d", subject_digest="0", deadline=deadline))
    for _ in range(200):
        director.step()
    return director


@pytest.mark.parametrize(("champion", "clean"), [(2, 1), (1, 2)])
def test_where_no_successor_can_be_made_any_clean_version_takes_the_place_of_a_tainted_one(
    champion: int, clean: int
) -> None:
    traffic = TrafficFact(3, champion, ready=(1, 2))
    world = World(traffic=traffic, has_origin=False, has_base=False, newest_sample=0, tainted=(champion,))
    director = forgetting(world)

    assert world.traffic.stable == clean
    assert world.traffic.ready == (clean,)
    assert director.kinds[-3:] == ["rollback.intended", "rolled_back", "deletion.completed"]


def test_where_nothing_clean_is_left_a_new_network_learns_from_the_base() -> None:
    world = World(traffic=TrafficFact(3, 1, ready=(1,)), has_origin=False, newest_sample=0, tainted=(1,))
    director = forgetting(world, hours=100.0)

    assert [run.strategy for run in world.runs.values()] == [Strategy.SCRATCH]
    assert world.traffic.ready == (2,)
    assert director.state.deletions == ()


def test_a_tainted_version_that_nothing_can_replace_is_told_once_and_goes_as_soon_as_it_can() -> None:
    traffic = TrafficFact(3, 1, ready=(1,))
    world = World(traffic=traffic, has_origin=False, has_base=False, newest_sample=0, tainted=(1,))
    director = forgetting(world)

    assert director.kinds[-2:] == ["deletion.expired", "deletion.stuck"]
    assert director.state.deletions[0].stuck == "NO_STRATEGY"
    assert world.traffic.stable == 1

    world.traffic = replace(world.traffic, ready=(1, 2))  # somebody publishes a clean one
    director.run()
    assert world.traffic.ready == (2,)


def test_where_every_successor_fails_a_clean_version_takes_over_after_the_deadline() -> None:
    traffic = TrafficFact(3, 2, ready=(1, 2))
    world = World(traffic=traffic, newest_sample=0, tainted=(2,), failing=frozenset(Strategy))
    forgetting(world)

    assert world.traffic.stable == 1


def test_a_candidate_that_takes_other_pixels_is_no_shadow_and_the_log_says_why() -> None:
    director = Director(World(comparable=False)).run()

    assert "shadow.started" not in director.kinds
    ruling = director.last("shadow.ended").ruling  # type: ignore[attr-defined]
    assert ruling.rule == "OTHER_PREPROCESS_SPEC"
    assert ended(director) == ("PROMOTED", "")  # the canary has shown that it answers


@pytest.mark.parametrize(("version", "outcome"), [(2, "REFUSED"), (1, "EXHAUSTED")])
def test_a_version_that_does_not_answer_is_ruled_on_at_once(version: int, outcome: str) -> None:
    director = Director(World(judged=0, refusal=Refusal(version, "DOES_NOT_ANSWER"))).run()

    decided = director.last("gate.decided")
    assert isinstance(decided, GateDecided)
    assert (decided.outcome, decided.ruling.rule, decided.ruling.subject) == (
        outcome, "DOES_NOT_ANSWER", f"version {version}"
    )  # fmt: skip
    assert ended(director) == ("REFUSED", "DOES_NOT_ANSWER")
    assert director.world.now - director.log[0].time < timedelta(hours=1)


@pytest.mark.parametrize("stage", [Stage.GATE, Stage.SHADOW, Stage.CANARY])
@pytest.mark.parametrize(("version", "rule"), [(2, "CANDIDATE_GONE"), (1, "CHAMPION_GONE")])
def test_a_version_that_was_deleted_by_hand_ends_the_cycle_within_minutes(
    stage: Stage, version: int, rule: str
) -> None:
    director = Director(World(judged=0 if stage == Stage.GATE else 200)).until(stage)
    director.until_event(lambda state: state.cycle is not None and (state.cycle.gate is not None))
    if stage != Stage.GATE:
        director.until_event(lambda state: state.cycle is not None and state.cycle.trial is not None)
    time = director.world.now
    director.world.lose(version)

    director.until_event(lambda state: state.cycle is None)

    assert ended(director) == ("ABANDONED", rule)
    assert director.state.last_cycle is not None
    assert director.state.last_cycle.ruling.subject == f"version {version}"
    assert director.world.now - time < timedelta(minutes=5)
    on_trial = director.world.traffic.on_trial
    assert on_trial == (2 if version == 1 and stage != Stage.GATE else 0), "none could be given the traffic back"


def test_nothing_begins_while_the_champion_is_gone() -> None:
    world = World(traffic=TrafficFact(3, 2, ready=(1, 2)))
    world.lose(2)
    director = Director(world).run()

    assert director.state.cycles == 0


def test_one_margin_is_all_that_candidates_which_need_not_be_better_may_give_up() -> None:
    world = World(newest_sample=0, traffic=TrafficFact(3, 1, ready=(1, 2, 3, 4)))
    director = Director(world)

    def propose(version: int, goal: Goal) -> tuple[str, str]:
        world.answers = 0
        director.append(ProposalWished(request_id=f"propose-{version}-{goal}", version=version, goal=goal))
        director.run(2_000)
        return ended(director)

    assert propose(2, Goal.NOT_WORSE) == ("PROMOTED", "")
    judged = director.state.judged
    assert propose(3, Goal.NOT_WORSE) == ("REFUSED", "NOT_WORSE_SPENT")
    assert director.state.judged == judged  # it has spent nothing
    assert propose(3, Goal.BETTER) == ("PROMOTED", "")
    assert propose(4, Goal.NOT_WORSE) == ("PROMOTED", "")
