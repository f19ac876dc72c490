"""What the loop may do, and what a candidate must show: a TOML file of groups, each with the defaults below.

Every threshold that a candidate is promoted by is empty by default: a file that sets none promotes nothing. The file
that comes with the suite, `policy.toml` in this folder, sets them all.
"""

import hashlib
import json
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from services.trainer.feedback.policy import (
    DAYS,
    CapturePolicy,
    Count,
    Days,
    Flag,
    JudgingPolicy,
    PartShare,
    PolicyGroup,
    Rate,
    RetentionPolicy,
    Share,
    Tally,
    TrustPolicy,
)
from services.trainer.recipes import RECIPES

Error = Annotated[float, Field(strict=True, ge=1e-12, lt=1)]
"""All candidates of a life share it: a smaller one would leave the later ones none that a float can hold."""
Amount = Annotated[float, Field(strict=True, ge=0, le=1e9)]
Ratio = Annotated[float, Field(strict=True, gt=0, le=1e9)]
Hours = Annotated[float, Field(strict=True, gt=0, le=24 * DAYS)]
Minutes = Annotated[float, Field(strict=True, gt=0, le=24 * 60 * DAYS)]
Seconds = Annotated[float, Field(strict=True, gt=0, le=24 * 3600 * DAYS)]
LeastHours = Annotated[float, Field(strict=True, ge=0, le=24 * DAYS)]
LeastMinutes = Annotated[float, Field(strict=True, ge=0, le=24 * 60 * DAYS)]
LeastSeconds = Annotated[float, Field(strict=True, ge=0, le=24 * 3600 * DAYS)]
"""Times that may be none at all."""


class Strategy(StrEnum):
    """How a candidate is made."""

    REFIT = "refit"
    """A new last layer on the champion's features; seconds."""
    INCREMENTAL = "incremental"
    """The champion learns on, with old samples beside the new ones."""
    SCRATCH = "scratch"
    """A new network learns everything."""


class CostPolicy(PolicyGroup):
    """What an error, a second of training and a label cost, in any one currency."""

    enabled: Flag = True
    """Whether new samples and drift start a cycle only where it is worth more than it costs."""
    per_error: Amount = 0.01
    per_second: Amount = 0.0001
    per_label: Amount = 0.02


class TriggerPolicy(PolicyGroup):
    """When a cycle begins by itself."""

    accepted: Count = 100
    """Samples accepted since those of the last candidate that was promoted or refused."""
    accuracy_below: Share | None = None
    """Begin when the live accuracy is below this with certainty: its whole interval."""
    drift: Flag = True
    """Begin when a detector raises an alarm."""
    every_days: Days | None = None
    least_gap_minutes: LeastMinutes = 10.0
    """Between the end of a cycle and the next that begins by itself; doubled for each that failed in a row, up to a
    day."""
    most_per_day: Count = 12
    """Cycles that begin by themselves within 24 hours."""
    cost: CostPolicy = CostPolicy()


class IncrementalPolicy(PolicyGroup):
    """What differs from the champion's own options when it learns on."""

    epochs: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 8
    learning_rate: Annotated[float, Field(strict=True, gt=0, le=100)] = 0.02
    freeze: tuple[str, ...] = ()


class RetrainPolicy(PolicyGroup):
    """How candidates are made."""

    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)] = tuple(Strategy)
    """The first one that can be used is; the next ones where its run fails."""
    budget_seconds: Seconds = 900.0
    """Longest run that is begun, as the last runs' speed foretells it."""
    most_minutes: Minutes = 180.0
    """From the choice of the samples to the published version, queue and attempts included; then the cycle fails."""
    base_per_new: Amount = 5.0
    """Samples of the base set beside each new one."""
    base_least: Tally = 2000
    """Samples of the base set in any case, where it has as many: few new ones alone say little of a whole layer."""
    incremental: IncrementalPolicy = IncrementalPolicy()
    scratch_recipe: str = "quick"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.strategies)) != len(self.strategies):
            raise ValueError(f"strategies {', '.join(self.strategies)} must name each one once")
        if self.scratch_recipe not in RECIPES:
            raise ValueError(f"scratch_recipe {self.scratch_recipe!r} is unknown; use one of {', '.join(RECIPES)}")
        return self


