"""A world for the loop to act on: what it sees follows from what was done, and time passes only while it waits."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np

from services.trainer.loop.cycle_payloads import (
    ActionFailed,
    CandidatePublished,
    RunCreated,
    RunEnded,
    SnapshotMade,
)
from services.trainer.loop.events import Event, parse_payload
from services.trainer.loop.facts import Absence, Alarm, Facts, OriginFact, RunFact, TrafficFact
from services.trainer.loop.gate import joint_log_e, pair
from services.trainer.loop.payloads import DeletionCompleted, DeletionErased, Payload
from services.trainer.loop.plan import plan
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.loop.policy_file import load_policy
from services.trainer.loop.reducer import fold, replay
from services.trainer.loop.refusals import Refusal
from services.trainer.loop.state import LoopState, Stage
from services.trainer.loop.steps import (
    Action,
    CancelRun,
    CreateRun,
    EraseRows,
    EraseVersions,
    MakeSnapshot,
    PublishCandidate,
    Record,
    SetTraffic,
)
from services.trainer.loop.values import GateFigures, GuardFigures, TrialCounts

_SHIPPED = load_policy().default
POLICY = _SHIPPED.model_copy(update={"gate": _SHIPPED.gate.model_copy(update={"most_labels": 3_000})})
"""The one that is shipped, but for a number that takes long to reach."""
GOOD, EQUAL, BAD = (0.12, 0.02), (0.05, 0.05), (0.02, 0.12)
"""Shares of contents that the candidate wins and loses."""
_HOLDOUT = 1_000
_WAIT = timedelta(minutes=1)


class Died(Exception):
    """The process was killed."""


@dataclass
class Run:
    """A run, as its row would have it."""

    id: str
    strategy: Strategy
    age: int = 0
    state: str = "RUNNING"


@dataclass
class World:
    """Inference, runs and samples around one loop."""

    quality: tuple[float, float] = GOOD
    guards: GuardFigures = field(
        default_factory=lambda: GuardFigures(
            class_count=10,
            worst_class=0,
            class_log_e=0.0,
            calibration_rise=0.0,
            latency_ratio=1.0,
            size_ratio=1.0,
            corrupted_drop=0.0,
            holdout_drop=0.0,
        )
    )
    failing: frozenset[Strategy] = frozenset()
    """Strategies whose runs fail."""
    failing_requests: float = 0.0
    """Share, of the candidate."""
    requests: int = 100
    """For every version, between two looks."""
    agreement: tuple[float, float] = (1.0, 1.0)
    """Of the hold-out and of the shadow's samples, the share that both versions answer alike."""
    judged: int = 200
    """Contents, between two looks."""
    traffic: TrafficFact = field(default_factory=lambda: TrafficFact(0, 1, ready=(1,)))
    broken: set[type] = field(default_factory=set)
    """Actions that are refused."""
    away: bool = False
    """Whether inference does not answer."""
    has_holdout: bool = True
    has_base: bool = True
    has_origin: bool = True
    """Whether a clean run is there to start from."""
    comparable: bool = True
    refusal: Refusal | None = None
    """Of a version at the gate."""
    lost: dict[int, datetime] = field(default_factory=dict)
    """When versions were deleted by hand."""
    accepted: int = 150
    newest_sample: int = 150
    alarms: tuple[Alarm, ...] = ()
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    runs: dict[str, Run] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    effects: list[str] = field(default_factory=list)
    """What was changed, each time that it was."""
    erased: set[str] = field(default_factory=set)
    tainted: tuple[int, ...] = ()
    """Versions that learnt from what is deleted."""
    answers: int = 0
    """Contents that candidate and champion have been judged on."""
    counts: TrialCounts = field(default_factory=TrialCounts)
    shadow: TrialCounts = field(default_factory=TrialCounts)

    def facts(self, state: LoopState) -> Facts:
        """Return what the loop would read."""
        cycle = state.cycle
        run = self.runs.get(cycle.running) if cycle else None
        return Facts(
            traffic=None if self.away else self.traffic,
            accepted=self.accepted,
            has_holdout=self.has_holdout,
            has_base=self.has_base,
            comparable=self.comparable,
            accepted_since=max(0, self.newest_sample - state.last_sample),
            alarms=self.alarms,
            origin=OriginFact("run-0", has_encoder=True, has_base=self.has_base) if self.has_origin else None,
            seconds={Strategy.INCREMENTAL: 60.0, Strategy.SCRATCH: 600.0},
            run=RunFact(run.id, run.state) if run else None,
            gate=figures_after(self.quality, self.answers, cycle.gate.begun.margin, self.guards).model_copy(
                update={"agreement": self.agreement[0]}
            )
            if cycle and cycle.gate and self.answers
            else None,
            refusal=self.refusal if cycle and cycle.stage == Stage.GATE else None,
            absence=self._absence(cycle.candidate, cycle.champion) if cycle and not self.away else None,
            shadow=None if self.away else self.shadow,
            canary=None if self.away or self.lost else self.counts,
            free_bytes=10**12,
        )

    def lose(self, version: int) -> None:
        """Delete a version by hand; it is still named by the traffic."""
        self.lost[version] = self.now
        ready = tuple(each for each in self.traffic.ready if each != version)
        self.traffic = TrafficFact(**(vars(self.traffic) | {"ready": ready}))

    def _absence(self, *versions: int) -> Absence | None:
        absent = (Absence(each, (self.now - self.lost[each]).total_seconds()) for each in versions if each in self.lost)
        return next(absent, None)

    def wait(self, state: LoopState) -> None:
        """Let time pass."""
        self.now += _WAIT
        for run in self.runs.values():
            run.age += 1
            if run.state == "RUNNING" and run.age >= 2:
                run.state = "FAILED" if run.strategy in self.failing else "SUCCEEDED"
        if state.cycle and state.cycle.stage == Stage.GATE:
            self.answers += self.judged
        failed = round(self.requests * self.failing_requests)
        if self.traffic.on_trial:
            more = TrialCounts(
                requests=self.requests,
                failed=failed,
                seconds=self.requests * 0.01,
                stable_requests=self.requests,
                stable_seconds=self.requests * 0.01,
                samples=self.requests,
                agreed=round(self.requests * self.agreement[1]),
            )
            self.shadow, self.counts = _sum(self.shadow, more), _sum(self.counts, more)

    def move(self, stable: int, canary: int = 0, share: float = 0.0, shadow: int = 0) -> None:
        """Change the traffic, as anybody may."""
        old = self.traffic
        self.traffic = TrafficFact(
            old.generation + 1,
            stable,
            previous=old.previous if stable == old.stable else old.stable,
            canary=canary,
            canary_share=share,
            shadow=shadow,
            ready=old.ready,
        )
        if shadow != old.shadow:
            self.shadow = TrialCounts()

    def do(self, action: Action) -> list[Payload]:
        """Carry out *action* and return what is to be appended."""
        match action:
            case Record():
                return [action.payload]
            case MakeSnapshot():
                self.answers = 0
                return [SnapshotMade(digest=f"snapshot-{action.cycle}", last_sample=self.newest_sample)]
            case CreateRun():
                run_id = f"loop-{action.cycle}-{action.attempt}"
                if run_id not in self.runs:
                    self.effects.append(f"run {run_id}")
                    self.runs[run_id] = Run(run_id, action.strategy)
                run = RunCreated(run_id=run_id, attempt=action.attempt, strategy=action.strategy, source=action.source)
                return [run]
            case CancelRun():
                run_row = self.runs[action.run_id]
                if run_row.state == "RUNNING":
                    self.effects.append(f"cancel {action.run_id}")
                    run_row.state = "CANCELLED"
                return [RunEnded(run_id=action.run_id, state=run_row.state, rule=action.rule)]
            case PublishCandidate():
                return [self._publish(action)]
            case SetTraffic():
                self._set(action)
                return []
            case EraseRows():
                if action.deletion_id not in self.erased:
                    self.effects.append(f"erase {action.deletion_id}")
                    self.erased.add(action.deletion_id)
                return [DeletionErased(deletion_id=action.deletion_id, versions=self.tainted)]
            case EraseVersions():
                assert not {self.traffic.champion, self.traffic.on_trial} & set(action.versions)
                left = tuple(each for each in self.traffic.ready if each not in action.versions)
                if left != self.traffic.ready:
                    self.effects.append(f"delete {action.versions}")
                self.traffic = TrafficFact(**(vars(self.traffic) | {"ready": left, "previous": 0}))
                return [DeletionCompleted(deletion_id=action.deletion_id)]

    def _publish(self, action: PublishCandidate) -> CandidatePublished:
        if action.publication_id not in self.published:
            assert self.runs[action.run_id].state == "SUCCEEDED"
            assert self.traffic.stable, "the newest version would serve"
            version = max((*self.traffic.ready, *self.published.values()), default=0) + 1
            self.effects.append(f"publish {version}")
            self.published[action.publication_id] = version
            self.traffic = TrafficFact(**(vars(self.traffic) | {"ready": (*self.traffic.ready, version)}))
        return CandidatePublished(version=self.published[action.publication_id])

    def _set(self, action: SetTraffic) -> None:
        if self.traffic.generation == action.generation:  # else inference refuses it
            wanted = action.wanted
            self.effects.append(f"traffic {self.traffic.generation + 1}")
            self.move(wanted.stable, wanted.canary, wanted.canary_share, wanted.shadow)


