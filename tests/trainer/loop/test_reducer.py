"""Logs that cannot be are refused, whoever wrote them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.trainer.loop.cycle_payloads import (
    CycleEnded,
    GateBegun,
    GateDecided,
    Promoted,
    PromotionIntended,
    RollbackIntended,
    RunCreated,
    ShadowIntended,
)
from services.trainer.loop.events import KINDS, Event, parse_payload
from services.trainer.loop.payloads import DeletionExpired, Payload, RollbackWished, TriggerWished, WishDeclined
from services.trainer.loop.policy import Strategy
from services.trainer.loop.reducer import fold, replay
from services.trainer.loop.state import InvalidLog, LoopState, Stage
from services.trainer.loop.values import GateOutcome, Outcome, Ruling, Wanted
from tests.trainer.loop.world import Director, World

WHOLE = Director(World()).run().log
"""Of a cycle that promotes."""


def at(stage: Stage) -> Callable[[], Director]:
    return lambda: Director(World()).until(stage)


def before_promotion() -> Director:
    return Director(World()).until_event(lambda state: state.cycle is not None and state.cycle.cleared)


def promotion(version: int, authority: int) -> PromotionIntended:
    return PromotionIntended(wanted=Wanted(stable=version), generation=3, authority=authority)


PASSED = next(each.number for each in WHOLE if each.kind == "gate.decided")


@pytest.mark.parametrize(
    ("reached", "payload"),
    [
        (at(Stage.GATE), promotion(2, 0)),
        (at(Stage.GATE), promotion(2, 1)),
        (at(Stage.CANARY), promotion(2, PASSED)),
        (before_promotion, promotion(1, PASSED)),
        (before_promotion, promotion(2, PASSED - 1)),
        (before_promotion, Promoted(generation=9)),
        (at(Stage.GATE), GateDecided(outcome=GateOutcome.PASSED, ruling=Ruling())),
        (at(Stage.GATE), GateBegun(candidate_count=2, error_share=0.01, margin=0.0)),
        (at(Stage.GATE), ShadowIntended(wanted=Wanted(stable=1, shadow=2), generation=3)),
        (at(Stage.CANARY), CycleEnded(outcome=Outcome.FAILED, stage="CANARY", ruling=Ruling(rule="X"))),
        (at(Stage.GATE), CycleEnded(outcome=Outcome.PROMOTED, stage="GATE")),
        (at(Stage.PUBLISH), RunCreated(run_id="r", attempt=1, strategy=Strategy.REFIT)),
        (at(Stage.GATE), RollbackIntended(wanted=Wanted(stable=1), generation=3, authority=1)),
        (at(Stage.GATE), WishDeclined(wish=1, rule="X")),
        (at(Stage.GATE), DeletionExpired(deletion_id="d")),
    ],
)
def test_an_event_that_does_not_fit_is_an_error(reached: Callable[[], Director], payload: Payload) -> None:
    director = reached()

    with pytest.raises(
        InvalidLog, match=rf"event \d+ \({payload.kind}, cycle \d+\) of model 'm' cannot be: .*; restore"
    ):
        fold(director.state, director.state.next_event(payload, director.world.now))


@pytest.mark.parametrize("number", [0, 2, 5])
def test_a_number_that_is_left_out_or_comes_again_is_an_error(number: int) -> None:
    event = replace(WHOLE[0], number=number)

    with pytest.raises(InvalidLog, match=f"event {number} of model 'm' cannot follow event 0 of model 'm'"):
        fold(LoopState("m"), event)


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, len(WHOLE) - 1))
def test_events_in_another_order_are_an_error_or_say_nothing_of_the_cycle(first: int, second: int) -> None:
    events = list(WHOLE)
    events[first], events[second] = events[second], events[first]
    renumbered = [replace(each, number=number) for number, each in enumerate(events, 1)]
    same = [each.kind for each in events] == [each.kind for each in WHOLE]
    movable = "policy.changed" in (WHOLE[first].kind, WHOLE[second].kind) and abs(first - second) <= 1

    try:
        replay("m", renumbered)
    except InvalidLog:
        assert first != second
    else:
        assert same or movable


def test_state_is_the_same_however_often_it_is_folded_anew() -> None:
    state = LoopState("m")
    for number, event in enumerate(WHOLE, 1):
        state = fold(state, event)
        assert replay("m", WHOLE[:number]) == state


def test_wishes_wait_in_their_order_and_are_gone_when_they_are_answered() -> None:
    director = Director(World(accepted=0, newest_sample=0))
    director.append(RollbackWished(request_id="a"))
    director.append(TriggerWished(request_id="b"))
    director.append(RollbackWished(request_id="a"))

    assert [each.wish.request_id for each in director.state.wishes] == ["a", "b"]
    director.until(Stage.SNAPSHOT)
    assert director.state.wishes == ()
    assert director.kinds == ["wish.rollback", "wish.trigger", "policy.changed", "wish.declined", "cycle.started"]


def test_every_kind_has_one_payload_that_the_log_gives_back() -> None:
    for event in WHOLE:
        assert parse_payload(event.kind, event.payload.model_dump(mode="json")) == event.payload
    assert {each.kind for each in WHOLE} <= set(KINDS)


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("cycle.begun", {}, "events have no kind 'cycle.begun'; the kinds are action.failed, alarm.raised"),
        (
            "wish.promote",
            {"request_id": "a"},
            "an event 'wish.promote' does not fit: version: Field required; write it",
        ),
        ("pinned", {"generation": 1, "by": "me"}, "by: Extra inputs are not permitted; write it as Pinned has it"),
    ],
)
def test_a_payload_that_does_not_fit_is_told(kind: str, fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse_payload(kind, fields)

    assert sentence in error.value.message


def test_an_event_is_named_once_where_its_number_alone_would_not_keep_it_from_coming_twice() -> None:
    keys = [each.key for each in WHOLE if each.key is not None]

    assert len(set(keys)) == len(keys)
    assert "cycle.started-1" in keys
    assert isinstance(WHOLE[0], Event)
