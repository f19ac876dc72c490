"""Messages of the loop contract, made from what the loop is."""

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from aimass.trainer.v1 import loop_pb2 as pb
from services.common.durations import duration_of
from services.common.errors import InvalidInput
from services.trainer.contracts.rules import NO_HOLDOUT_CHANGE, explain
from services.trainer.contracts.timestamps import timestamp_of
from services.trainer.loop.events import Event
from services.trainer.loop.measuring import ACCURACY_ERROR
from services.trainer.loop.overview import Overview
from services.trainer.loop.payloads import AlarmRaised
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.state import Cycle, Gate, LoopState, Stage
from services.trainer.loop.triggers import waits_for
from services.trainer.loop.values import Goal, Outcome, Paired, Ruling
from services.trainer.statistics.intervals import Interval

_SECOND_NS = 1e9


def pack_loop(
    state: LoopState, overview: Overview, policy: LoopPolicy, disabled_reason: str, now: datetime
) -> pb.GetLoopResponse:
    """Return how a loop stands, but for what inference is asked for."""
    gate = state.cycle.gate if state.cycle and state.cycle.stage == Stage.GATE else None
    disabled_reason = disabled_reason or _stuck(state)
    return pb.GetLoopResponse(
        enabled=not disabled_reason,
        disabled_reason=disabled_reason,
        cycle=pack_cycle(state.cycle) if state.cycle else None,
        last_cycle=pack_cycle(state.last_cycle) if state.last_cycle else None,
        reported_accuracy=overview.agreed or 0.0,
        accepted_count=overview.accepted,
        accepted_since_snapshot=overview.accepted_since,
        pending_count=overview.states.get("PENDING", 0),
        quarantined_count=overview.states.get("QUARANTINED", 0),
        proposed_count=overview.states.get("PROPOSED", 0),
        to_judge_count=gate.figures.labels_wanted if gate else overview.waiting,
        next_trigger="" if state.cycle else _next_trigger(state, overview, policy, now),
        policy_json=policy.model_dump_json(),
        policy_digest=policy.digest,
    )


def pack_cycle(cycle: Cycle) -> pb.Cycle:
    """Return a cycle as the contract has it."""
    attempt = cycle.attempt
    ruling = cycle.ending.ruling if cycle.ending else cycle.ruling
    ended = cycle.outcome is not None or cycle.ending is not None
    refused = ended and cycle.outcome != Outcome.PROMOTED
    return pb.Cycle(
        number=cycle.number,
        stage=pb.Cycle.Stage.Value(f"STAGE_{cycle.stage}"),
        goal=pb.Cycle.Goal.Value(f"GOAL_{cycle.goal}"),
        reason=cycle.reason,
        strategy=(attempt.strategy if attempt else cycle.wished_strategy) or "",
        snapshot=cycle.snapshot,
        run_id=attempt.run_id if attempt else "",
        champion_version=cycle.champion,
        candidate_version=cycle.candidate,
        gate=_gate(cycle.gate) if cycle.gate else None,
        refusal=_refusal(ruling) if refused else None,
        promoted=cycle.promoted,
        start_time=timestamp_of(cycle.start_time),
        end_time=timestamp_of(cycle.end_time) if cycle.end_time else None,
        stage_durations={
            stage.lower(): duration_of(int((end - begin).total_seconds() * _SECOND_NS))
            for (stage, begin), (_, end) in pairwise(cycle.entered)
        },
    )


def unpack_goal(goal: pb.Cycle.Goal.ValueType) -> Goal:
    """Return what a version is to be; better, where nothing is said.

    Raises:
        InvalidInput: There is no such goal.
    """
    if goal not in pb.Cycle.Goal.values():
        raise InvalidInput(f"goal {goal} is unknown; give GOAL_BETTER, GOAL_NOT_WORSE or none", field="goal")
    return Goal.NOT_WORSE if goal == pb.Cycle.GOAL_NOT_WORSE else Goal.BETTER


def pack_accuracy(version: int, interval: Interval, overview: Overview) -> pb.Accuracy:
    """Return the accuracy of a version on its traffic."""
    return pb.Accuracy(
        version=version,
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        confidence=1 - ACCURACY_ERROR,
        draw_count=interval.count,
        lost_draw_count=overview.lost.get(version, 0),
    )


def pack_event(event: Event) -> pb.Event:
    """Return an event as the contract has it."""
    return pb.Event(
        number=event.number,
        cycle=event.cycle,
        kind=event.kind,
        time=timestamp_of(event.time),
        payload_json=json.dumps(event.payload.model_dump(mode="json", exclude_defaults=True)),
    )


def pack_alarms(events: Sequence[Event]) -> list[pb.Alarm]:
    """Return the alarms among *events*."""
    return [
        pb.Alarm(
            kind=event.payload.detector,
            time=timestamp_of(event.time),
            level=event.payload.level,
            threshold=event.payload.threshold,
            message=f"{event.payload.detector} is at {event.payload.level:.3g}, and its threshold is "
            f"{event.payload.threshold:.3g}",
        )
        for event in events
        if isinstance(event.payload, AlarmRaised)
    ]


def _stuck(state: LoopState) -> str:
    """Return that nothing can take the place of a version that must go; empty where something can."""
    stuck = next((each for each in state.deletions if each.stuck), None)
    if stuck is None or state.cycle is not None:
        return ""
    return (
        f"the deadline of deletion {stuck.id} has passed, and no version can take the place of the one that has learnt "
        f"what must be forgotten ({stuck.stuck}); publish a version that has not, and let it serve"
    )


def _next_trigger(state: LoopState, overview: Overview, policy: LoopPolicy, now: datetime) -> str:
    if not overview.has_holdout:
        return f"a hold-out, without which no candidate can be judged: {NO_HOLDOUT_CHANGE}"
    return waits_for(state, overview.accepted_since, policy, now)


def _gate(gate: Gate) -> pb.GateFigures:
    return pb.GateFigures(
        candidate_count=gate.begun.candidate_count,
        error_share=gate.begun.error_share,
        holdout=_paired(gate.figures.holdout),
        live=_paired(gate.figures.live),
        log_e=gate.figures.log_e,
        log_e_bound=gate.begun.log_e_bound,
        labels_wanted=gate.figures.labels_wanted,
    )


def _paired(paired: Paired) -> pb.Paired:
    return pb.Paired(**paired.model_dump())


def _refusal(ruling: Ruling) -> pb.Refusal:
    return pb.Refusal(rule=ruling.rule, figure=ruling.figure, bound=ruling.bound, message=explain(ruling))
