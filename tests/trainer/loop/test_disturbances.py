"""Hands, wishes, failures, deaths and silence in any order: what must hold does, and the loop comes to an end."""

import random
from datetime import timedelta

import pytest

from services.trainer.loop.cycle_payloads import TRAFFIC_CHANGED, CycleEnded, CycleStarted, GateBegun, MoveIntended
from services.trainer.loop.events import Event
from services.trainer.loop.facts import Alarm
from services.trainer.loop.payloads import (
    DeletionRequested,
    PromotionWished,
    ProposalWished,
    RejectionWished,
    RollbackWished,
    TriggerWished,
)
from services.trainer.loop.policy import DeletionPolicy, LoopPolicy, Strategy
from services.trainer.loop.state import LoopState
from services.trainer.loop.steps import CreateRun, MakeSnapshot, PublishCandidate, SetTraffic
from services.trainer.loop.values import TrialCounts
from tests.trainer.loop.world import BAD, EQUAL, GOOD, POLICY, Director, World


class Disturber:
    """Does what happens to a loop, at random."""

    def __init__(self, director: Director, seed: int) -> None:
        self.director, self.world = director, director.world
        self.draw = random.Random(seed)
        self.promoting_wishes = True

    def disturb(self) -> None:
        world, draw = self.world, self.draw
        request = str(len(self.director.log))
        version = draw.choice(world.traffic.ready)
        match draw.randrange(14):
            case 0:
                world.move(version)
            case 1:
                others = [each for each in world.traffic.ready if each != world.traffic.champion]
                if others:
                    world.move(world.traffic.champion, canary=draw.choice(others), share=0.5)
            case 2:
                self.director.append(RejectionWished(request_id=request, version=draw.choice((0, version))))
            case 3 if self.promoting_wishes:
                self.director.append(PromotionWished(request_id=request, version=version))
            case 4 if self.promoting_wishes:
                self.director.append(RollbackWished(request_id=request))
            case 5:
                self.director.append(TriggerWished(request_id=request, strategy=draw.choice((None, *Strategy))))
            case 6:
                self.director.append(ProposalWished(request_id=request, version=version))
            case 7:
                world.away = not world.away
            case 8:
                self.director.deaths[self.director.actions + 1] = draw.choice(("before", "after"))
            case 9:
                world.counts = world.shadow = TrialCounts()
                world.failing_requests = draw.choice((0.0, 0.0, 0.5))
            case 10:
                actions = (MakeSnapshot, CreateRun, PublishCandidate, SetTraffic)
                world.broken = {draw.choice(actions)} if draw.random() < 0.2 else set()
            case 11:
                world.failing = frozenset(draw.sample(tuple(Strategy), draw.randrange(3)))
                world.quality = draw.choice((GOOD, EQUAL, BAD))
            case 12 if self.promoting_wishes:
                if not self.director.state.deletions and draw.random() < 0.3:
                    world.tainted = tuple({version, world.traffic.champion})
                    deadline = world.now + timedelta(hours=draw.choice((0, 1, 72)))
                    wish = DeletionRequested(deletion_id=request, subject_digest="0", deadline=deadline)
                    self.director.append(wish)
            case _:
                world.accepted += 60
                world.newest_sample += 60
                world.alarms = (*world.alarms, Alarm(len(world.alarms) + 1, "error", 2.0, 1.0))[-3:]

    def settle(self) -> None:
        """End all disturbances."""
        self.world.away, self.world.failing, self.world.broken = False, frozenset(), set()
        self.world.failing_requests = 0.0


def event_numbered(log: list[Event], number: int) -> Event:
    return log[number - 1]


def check_log(log: list[Event], policy: LoopPolicy) -> None:
    """Make sure of what must hold for any log, by other means than the reducer's."""
    ended: Event | None = None
    under_way, counts = 0, []
    for event in log:
        payload = event.payload
        if isinstance(payload, CycleStarted):
            assert under_way == 0, "two cycles at once"
            under_way = event.cycle
            if ended is not None and not payload.wish:
                assert event.time - ended.time >= timedelta(minutes=policy.trigger.least_gap_minutes)
        elif isinstance(payload, CycleEnded):
            under_way, ended = 0, event
            if payload.outcome in ("REFUSED", "FAILED"):
                assert payload.ruling.rule
        elif isinstance(payload, GateBegun):
            counts.append(payload.candidate_count)
        elif isinstance(payload, MoveIntended) and payload.kind == "promotion.intended":
            allowed = event_numbered(log, payload.authority)
            if allowed.kind == "gate.decided":
                assert allowed.payload.outcome == "PASSED"  # type: ignore[attr-defined]
                assert allowed.cycle == event.cycle
            elif allowed.kind == "wish.promote":
                assert allowed.payload.version == payload.wanted.stable  # type: ignore[attr-defined]
            else:
                assert allowed.kind == "deletion.expired"
    assert counts == sorted(counts)


def check_world(world: World, before: LoopState, after: LoopState) -> None:
    assert sum(run.state == "RUNNING" for run in world.runs.values()) <= 1, "two runs at once"
    assert len(set(world.effects)) == len(world.effects), "something was done twice"
    if before.cycle is not None and before.cycle.candidate and after.cycle is None:
        assert after.last_cycle is not None
        left_alone = after.last_cycle.ruling.rule == TRAFFIC_CHANGED
        assert left_alone or before.cycle.candidate not in (world.traffic.canary, world.traffic.shadow)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_nothing_unproved_is_promoted_and_every_cycle_ends(seed: int) -> None:
    policy = POLICY.model_copy(update={"deletion": DeletionPolicy(at_deadline="previous" if seed % 2 else "promote")})
    director = Director(World(), policy)
    disturber = Disturber(director, seed)

    for _ in range(500):
        if disturber.draw.random() < 0.15:
            disturber.disturb()
        before = director.state
        director.step()
        check_world(director.world, before, director.state)
    disturber.settle()
    director.run(3_000)

    check_log(director.log, policy)
    assert director.state.cycle is None
    assert director.state.move is None
    assert director.state.wishes == ()


@pytest.mark.parametrize("seed", range(10))
def test_an_empty_policy_never_promotes(seed: int) -> None:
    director = Director(World(), LoopPolicy())
    disturber = Disturber(director, seed)
    disturber.promoting_wishes = False
    served = {director.world.traffic.stable}
    for _ in range(400):
        if disturber.draw.random() < 0.15:
            served_before = director.world.traffic.stable
            disturber.disturb()
            served |= {director.world.traffic.stable} - {served_before}
        director.step()
        assert director.world.traffic.stable in served, "only hands change what serves"

    assert "promoted" not in director.kinds
    assert director.state.judged == 0
    decided = [each for each in director.log if each.kind == "gate.decided"]
    assert {each.payload.ruling.rule for each in decided} == {"NO_THRESHOLD"}  # type: ignore[attr-defined]
