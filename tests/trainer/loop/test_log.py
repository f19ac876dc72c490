"""Events that are written once and in order, by whoever has the lease."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from services.common.errors import Conflict
from services.trainer.data.models import Model
from services.trainer.loop.cycle_payloads import CycleEnded, CycleStarted
from services.trainer.loop.log import EventLog, Lease, Leases
from services.trainer.loop.payloads import AlarmRaised, PolicyChanged, TriggerWished
from services.trainer.loop.reducer import replay
from services.trainer.loop.state import LoopState
from services.trainer.loop.tables import LoopLeaseRow
from services.trainer.loop.values import Outcome, Reason
from services.trainer.storage.database import Database
from tests.trainer.loop.conftest import MODEL, Clock

STARTED = CycleStarted(reason=Reason.BY_HAND, accepted=1, champion=1, generation=0, policy_digest="a")


@pytest.fixture
def leases(database: Database, clock: Clock) -> Leases:
    return Leases(database, "first", 10.0, clock)


@pytest.fixture
def others(database: Database, clock: Clock) -> Leases:
    return Leases(database, "second", 10.0, clock)


@pytest.fixture
def lease(leases: Leases, task: Model) -> Lease:
    lease = leases.hold(MODEL)
    assert lease is not None
    return lease


def test_what_was_appended_is_read_and_folded_as_it_was(log: EventLog, lease: Lease, clock: Clock) -> None:
    state = LoopState(MODEL)
    for payload in (PolicyChanged(digest="a"), STARTED, AlarmRaised(alarm=1, detector="x", level=2.0, threshold=1.0)):
        log.append(state.next_event(payload, clock()), lease)
        clock.pass_by(1.2345678)
        state = log.catch_up(state)

    events = log.read(MODEL)

    assert [each.number for each in events] == [1, 2, 3]
    assert [each.cycle for each in events] == [0, 1, 1]
    assert state == replay(MODEL, events)
    assert state.cycle is not None
    assert log.read(MODEL, after=1, limit=1) == [events[1]]
    assert log.read(MODEL, kind="cycle.started") == [events[1]]
    assert log.last(MODEL) == [events[2]]
    assert log.last(MODEL, "policy.changed") == [events[0]]


def test_an_event_whose_number_is_taken_is_refused(log: EventLog, lease: Lease, clock: Clock) -> None:
    state = LoopState(MODEL)
    log.ask(MODEL, TriggerWished(request_id="by-hand-1"))

    with pytest.raises(Conflict) as caught:
        log.append(state.next_event(PolicyChanged(digest="a"), clock()), lease)

    assert caught.value.reason == "NOT_ALONE"
    assert [each.kind for each in log.read(MODEL)] == ["wish.trigger"]


def test_who_was_overtaken_cannot_write_any_more(
    log: EventLog, lease: Lease, leases: Leases, others: Leases, clock: Clock
) -> None:
    clock.pass_by(10.0)
    overtaking = others.hold(MODEL)

    assert overtaking is not None
    assert overtaking.fence > lease.fence
    assert leases.hold(MODEL) is None
    with pytest.raises(Conflict, match="taken over"):
        log.append(LoopState(MODEL).next_event(PolicyChanged(digest="a"), clock()), lease)


def test_a_lease_that_is_held_again_or_released_says_who_is_next(
    lease: Lease, leases: Leases, others: Leases, clock: Clock
) -> None:
    clock.pass_by(9.0)
    assert leases.hold(MODEL) == lease
    clock.pass_by(9.0)
    assert others.hold(MODEL) is None

    leases.release(lease)
    taken = others.hold(MODEL)
    leases.release(lease)  # of one that is not ours any more: nothing

    assert taken is not None
    assert others.hold(MODEL) == taken
    assert leases.hold(MODEL) is None


def test_a_key_that_is_there_is_the_same_event(log: EventLog, lease: Lease, clock: Clock) -> None:
    state = LoopState(MODEL)
    log.append(state.next_event(STARTED, clock()), lease)
    state = log.catch_up(state)
    again = state.next_event(STARTED, clock())

    log.append(type(again)(MODEL, again.number, 1, again.time, STARTED), lease)

    assert len(log.read(MODEL)) == 1


def test_what_is_asked_for_twice_is_written_once_and_other_things_need_another_id(log: EventLog) -> None:
    first = log.ask(MODEL, TriggerWished(request_id="by-hand-1", reason="new camera"))

    assert log.ask(MODEL, TriggerWished(request_id="by-hand-1", reason="new camera")) == first
    with pytest.raises(Conflict, match="another request_id"):
        log.ask(MODEL, TriggerWished(request_id="by-hand-1", reason="another"))
    assert log.read(MODEL) == [first]


def test_a_wish_belongs_to_the_cycle_under_way(log: EventLog, lease: Lease, clock: Clock) -> None:
    state = LoopState(MODEL)
    log.append(state.next_event(STARTED, clock()), lease)
    within = log.ask(MODEL, TriggerWished(request_id="by-hand-1"))
    state = log.catch_up(state)
    log.append(state.next_event(CycleEnded(outcome=Outcome.FAILED, stage="SNAPSHOT"), clock()), lease)
    after = log.ask(MODEL, TriggerWished(request_id="by-hand-2"))

    assert (within.cycle, after.cycle) == (1, 0)
    assert len(log.catch_up(state).wishes) == 2


def test_many_who_ask_at_once_get_numbers_without_gaps(log: EventLog) -> None:
    wishes = [TriggerWished(request_id=f"by-hand-{number}") for number in range(20)]

    with ThreadPoolExecutor(4) as threads:
        events = list(threads.map(lambda wish: log.ask(MODEL, wish), wishes))

    assert sorted(each.number for each in events) == list(range(1, 21))
    assert {each.payload for each in events} == set(wishes)


def test_a_lease_of_which_most_is_left_is_not_written_again(
    database: Database, task: Model, leases: Leases, others: Leases, clock: Clock
) -> None:
    def expires() -> str:
        with database.read() as session:
            return session.get_one(LoopLeaseRow, MODEL).expire_time

    first = leases.hold(MODEL)
    taken = expires()
    clock.pass_by(3.0)
    assert leases.hold(MODEL) == first
    assert others.hold(MODEL) is None
    assert expires() == taken

    clock.pass_by(1.0)
    assert leases.hold(MODEL) == first
    assert expires() > taken
