"""The document about a model in use: how right it is, what has changed, and what came in."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from services.trainer.data.report import Histogram, Summary

REPORTED_BIAS = (
    "Biased: people report mistakes more often than what is right, so this share says how users feel, and not how "
    "often the model is right."
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Consent(_Part):
    """What users said of answers; see `REPORTED_BIAS`."""

    agreed: int
    said: int


class VersionAccuracy(_Part):
    """How right a version is on the traffic, by draws that reviewers have decided on."""

    version: int
    serves: bool
    estimate: float | None
    """None, as its interval is, before the first of its draws is judged."""
    low: float | None
    high: float | None
    judged: int
    """Draws that the interval is of."""
    drawn: int
    """Of its answers, at random, and kept."""
    answered: int
    """As gateways count."""
    captured: dict[str, int]
    """By strategy, as gateways count."""
    dropped: dict[str, int]
    """By reason: answers that were to be captured, and are lost."""
    consent: Consent | None


class Look(_Part):
    """One look of a detector."""

    time: str
    level: float
    threshold: float
    alarm: bool
    nearness: float
    """How near an alarm is: 0 is none, 1 is one, whatever the detector's scale; up to 2."""


class Detector(_Part):
    """What one detector of drift has seen."""

    kind: str
    """`label_shift`, `softmax_shift`, `embedding_shift` or `error_drift`."""
    version: int
    """Whose answers it looked at last."""
    first_draw: int
    last_draw: int
    looks: list[Look]
    """The newest ones, in their order; at least one."""


class ClassShare(_Part):
    """How often a label is answered, and how frequent its class is."""

    label: str
    reference: float
    """Share of the answers of before."""
    recent: float
    """Share of the newest answers."""
    weight: float | None
    """How many times as frequent the class is now as it is in the hold-out, by black-box shift estimation."""
    low: float | None
    high: float | None


class ShiftedClass(_Part):
    """A class whose probabilities are spread otherwise than before."""

    label: str
    distance: float
    """Largest difference of the distribution functions: Kolmogorov and Smirnov's."""
    p_value: float


class Delay(_Part):
    """After how many judged draws half of the alarms have come, once errors are more frequent."""

    drop: float
    """Of the accuracy, below the baseline."""
    draws: int | None
    """None where it takes more than 10,000."""


class ErrorDrift(_Part):
    """What the detector of errors compares with."""

    baseline: float
    """Share of errors that is as it should be."""
    run_length: float
    """Judged draws to a false alarm, in the mean."""
    judged: int
    delays: list[Delay]


class ToldAlarm(_Part):
    """An alarm that the loop has heeded."""

    kind: str
    time: str
    level: float
    threshold: float


class Quality(_Part):
    """What kind of pictures came in last."""

    time: str
    sample_count: int
    formats: dict[str, int]
    widths: Summary
    heights: Summary
    sizes: dict[str, int]
    brightness: Histogram
    contrast: Histogram
    problems: dict[str, int]
    """Copies among them, and what else is wrong with them, by kind."""
    states: dict[str, int]


class Queue(_Part):
    """Pictures on their way to be samples."""

    to_review: int
    states: dict[str, int]
    quarantined: dict[str, int]
    """By reason."""
    accepted: int
    """Samples to learn from."""
    accepted_since: int
    """Of these, those that no candidate has learnt yet which was promoted or refused."""


class Contributor(_Part):
    """How right somebody's labels are, as far as others say the same."""

    name: str
    accuracy: float
    labels: int
    """That were given."""
    trusted: bool


class CycleCost(_Part):
    """Whether a cycle that begins now would be worth its price: errors x cost against seconds and labels x prices."""

    value: float
    cost: float
    pays: bool
    decides: bool
    """Whether the policy lets new samples and drift begin a cycle only where it pays."""
    errors_avoided: float
    cost_per_error: float
    seconds: float
    price_per_second: float
    labels: float
    price_per_label: float


class Analysis(_Part):
    """All of it."""

    format: Literal[1] = 1
    model: str
    create_time: str
    confidence: float
    """That the intervals of the accuracy hold at all times."""
    accuracy: list[VersionAccuracy]
    """By rising version."""
    reported: Consent | None
    reported_bias: str = REPORTED_BIAS
    detectors: list[Detector]
    label_shift: list[ClassShare] = Field(default_factory=list)
    softmax_shift: list[ShiftedClass] = Field(default_factory=list)
    embedding_discrepancy: float | None = None
    """Maximum mean discrepancy of the features."""
    error_drift: ErrorDrift | None = None
    alarms: list[ToldAlarm]
    """Newest first."""
    quality: Quality | None
    queue: Queue
    contributors: list[Contributor]
    """Those first who have said most."""
    cost: CycleCost | None
    """None while a cycle is under way, where there is nothing new to learn, or where the traffic is not known."""
