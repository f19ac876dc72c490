"""What the events of a cycle make of it, but for changes of the traffic."""

from dataclasses import replace
from datetime import datetime

from services.trainer.loop.cycle_payloads import (
    ActionFailed,
    CanaryEnded,
    CandidatePublished,
    CycleStarted,
    GateBegun,
    GateDecided,
    GateMeasured,
    PublicationIntended,
    RunCreated,
    RunEnded,
    ShadowEnded,
    SnapshotMade,
    TrialEnded,
    TrialRestarted,
)
from services.trainer.loop.events import Event
from services.trainer.loop.state import Attempt, Cycle, Ending, Gate, InvalidLog, Stage, Trial
from services.trainer.loop.values import GateOutcome, Outcome, Ruling, TrialVerdict

SUCCEEDED = "SUCCEEDED"
"""State of a run that has made a model."""


def check(fits: bool, event: Event, expected: str) -> None:
    """Make sure that an event fits.

    Raises:
        InvalidLog: It does not.
    """
    if not fits:
        raise InvalidLog(
            f"event {event.number} ({event.kind}, cycle {event.cycle}) of model {event.model!r} cannot be: {expected}; "
            "restore the database, or let the loop of this model begin anew under another name"
        )


def begin(event: Event, payload: CycleStarted) -> Cycle:
    """Return the cycle that *event* begins."""
    stage = Stage.GATE if payload.candidate else Stage.SNAPSHOT
    return Cycle(
        number=event.cycle,
        reason=payload.reason,
        goal=payload.goal,
        champion=payload.champion,
        generation=payload.generation,
        accepted=payload.accepted,
        start_time=event.time,
        wished_strategy=payload.strategy,
        deletion=payload.deletion,
        stage=stage,
        entered=((stage, event.time),),
        candidate=payload.candidate,
    )


def advance(cycle: Cycle, event: Event) -> Cycle:
    """Return *cycle* after an event of its own.

    Raises:
        InvalidLog: The event does not fit the cycle's stage.
    """
    match event.payload:
        case SnapshotMade() as payload:
            _at(cycle, event, Stage.SNAPSHOT)
            cycle = replace(cycle, snapshot=payload.digest, last_sample=payload.last_sample)
            return _entered(cycle, Stage.RUN, event.time)
        case RunCreated() as payload:
            _at(cycle, event, Stage.RUN)
            check(not cycle.running and payload.attempt == len(cycle.attempts), event, "a run is under way")
            return replace(cycle, attempts=(*cycle.attempts, Attempt(payload.strategy, payload.run_id)))
        case RunEnded() as payload:
            return _run_ended(cycle, event, payload)
        case ActionFailed() as payload:
            return _failed(cycle, event, payload)
        case PublicationIntended() as payload:
            _at(cycle, event, Stage.PUBLISH)
            check(not cycle.publication_id, event, "a publication was intended already")
            return replace(cycle, publication_id=payload.publication_id)
        case CandidatePublished() as payload:
            _at(cycle, event, Stage.PUBLISH)
            check(bool(cycle.publication_id), event, "no publication was intended")
            check(payload.version != cycle.champion, event, "a version is no candidate against itself")
            return _entered(replace(cycle, candidate=payload.version), Stage.GATE, event.time)
        case GateBegun() as payload:
            _at(cycle, event, Stage.GATE)
            check(cycle.gate is None, event, "the gate has begun already")
            return replace(cycle, gate=Gate(payload, move_time=event.time))
        case GateMeasured() as payload:
            return _measured(cycle, event, payload)
        case GateDecided() as payload:
            return _decided(cycle, event, payload)
        case ShadowEnded() as payload:
            _at(cycle, event, Stage.SHADOW)
            skipped = payload.verdict == TrialVerdict.SKIPPED
            check((cycle.trial is None) == skipped, event, "the candidate is no shadow, or it is one")
            return _refused(cycle, payload) or _entered(replace(cycle, trial=None), Stage.CANARY, event.time)
        case CanaryEnded() as payload:
            _at(cycle, event, Stage.CANARY)
            check(not cycle.cleared, event, "the trial has ended already")
            return _refused(cycle, payload) or replace(cycle, trial=None, cleared=True)
        case TrialRestarted() as payload:
            check(cycle.trial is not None, event, "the candidate is on no trial")
            return replace(cycle, trial=Trial(payload.begin, event.time))
    raise InvalidLog(f"event {event.number} of model {event.model!r} has kind {event.kind}, which no cycle has")


def _at(cycle: Cycle, event: Event, stage: Stage) -> None:
    check(cycle.stage == stage, event, f"the cycle is at {cycle.stage}, not {stage}")
    check(not cycle.promoted and cycle.ending is None, event, "the cycle is only to be ended")


def _entered(cycle: Cycle, stage: Stage, time: datetime) -> Cycle:
    return replace(cycle, stage=stage, entered=(*cycle.entered, (stage, time)))


def _run_ended(cycle: Cycle, event: Event, payload: RunEnded) -> Cycle:
    attempt = cycle.attempt
    check(attempt is not None and cycle.running == payload.run_id, event, "this run is not under way")
    assert attempt is not None
    ended = replace(attempt, state=payload.state, rule=payload.rule)
    cycle = replace(cycle, attempts=(*cycle.attempts[:-1], ended))
    return _entered(cycle, Stage.PUBLISH, event.time) if payload.state == SUCCEEDED else cycle


def _failed(cycle: Cycle, event: Event, payload: ActionFailed) -> Cycle:
    if payload.strategy is None:  # nothing else could be tried instead
        ruling = Ruling(rule=payload.rule, subject=payload.action)
        return replace(cycle, ending=cycle.ending or Ending(Outcome.FAILED, ruling))
    _at(cycle, event, Stage.RUN)
    check(not cycle.running, event, "a run is under way")
    attempt = Attempt(payload.strategy, state="FAILED", rule=payload.rule)
    return replace(cycle, attempts=(*cycle.attempts, attempt))


def _measured(cycle: Cycle, event: Event, payload: GateMeasured) -> Cycle:
    _at(cycle, event, Stage.GATE)
    check(cycle.gate is not None, event, "the gate has not begun")
    assert cycle.gate is not None
    old, new = cycle.gate.figures, payload.figures
    more = new.holdout.count + new.live.count > old.holdout.count + old.live.count
    move_time = event.time if more else cycle.gate.move_time
    return replace(cycle, gate=replace(cycle.gate, figures=new, measure_time=event.time, move_time=move_time))


def _decided(cycle: Cycle, event: Event, payload: GateDecided) -> Cycle:
    _at(cycle, event, Stage.GATE)
    if payload.outcome != GateOutcome.PASSED:
        return replace(cycle, ending=Ending(Outcome.REFUSED, payload.ruling))
    proved = cycle.gate is not None and cycle.gate.figures.log_e >= cycle.gate.begun.log_e_bound
    check(proved, event, "what was measured does not prove it")
    return _entered(replace(cycle, passed=event.number), Stage.SHADOW, event.time)


def _refused(cycle: Cycle, payload: TrialEnded) -> Cycle | None:
    if payload.verdict != TrialVerdict.FAILED:
        return None
    return replace(cycle, trial=None, ending=Ending(Outcome.REFUSED, payload.ruling))