@dataclass
class Director:
    """Drives the loop in a world; holds nothing that is not in the log."""

    world: World
    policy: LoopPolicy = POLICY
    log: list[Event] = field(default_factory=list)
    deaths: dict[int, str] = field(default_factory=dict)
    """Number of an action, and whether the process dies before its effect or after it."""
    actions: int = 0
    state: LoopState = field(default_factory=lambda: LoopState("m"))

    def append(self, payload: Payload) -> None:
        """Write an event, as anybody may; one whose key is there already is the same event."""
        event = self.state.next_event(payload, self.world.now)
        if event.key is not None and event.key in {each.key for each in self.log}:
            return
        self.state = fold(self.state, event)
        stored = parse_payload(event.kind, event.payload.model_dump(mode="json"))
        assert stored == event.payload
        self.log.append(event)

    def step(self) -> bool:
        """Do what is next; return whether there was something, and not only time to pass."""
        action = plan(self.state, self.world.facts(self.state), self.policy, self.world.now)
        if action is None:
            self.world.wait(self.state)
            return False
        self.actions += 1
        try:
            death = self.deaths.get(self.actions)
            if death == "before":
                raise Died
            payloads = failure_of(action) if type(action) in self.world.broken else self.world.do(action)
            if death == "after":
                raise Died
            for payload in payloads:
                self.append(payload)
        except Died:
            self.state = replay("m", self.log)
        return True

    def run(self, steps: int = 400) -> "Director":
        """Go on until there is nothing to do for a while."""
        idle = 0
        for _ in range(steps):
            idle = 0 if self.step() or self.state.cycle else idle + 1
            if idle > 15:
                return self
        raise AssertionError(f"still at {self.state.cycle and self.state.cycle.stage} after {steps} steps")

    def until(self, stage: Stage, steps: int = 200) -> "Director":
        """Go on until the cycle is at *stage*."""
        return self.until_event(lambda state: state.cycle is not None and state.cycle.stage == stage, steps)

    def until_event(self, reached: Callable[[LoopState], bool], steps: int = 200) -> "Director":
        """Go on until the state is as *reached* says."""
        for _ in range(steps):
            if reached(self.state):
                return self
            self.step()
        raise AssertionError(f"not reached after {steps} steps")

    @property
    def kinds(self) -> list[str]:
        """Kinds of all events."""
        return [each.kind for each in self.log]

    def last(self, kind: str) -> Payload:
        """Return what the last event of *kind* says."""
        return next(each.payload for each in reversed(self.log) if each.kind == kind)


