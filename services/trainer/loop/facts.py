"""What the next step of the loop depends on besides its own past."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.trainer.loop.policy import Strategy
from services.trainer.loop.refusals import Refusal
from services.trainer.loop.values import GateFigures, TrialCounts, Wanted
from services.trainer.statistics.intervals import Interval
from services.trainer.statistics.value import Worth

_SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class TrafficFact:
    """Desired traffic of the model, as inference has it. A version 0 means none."""

    generation: int
    """Counts changes."""
    stable: int
    """0 means the newest version that is ready."""
    previous: int = 0
    canary: int = 0
    canary_share: float = 0.0
    shadow: int = 0
    ready: tuple[int, ...] = ()
    """Versions that can serve, by rising number."""

    @property
    def champion(self) -> int:
        """The version that serves; 0 where none does."""
        return self.stable or (self.ready[-1] if self.ready else 0)

    @property
    def on_trial(self) -> int:
        """The version that has a part beside the champion; 0 where none has."""
        return self.canary or self.shadow

    def fits(self, wanted: Wanted) -> bool:
        """Whether the traffic is as it was wanted."""
        return (self.stable, self.canary, self.shadow) == (wanted.stable, wanted.canary, wanted.shadow) and abs(
            self.canary_share - wanted.canary_share
        ) < _SHARE_TOLERANCE


@dataclass(frozen=True)
class Alarm:
    """Drift that a detector has found."""

    number: int
    """Rises with every alarm of the detector, from 1; that of the figure that has raised it."""
    detector: str
    level: float
    threshold: float


@dataclass(frozen=True)
class OriginFact:
    """The run that a candidate is made from: the champion's or, where that is tainted, its newest clean ancestor."""

    run_id: str
    has_encoder: bool
    """Whether its graph can be cut before its last layer, and its labels and pixels are the model's."""
    has_base: bool
    """Whether it has learnt the same base set that snapshots are made with."""


@dataclass(frozen=True)
class RunFact:
    """The run of the cycle under way, as its row has it."""

    run_id: str
    state: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Absence:
    """A version that inference does not have, or cannot serve with the part of the traffic that it has."""

    version: int
    seconds: float
    """In which inference answered without it, up to now."""


@dataclass(frozen=True)
class Facts:
    """All of them, read at one moment. None stands for what cannot be known at the moment."""

    traffic: TrafficFact | None
    accepted: int = 0
    """Samples that are accepted now."""
    accepted_since: int = 0
    """Of these, with higher numbers than the state's `last_sample`."""
    has_holdout: bool = False
    """Whether there is a set that candidates can be judged on; without one, none is ever promoted."""
    has_base: bool = False
    """Whether samples of users are learnt beside a public set."""
    accuracy: Interval | None = None
    """Of the champion, on the traffic; None without draws that were judged."""
    alarms: tuple[Alarm, ...] = ()
    """By rising number; those that the loop has recorded may be among them."""
    worth: Worth | None = None
    """Of a cycle that would begin now."""
    origin: OriginFact | None = None
    """None where the champion was not trained here, and has no clean ancestor."""
    seconds: Mapping[Strategy, float] = field(default_factory=dict)
    """That a run would take, as the last ones foretell it; those that nothing is known of are not there."""
    run: RunFact | None = None
    gate: GateFigures | None = None
    """Of the candidate at the gate, with the margin that its goal allows; guards are there once they are measured on
    the whole hold-out."""
    refusal: Refusal | None = None
    """Which of the versions at the gate does not answer; None where both do, as far as they were asked."""
    absence: Absence | None = None
    """Of the candidate or the champion of the cycle; None where both are there, or inference does not answer."""
    shadow: TrialCounts | None = None
    """Of the candidate as shadow, since it became one or inference started."""
    comparable: bool = True
    """Whether the candidate takes the pixels that the champion does: else none can answer beside the other."""
    canary: TrialCounts | None = None
    """Of candidate and champion, since inference started."""
    pictures_wait: bool = False
    """Whether something was sent or said that nobody has looked at yet; may be some seconds old."""
    free_bytes: int | None = None
    """On the disk of the pictures."""
    stored_bytes: int = 0
    """Of the model's captured pictures."""
