"""What an event makes of the state. An event that does not fit the state before it is an error, never skipped."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from services.trainer.loop import cycle_payloads as of_cycle
from services.trainer.loop import payloads
from services.trainer.loop.cycle_reducer import advance, begin, check
from services.trainer.loop.events import Event
from services.trainer.loop.moves import intended, made
from services.trainer.loop.policy import Strategy
from services.trainer.loop.state import Deletion, InvalidLog, LoopState, Stage, Wished
from services.trainer.loop.values import GateOutcome, Outcome

_DAY = timedelta(days=1)


def replay(model: str, events: Iterable[Event]) -> LoopState:
    """Return the state of *model* after *events*, the first of which has number 1.

    Raises:
        InvalidLog: An event does not fit those before it.
    """
    state = LoopState(model)
    for event in events:
        state = fold(state, event)
    return state


def fold(state: LoopState, event: Event) -> LoopState:
    """Return the state after *event*.

    Raises:
        InvalidLog: It does not fit: a number is left out, a stage is skipped, or a version is promoted that neither
            the gate nor a person has let through.
    """
    if event.model != state.model or event.number != state.number + 1:
        raise InvalidLog(
            f"event {event.number} of model {event.model!r} cannot follow event {state.number} of model "
            f"{state.model!r}; read all events of one model, in their order"
        )
    return replace(_folded(state, event), number=event.number)


def _folded(state: LoopState, event: Event) -> LoopState:
    payload = event.payload
    match payload:
        case payloads.Wish():
            return replace(state, wishes=(*state.wishes, Wished(event.number, payload)))
        case payloads.WishDeclined():
            return _without_wish(state, event, payload.wish)
        case of_cycle.CycleStarted():
            return _started(state, event, payload)
        case of_cycle.CycleEnded():
            return _ended(state, event, payload)
        case of_cycle.MoveIntended():
            return intended(state, event, payload)
        case of_cycle.MoveMade():
            return made(state, event, payload)
        case of_cycle.MoveAbandoned():
            check(state.move is not None, event, "no change of the traffic was intended")
            return replace(state, move=None)
        case of_cycle.ActionFailed() if state.cycle is None or state.move is not None:
            check(state.move is not None, event, "nothing was tried")
            check(state.move is None or state.move.made is not of_cycle.Withdrawn, event, "a withdrawal is tried again")
            return _not_moved(state, event)
        case payloads.AlarmRaised():
            heard = state.heard.get(payload.detector, 0)
            check(payload.alarm > heard, event, f"alarm {heard} of {payload.detector} was raised already")
            heeded = {**state.heard, payload.detector: payload.alarm}
            return replace(state, heard=heeded, alarms=state.alarms | {payload.detector})
        case payloads.TrafficChanged():
            return _moved_by_others(state, event, payload)
        case payloads.CapturePaused():
            return replace(state, paused=payload.reason)
        case payloads.CaptureResumed():
            return replace(state, paused="")
        case payloads.PolicyChanged():
            return replace(state, policy_digest=payload.digest)
        case payloads.DeletionRequested():
            deletion = Deletion(payload.deletion_id, payload.deadline)
            check(deletion.id not in {each.id for each in state.deletions}, event, "it was requested already")
            return replace(state, deletions=(*state.deletions, deletion))
        case payloads.OfDeletion():
            return _deletion(state, event, payload)
    check(state.cycle is not None, event, "no cycle is under way")
    assert state.cycle is not None
    check(event.cycle == state.cycle.number, event, f"cycle {state.cycle.number} is under way")
    check(state.move is None, event, "a change of the traffic is under way")
    return _after_gate(replace(state, cycle=advance(state.cycle, event)), event)


def _started(state: LoopState, event: Event, payload: of_cycle.CycleStarted) -> LoopState:
    check(state.cycle is None and state.move is None, event, "something is under way already")
    check(event.cycle == state.cycles + 1, event, f"the next cycle is {state.cycles + 1}")
    check(payload.candidate != payload.champion, event, "a version is no candidate against itself")
    check(payload.candidate not in state.tainted, event, "the candidate is tainted")
    check(
        not payload.deletion or payload.deletion in {each.id for each in state.deletions},
        event,
        "the deletion is not open",
    )
    if payload.wish:
        state = _without_wish(state, event, payload.wish)
    else:
        recent = tuple(each for each in state.starts if event.time - each < _DAY)
        state = replace(state, starts=(*recent, event.time))
    return replace(
        state,
        cycle=begin(event, payload),
        cycles=event.cycle,
        alarms=frozenset(),
        generation=payload.generation,
        stable=payload.champion,
    )


def _ended(state: LoopState, event: Event, payload: of_cycle.CycleEnded) -> LoopState:
    cycle = state.cycle
    check(cycle is not None and event.cycle == cycle.number, event, "this cycle is not under way")
    assert cycle is not None
    check(state.move is None and not cycle.running, event, "a change of the traffic or a run is under way")
    check((payload.outcome == Outcome.PROMOTED) == cycle.promoted, event, "its outcome is not what has happened")
    check(not cycle.in_traffic or payload.ruling.rule in of_cycle.LEFT_ALONE, event, "the candidate has traffic")
    if payload.wish:
        state = _without_wish(state, event, payload.wish)
    last = replace(
        cycle,
        stage=Stage.ENDED,
        entered=(*cycle.entered, (Stage.ENDED, event.time)),
        outcome=payload.outcome,
        ruling=payload.ruling,
        end_time=event.time,
    )
    refused = payload.outcome == Outcome.REFUSED
    deletions = tuple(
        replace(each, refused=each.refused or (refused and each.id == cycle.deletion)) for each in state.deletions
    )
    failures = state.failures + 1 if payload.outcome == Outcome.FAILED else 0
    settled = payload.outcome in (Outcome.PROMOTED, Outcome.REFUSED)
    last_sample = max(state.last_sample, cycle.last_sample) if settled else state.last_sample
    return replace(state, cycle=None, last_cycle=last, failures=failures, deletions=deletions, last_sample=last_sample)


def _moved_by_others(state: LoopState, event: Event, payload: payloads.TrafficChanged) -> LoopState:
    """Return the state with the traffic that was found; a cycle keeps the one that it knows, and ends by that."""
    check(state.move is None, event, "a change of the traffic is under way")
    check(payload.generation != state.generation, event, f"generation {state.generation} is known already")
    taken_back = state.taken_back
    if payload.stable != state.stable:
        gone_back = {payload.previous} if 0 < payload.stable < payload.previous else set()
        taken_back = (taken_back | gone_back) - {payload.stable}
    return replace(state, generation=payload.generation, stable=payload.stable, taken_back=taken_back)


def _after_gate(state: LoopState, event: Event) -> LoopState:
    """Return the state with what outlives the cycle of its gate's events."""
    payload, cycle = event.payload, state.cycle
    assert cycle is not None
    if isinstance(payload, of_cycle.GateBegun):
        expected = state.judged if cycle.deletion else state.judged + 1
        check(payload.candidate_count == expected, event, f"the count of candidates must be {expected}")
        return replace(state, judged=payload.candidate_count)
    if isinstance(payload, of_cycle.GateDecided):
        unproved = state.unproved
        if payload.outcome == GateOutcome.EXHAUSTED and cycle.attempt and cycle.attempt.strategy == Strategy.REFIT:
            unproved = cycle.accepted
        return replace(state, unproved=unproved)
    return state