def failure_of(action: Action) -> list[Payload]:
    """Return what the log says of an action that inference or the trainer refuses for good."""
    if isinstance(action, SetTraffic) and action.withdrawal:
        return []
    strategy = action.strategy if isinstance(action, CreateRun) else None
    return [ActionFailed(action=type(action).__name__, rule="UNSUPPORTED", strategy=strategy)]


@cache
def outcomes_of(quality: tuple[float, float], seed: int) -> np.ndarray:
    """Return outcomes of 20,000 contents, int8."""
    win, loss = quality
    return np.random.default_rng(seed).choice(np.array([1, -1, 0], np.int8), 20_000, p=[win, loss, 1 - win - loss])


@cache
def figures_after(quality: tuple[float, float], count: int, margin: float, guards: GuardFigures) -> GateFigures:
    """Return what the gate sees after *count* judged contents, those of the hold-out first."""
    holdout = outcomes_of(quality, 0)[: min(count, _HOLDOUT)]
    live = outcomes_of(quality, 1)[: max(0, count - _HOLDOUT)]
    return GateFigures(
        holdout=pair(holdout, margin),
        live=pair(live, margin),
        log_e=joint_log_e(holdout, live, margin, POLICY),
        guards=guards if count >= _HOLDOUT else GuardFigures(),
    )


def _sum(counts: TrialCounts, more: TrialCounts) -> TrialCounts:
    return TrialCounts(**{name: getattr(counts, name) + getattr(more, name) for name in TrialCounts.model_fields})