class GatePolicy(PolicyGroup):
    """What a candidate must prove."""

    error: Error | None = None
    """Chance that the life of a model ever promotes a candidate that is not better. Empty: none is promoted."""
    evidence: Literal["both", "live"] = "both"
    """From the hold-out and from live contents, or from live contents alone."""
    margin_not_worse: PartShare = 0.01
    """By how much a candidate whose point is another one (smaller, faster) may be worse, as a share of contents."""
    most_labels: Count = 10_000
    """Contents after which a candidate without enough evidence is given up."""
    most_days: Days = 7.0
    """The same in time."""
    outgrown_by: Ratio = 1.0
    """New samples since the cycle began, as a share of those of then, with which a candidate that is not proved yet is
    given up: the next one knows more. Never fewer than begin a cycle."""
    idle_hours: Hours = 12.0
    """The same in time without a new judged content."""


class GuardPolicy(PolicyGroup):
    """What a candidate must not spoil, however accurate it is. One that is empty promotes nothing."""

    class_drop: PartShare | None = None
    """Accuracy that no class may lose with certainty, as a share of the contents that both were judged on."""
    calibration_rise: Share | None = None
    """Of the expected calibration error."""
    latency_ratio: Ratio | None = None
    """Candidate's time in the graph, of the champion's."""
    size_ratio: Ratio | None = None
    """Candidate's graph in bytes, of the champion's."""
    corrupted_drop: Share | None = None
    """Accuracy on hold-out pictures with noise, blur and JPEG artefacts."""
    holdout_drop: Share | None = None
    """Accuracy on the hold-out."""


class TrialPolicy(PolicyGroup):
    """How a candidate that passed the gate is let into the traffic."""

    shadow_requests: Count = 50
    shadow_seconds: LeastSeconds = 2.0
    shadow_most_minutes: Minutes = 10.0
    """Without enough requests by then, the shadow ends as one without traffic."""
    least_agreement: Share = 0.5
    """Pictures of users that both versions answer alike, of the share that they did on the hold-out: with fewer, the
    candidate is not served as it was judged."""
    canary_shares: tuple[Annotated[float, Field(strict=True, gt=0, le=1)], ...] = (0.05, 0.25)
    """Steps; none goes straight from the shadow to the whole traffic."""
    canary_requests: Count = 50
    """Of the candidate, in each step."""
    canary_seconds: LeastSeconds = 2.0
    canary_most_minutes: Minutes = 30.0
    error_rise: Share = 0.01
    """Of failed requests, more than the champion has; refused where chance hardly explains what is beyond it."""
    latency_ratio: Ratio = 2.0
    """Time in the graph under traffic, of the champion's."""
    without_traffic: Flag = True
    """Whether a trial that saw too few requests counts as passed, as it does on a machine at night."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(later <= earlier for earlier, later in zip(self.canary_shares, self.canary_shares[1:], strict=False)):
            raise ValueError(f"canary_shares {list(self.canary_shares)} must rise from step to step")
        return self


class AlarmPolicy(PolicyGroup):
    """How often the detectors of drift may cry wolf."""

    per_month: Rate = 1.0
    """False alarms, of all detectors together."""
    looks_per_day: Count = 24
    window: Count = 500
    """Newest predictions that are compared with the reference."""


class DeletionPolicy(PolicyGroup):
    """How a version is replaced that has learnt what must be forgotten."""

    deadline_hours: LeastHours = 72.0
    error: Error = 0.05
    margin: PartShare = 0.03
    """By how much its successor may be worse."""
    at_deadline: Literal["promote", "previous"] = "promote"
    """Without proof by the deadline: promote the successor all the same, or go back to an earlier clean version where
    there is one."""


class LoopPolicy(PolicyGroup):
    """All of it, for one model."""

    capture: CapturePolicy = CapturePolicy()
    judging: JudgingPolicy = JudgingPolicy()
    trust: TrustPolicy = TrustPolicy()
    trigger: TriggerPolicy = TriggerPolicy()
    retrain: RetrainPolicy = RetrainPolicy()
    gate: GatePolicy = GatePolicy()
    guard: GuardPolicy = GuardPolicy()
    trial: TrialPolicy = TrialPolicy()
    alarm: AlarmPolicy = AlarmPolicy()
    retention: RetentionPolicy = RetentionPolicy()
    deletion: DeletionPolicy = DeletionPolicy()

    @property
    def digest(self) -> str:
        """SHA-256 of all values, as 64 hex digits; the same for the same values, however they were written."""
        return _digest(self)


@lru_cache(maxsize=64)  # it is asked for at every step of the loop
def _digest(policy: LoopPolicy) -> str:
    values: dict[str, Any] = policy.model_dump(mode="json")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