def _not_moved(state: LoopState, event: Event) -> LoopState:
    authority = state.move.authority if state.move else 0
    deletions = tuple(
        replace(each, no_way_back=each.no_way_back or (state.cycle is None and each.expired == authority != 0))
        for each in state.deletions
    )
    cycle = advance(state.cycle, event) if state.cycle else None
    return replace(state, move=None, cycle=cycle, deletions=deletions)


def _deletion(state: LoopState, event: Event, payload: payloads.OfDeletion) -> LoopState:
    found = next((each for each in state.deletions if each.id == payload.deletion_id), None)
    check(found is not None, event, "the deletion is not open")
    assert found is not None
    match payload:
        case payloads.DeletionErased():
            check(not found.erased, event, "its rows are erased already")
            check(state.cycle is None, event, "a cycle may hold what is erased")
            new = replace(found, erased=True, versions=payload.versions)
            state = replace(state, tainted=state.tainted | set(payload.versions))
        case payloads.DeletionExpired():
            check(event.time >= found.deadline and not found.expired, event, "its deadline has not passed, or long ago")
            new = replace(found, expired=event.number)
        case payloads.DeletionStuck():
            check(bool(found.expired), event, "its deadline has not passed")
            new = replace(found, stuck=payload.rule)
        case payloads.DeletionCompleted():
            check(found.erased and state.cycle is None, event, "it is not erased, or a cycle is under way")
            left = tuple(each for each in state.deletions if each is not found)
            return replace(state, deletions=left, generation=payload.generation or state.generation)
    return replace(state, deletions=tuple(new if each is found else each for each in state.deletions))


def _without_wish(state: LoopState, event: Event, number: int) -> LoopState:
    check(number in {each.number for each in state.wishes}, event, f"wish {number} is not open")
    return replace(state, wishes=tuple(each for each in state.wishes if each.number != number))
