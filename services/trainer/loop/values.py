"""Values that the loop's events are made of: numbers and ids, never pictures, comments or people."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[str, Field(min_length=1, max_length=128)]
Version = Annotated[int, Field(ge=1)]
Tally = Annotated[int, Field(ge=0)]


class Goal(StrEnum):
    """What a candidate must prove."""

    BETTER = "BETTER"
    NOT_WORSE = "NOT_WORSE"
    """Its point is another one: smaller, faster, or free of what was deleted."""


class Reason(StrEnum):
    """Why a cycle begins."""

    BY_HAND = "BY_HAND"
    PROPOSED = "PROPOSED"
    DELETION = "DELETION"
    ACCURACY = "ACCURACY"
    DRIFT = "DRIFT"
    ACCEPTED_SAMPLES = "ACCEPTED_SAMPLES"
    SCHEDULE = "SCHEDULE"


class Outcome(StrEnum):
    """How a cycle ends."""

    PROMOTED = "PROMOTED"
    REFUSED = "REFUSED"
    FAILED = "FAILED"
    ABANDONED = "ABANDONED"


class GateOutcome(StrEnum):
    """What the gate says of a candidate."""

    PASSED = "PASSED"
    REFUSED = "REFUSED"
    EXHAUSTED = "EXHAUSTED"
    """Neither better nor worse was proved with what there was to judge."""


class TrialVerdict(StrEnum):
    """What a part of the traffic has shown."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    NO_TRAFFIC = "NO_TRAFFIC"
    SKIPPED = "SKIPPED"
    """It could show nothing."""


class Figures(BaseModel):
    """Values that payloads are made of."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ruling(Figures):
    """Which rule has decided, by what figure, against what bound."""

    rule: str = ""
    subject: str = ""
    """Key of the policy, or what else the rule is about."""
    figure: float | None = None
    bound: float | None = None


class Wanted(Figures):
    """Traffic that is asked for: the whole of it. A version 0 means none."""

    stable: Version
    canary: Tally = 0
    canary_share: float = 0.0
    shadow: Tally = 0


class Paired(Figures):
    """Contents that candidate and champion were both judged on."""

    wins: Tally = 0
    ties: Tally = 0
    losses: Tally = 0
    log_e_better: float = 0.0
    """Highest so far."""
    log_e_worse: float = 0.0
    """Highest so far."""

    @property
    def count(self) -> int:
        """Contents."""
        return self.wins + self.ties + self.losses


class GuardFigures(Figures):
    """What is compared with the guards' bounds; None where it is not measured yet."""

    class_count: Tally = 0
    worst_class: int | None = None
    """Number of the class with the most evidence of a loss."""
    class_log_e: float | None = None
    """Evidence that it has lost more than the guard allows."""
    calibration_rise: float | None = None
    latency_ratio: float | None = None
    size_ratio: float | None = None
    corrupted_drop: float | None = None
    holdout_drop: float | None = None
    impossible: tuple[str, ...] = ()
    """Those that never will be: what was kept of the versions does not tell them."""


class GateFigures(Figures):
    """All that the gate decides by."""

    holdout: Paired = Paired()
    live: Paired = Paired()
    log_e: float = 0.0
    """Highest so far of the evidence from both streams that the candidate fulfils its goal."""
    labels_wanted: Tally = 0
    """Contents that the versions differ on and nobody has judged."""
    champion_errors: Tally = 0
    """Contents of the hold-out that the champion gets wrong; those that the candidate gets right are its wins."""
    guards: GuardFigures = GuardFigures()
    agreement: float = 1.0
    """Share of the hold-out that both versions answer alike."""


class TrialCounts(Figures):
    """Requests of candidate and champion since some moment; seconds in the graph, of all of them together."""

    requests: Tally = 0
    failed: Tally = 0
    seconds: float = 0.0
    stable_requests: Tally = 0
    stable_failed: Tally = 0
    stable_seconds: float = 0.0
    samples: Tally = 0
    """In a shadow's requests that did not fail."""
    agreed: Tally = 0
    """Samples of these that got the same best class as from the champion."""
