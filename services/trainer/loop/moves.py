"""What changes of the traffic make of the state: who may ask for which, and what is the case once it is made."""

from dataclasses import replace

from services.trainer.loop.cycle_payloads import (
    CanaryIntended,
    CanaryMoved,
    MoveIntended,
    MoveMade,
    PinIntended,
    Pinned,
    Promoted,
    PromotionIntended,
    RollbackIntended,
    RolledBack,
    ShadowIntended,
    ShadowStarted,
    WithdrawalIntended,
    Withdrawn,
)
from services.trainer.loop.cycle_reducer import check
from services.trainer.loop.events import Event
from services.trainer.loop.payloads import PromotionWished, RollbackWished, Wish
from services.trainer.loop.state import Cycle, LoopState, Move, Stage, Trial
from services.trainer.loop.values import Goal, TrialCounts, Wanted

_MADE: dict[type[MoveIntended], type[MoveMade]] = {
    PinIntended: Pinned,
    ShadowIntended: ShadowStarted,
    CanaryIntended: CanaryMoved,
    PromotionIntended: Promoted,
    WithdrawalIntended: Withdrawn,
    RollbackIntended: RolledBack,
}


def intended(state: LoopState, event: Event, payload: MoveIntended) -> LoopState:
    """Return the state in which the traffic shall change.

    Raises:
        InvalidLog: The change does not fit the stage of the cycle, or nobody who may has allowed it.
    """
    check(state.move is None, event, "another change of the traffic is under way")
    if state.cycle is None:
        check(isinstance(payload, PromotionIntended | RollbackIntended), event, "no cycle is under way")
    else:
        check(event.cycle == state.cycle.number, event, f"cycle {state.cycle.number} is under way")
        check(not state.cycle.promoted, event, "its candidate was promoted")
        check(_fits_cycle(state.cycle, payload), event, f"the cycle is at {state.cycle.stage}")
    if isinstance(payload, PromotionIntended | RollbackIntended):
        check(_allowed(state, payload), event, f"event {payload.authority} does not allow it")
        check(payload.wanted == Wanted(stable=payload.wanted.stable), event, "a trial would go on beside it")
        check(payload.wanted.stable not in state.tainted, event, f"version {payload.wanted.stable} is tainted")
    taken_back = payload.taken_back if isinstance(payload, RollbackIntended) else 0
    move = Move(_MADE[type(payload)], payload.wanted, payload.generation, payload.authority, taken_back)
    wishes = tuple(each for each in state.wishes if each.number != payload.authority)
    return replace(state, move=move, wishes=wishes)


def made(state: LoopState, event: Event, payload: MoveMade) -> LoopState:
    """Return the state in which the traffic has changed.

    Raises:
        InvalidLog: Another change was intended, or none.
    """
    move = state.move
    check(move is not None and move.made is type(payload), event, "this change was not intended")
    assert move is not None
    stable = move.wanted.stable
    state = replace(state, move=None, generation=payload.generation, stable=stable)
    if isinstance(payload, Promoted):
        state = replace(state, unproved=0, taken_back=state.taken_back - {stable})
    elif move.taken_back:
        state = replace(state, taken_back=state.taken_back | {move.taken_back})
    if state.cycle is None:
        return state
    cycle = replace(state.cycle, generation=payload.generation)
    match payload:
        case ShadowStarted():
            cycle = replace(cycle, in_traffic=True, trial=Trial(TrialCounts(), event.time))
        case CanaryMoved():
            cycle = replace(cycle, in_traffic=True, trial=Trial(payload.begin, event.time), steps=cycle.steps + 1)
        case Promoted():
            cycle = replace(cycle, in_traffic=False, trial=None, promoted=True)
            state = replace(state, given_up=_given_up(state, cycle))
        case Withdrawn():
            cycle = replace(cycle, in_traffic=False, trial=None)
    return replace(state, cycle=cycle)


def _given_up(state: LoopState, cycle: Cycle) -> float:
    """Return what of the accuracy may be lost in all once the candidate serves.

    One that was promoted past the gate has proved nothing, and one of a deletion has a margin of its own.
    """
    if not cycle.passed or cycle.deletion or cycle.gate is None:
        return state.given_up
    return 0.0 if cycle.goal == Goal.BETTER else state.given_up + cycle.gate.begun.margin


def _fits_cycle(cycle: Cycle, payload: MoveIntended) -> bool:
    champion = Wanted(stable=cycle.champion)
    going_on = cycle.ending is None
    match payload:
        case PinIntended():
            return going_on and cycle.stage == Stage.PUBLISH and payload.wanted == champion
        case ShadowIntended():
            wanted = champion.model_copy(update={"shadow": cycle.candidate})
            return going_on and cycle.stage == Stage.SHADOW and cycle.trial is None and payload.wanted == wanted
        case CanaryIntended():
            wanted = champion.model_copy(
                update={"canary": cycle.candidate, "canary_share": payload.wanted.canary_share}
            )
            return going_on and cycle.stage == Stage.CANARY and not cycle.cleared and payload.wanted == wanted
        case PromotionIntended():
            return cycle.candidate != 0 and payload.wanted.stable == cycle.candidate
        case WithdrawalIntended():
            return cycle.in_traffic and payload.wanted == champion
    return False


def _allowed(state: LoopState, payload: PromotionIntended | RollbackIntended) -> bool:
    """Whether somebody who may has allowed it: the gate of this cycle, a person, or the deadline of a deletion."""
    wish = next((each.wish for each in state.wishes if each.number == payload.authority), None)
    expired = next((each for each in state.deletions if payload.authority and each.expired == payload.authority), None)
    if isinstance(payload, RollbackIntended):
        return isinstance(wish, RollbackWished) or expired is not None
    return _grants(wish, payload.wanted.stable) or (
        state.cycle is not None
        and (
            (state.cycle.cleared and state.cycle.passed == payload.authority != 0)
            or (expired is not None and expired.id == state.cycle.deletion)
        )
    )


def _grants(wish: Wish | None, version: int) -> bool:
    return isinstance(wish, PromotionWished) and wish.version == version
