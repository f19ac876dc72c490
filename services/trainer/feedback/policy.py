"""What is captured, what it may be used for, and when what users say of it becomes a sample."""

from collections.abc import Callable
from typing import Annotated, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DAYS = 36_500.0
"""Longest stretch of time that a policy may name: a hundred years, which can be counted from any present time."""

Flag = Annotated[bool, Field(strict=True)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
PartShare = Annotated[float, Field(strict=True, gt=0, lt=1)]
"""A share that is neither nothing nor all."""
Tally = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
"""The contracts send counts as int32."""
Bytes = Annotated[int, Field(strict=True, ge=0, le=2**60)]
Rate = Annotated[float, Field(strict=True, ge=1e-6, le=1e6)]
"""What is divided by must not be so small that the quotient is infinite."""
Days = Annotated[float, Field(strict=True, gt=0, le=DAYS)]


class PolicyGroup(BaseModel):
    """Values that belong together; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CapturePolicy(PolicyGroup):
    """Which predictions are kept with their pictures."""

    random_share: Share = 0.1
    """Of all predictions, drawn at random; fewer under pressure. Accuracy is measured on these alone."""
    least_random_share: Share = 0.0005
    """Below it none are drawn, rather than ever fewer."""
    low_confidence_share: Share = 0.5
    confidence_below: Share = 0.6
    """Of those whose best label has less probability than this, `low_confidence_share` are kept."""
    rare_class_share: Share = 0.5
    rare_below: Share = 0.3
    """Of those answered with a class that has less than this part of an even share among the accepted samples,
    `rare_class_share` are kept."""
    samples_per_second: Rate = 1.0
    """Budget of all kinds together: 86,400 pictures a day."""
    burst: Count = 50
    max_bytes: Annotated[Bytes, Field(ge=1)] = 2 * 1024**3
    """Of all pictures of a model that are kept. When they are nearly full, the oldest go that nothing holds: no sample,
    no snapshot, and not the gate that is open, which has about half of them at most. Nothing is captured while what is
    held fills them."""
    least_free_bytes: Bytes = 2 * 1024**3
    """Room that the disk must keep; with less, nothing is captured, and no picture is taken with feedback."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.least_random_share > self.random_share:
            raise ValueError(
                f"least_random_share {self.least_random_share} must not be above random_share {self.random_share}"
            )
        return self


class JudgingPolicy(PolicyGroup):
    """Which contents candidates are judged on, and never learn."""

    share: PartShare = 0.3
    """Of all contents, by their digests; what is judged on once is judged on for ever."""
    holdout: str = ""
    """Set whose test part is the hold-out; empty is the model's base set."""


class TrustPolicy(PolicyGroup):
    """When what users say becomes a sample."""

    quorum: Count = 1
    """Contributors who must agree where the label fits the neighbours, if all of them are known: others, or a reviewer,
    have confirmed five of their labels."""
    quorum_unknown: Count = 2
    """Contributors who must agree where there are no neighbours to ask, or where fewer than `quorum` of them are known:
    one voice of a stranger alone never makes a sample."""
    neighbours: Count = 15
    posterior: Share = 0.8
    """Least probability of the label, by all votes and how right their contributors were before."""
    cap_share: Share = 0.1
    """Of a class, that one contributor may have in a snapshot."""
    cap_least: Count = 20
    """Samples of a class that a contributor may have in any case."""
    votes_per_minute: Count = 60


class RetentionPolicy(PolicyGroup):
    """How long pictures are kept that nothing holds, from when they were sent last; without room they go earlier."""

    days: Days = 180.0
    most_observations: Count = 200_000
    """The oldest above them go; so many of one instant stay as came with it."""


class Policy(Protocol):
    """What this package reads of a model's policy."""

    @property
    def capture(self) -> CapturePolicy:
        """Which predictions are kept."""

    @property
    def judging(self) -> JudgingPolicy:
        """Which contents candidates are judged on."""

    @property
    def trust(self) -> TrustPolicy:
        """When what users say becomes a sample."""

    @property
    def retention(self) -> RetentionPolicy:
        """How long pictures are kept."""


PolicyOf = Callable[[str], Policy]
"""Returns the policy of a model, by its name, as it is now."""
