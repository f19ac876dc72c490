"""Where the loop of a model is: a value that follows from its events and from nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from services.trainer.loop.cycle_payloads import GateBegun, MoveMade
from services.trainer.loop.events import Event
from services.trainer.loop.payloads import Payload, Wish
from services.trainer.loop.policy import Strategy
from services.trainer.loop.values import GateFigures, Goal, Outcome, Reason, Ruling, TrialCounts, Wanted


class InvalidLog(Exception):
    """Events that cannot have come one after the other: the log was changed, or another program wrote to it."""


class Stage(StrEnum):
    """How far a cycle is."""

    SNAPSHOT = "SNAPSHOT"
    RUN = "RUN"
    PUBLISH = "PUBLISH"
    GATE = "GATE"
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    ENDED = "ENDED"


@dataclass(frozen=True)
class Ending:
    """How a cycle must end, once nothing of it is left in the traffic."""

    outcome: Outcome
    ruling: Ruling
    wish: int = 0
    """Number of the wish that is granted with it; 0 for none."""


@dataclass(frozen=True)
class Move:
    """A change of the traffic that was intended and is not known to be made."""

    made: type[MoveMade]
    """What is recorded once it is."""
    wanted: Wanted
    generation: int
    """That was seen when it was intended."""
    authority: int = 0
    taken_back: int = 0
    """Version that serves no longer because it is gone back from; 0 for none."""


@dataclass(frozen=True)
class Attempt:
    """A run of a cycle."""

    strategy: Strategy
    run_id: str = ""
    """Empty where it could not be created."""
    state: str = ""
    """Empty until it has ended."""
    rule: str = ""


@dataclass(frozen=True)
class Gate:
    """A candidate that is being judged."""

    begun: GateBegun
    figures: GateFigures = field(default_factory=GateFigures)
    measure_time: datetime | None = None
    move_time: datetime | None = None
    """When the count of judged contents rose last, or the gate began."""


@dataclass(frozen=True)
class Trial:
    """A part of the traffic that the candidate has."""

    begin: TrialCounts
    begin_time: datetime


@dataclass(frozen=True)
class Cycle:
    """One turn of the loop."""

    number: int
    reason: Reason
    goal: Goal
    champion: int
    generation: int
    """Of the traffic, as the loop knows or has made it."""
    accepted: int
    """Samples when it began."""
    start_time: datetime
    wished_strategy: Strategy | None = None
    deletion: str = ""
    stage: Stage = Stage.SNAPSHOT
    entered: tuple[tuple[Stage, datetime], ...] = ()
    """Every stage with its begin, in their order."""
    snapshot: str = ""
    last_sample: int = 0
    attempts: tuple[Attempt, ...] = ()
    publication_id: str = ""
    candidate: int = 0
    gate: Gate | None = None
    passed: int = 0
    """Number of the event by which the candidate passed the gate; 0 where it did not."""
    in_traffic: bool = False
    trial: Trial | None = None
    steps: int = 0
    """Shares of the traffic that the candidate has been given."""
    cleared: bool = False
    """Whether the trial has let it pass."""
    promoted: bool = False
    ending: Ending | None = None
    """Set once it is settled that the candidate will not be promoted."""
    outcome: Outcome | None = None
    ruling: Ruling = field(default_factory=Ruling)
    end_time: datetime | None = None

    @property
    def attempt(self) -> Attempt | None:
        """The newest run."""
        return self.attempts[-1] if self.attempts else None

    @property
    def running(self) -> str:
        """Id of the run under way; empty where none is."""
        return self.attempt.run_id if self.attempt and not self.attempt.state else ""

    @property
    def stage_time(self) -> datetime:
        """When its stage began."""
        return self.entered[-1][1]

    @property
    def making_time(self) -> datetime:
        """When its candidate was begun."""
        return self.entered[0][1]


@dataclass(frozen=True)
class Deletion:
    """Something that must be forgotten, and is not yet."""

    id: str
    deadline: datetime
    erased: bool = False
    versions: tuple[int, ...] = ()
    """That have learnt from it."""
    refused: bool = False
    """Whether a successor has been refused."""
    expired: int = 0
    """Number of the event that says that its deadline has passed."""
    no_way_back: bool = False
    """Whether the version to go back to could not be made stable."""
    stuck: str = ""
    """Why nothing could take the place of a version that has learnt from it, when that was seen; empty before."""


@dataclass(frozen=True)
class Wished:
    """A wish that is neither granted nor declined."""

    number: int
    """Of its event."""
    wish: Wish


@dataclass(frozen=True)
class LoopState:
    """Where the loop of a model is."""

    model: str
    number: int = 0
    """Of the last event."""
    cycle: Cycle | None = None
    """Under way."""
    last_cycle: Cycle | None = None
    cycles: int = 0
    judged: int = 0
    """Candidates that have spent of the error of the model's life."""
    starts: tuple[datetime, ...] = ()
    """Of the cycles that began by themselves within 24 hours before the last of them."""
    failures: int = 0
    """Cycles in a row that failed."""
    move: Move | None = None
    wishes: tuple[Wished, ...] = ()
    """In the order in which they came."""
    alarms: frozenset[str] = frozenset()
    """Detectors that have raised one since the last cycle began."""
    heard: Mapping[str, int] = field(default_factory=dict)
    """By detector: the number of its last alarm."""
    deletions: tuple[Deletion, ...] = ()
    """In the order in which they came."""
    tainted: frozenset[int] = frozenset()
    """Versions that may not become stable again."""
    taken_back: frozenset[int] = frozenset()
    """Versions that were gone back from and not promoted since: nothing goes back to them."""
    last_sample: int = 0
    """Newest sample of the candidates that were promoted or refused; those of cycles that failed are still new."""
    unproved: int = 0
    """Samples that the last refit had which could not be proved better; 0 where there is none since a promotion."""
    given_up: float = 0.0
    """Sum of the margins by which candidates that need not be better were let through since the last that was."""
    generation: int = 0
    """Of the traffic, as the loop knows or has made it."""
    stable: int = 0
    """Version that serves with it; 0 where that is not known."""
    policy_digest: str = ""
    paused: str = ""
    """Why nothing is captured; empty where something is."""

    def next_event(self, payload: Payload, time: datetime) -> Event:
        """Return the event by which *payload* would follow."""
        cycle = self.cycle.number if self.cycle else 0
        if payload.kind == "cycle.started":
            cycle = self.cycles + 1
        return Event(self.model, self.number + 1, cycle, time, payload)
