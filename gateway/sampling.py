"""Which predictions are kept to learn from; numbers only, no clock and no transport.

Live accuracy is measured on draws, so a draw must not depend on the answer, nor on what other strategies take: it is
made first, with a probability that follows from the past alone, and it is paid from tokens that are its own.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

RATE_SECONDS = 10.0
"""Time constant of the estimated rate of predictions."""
RANDOM_PART = 0.5
"""Part of the budget that is the draws' own; what they leave of it goes to the other strategies."""


class Strategy(StrEnum):
    """Why a prediction is captured."""

    RANDOM = "RANDOM"
    """Drawn, whatever the answer."""
    LOW_CONFIDENCE = "LOW_CONFIDENCE"
    """The model was unsure."""
    RARE_CLASS = "RARE_CLASS"
    """Its label is one of those that are rare."""


class Dropped(StrEnum):
    """Why a prediction that a strategy has chosen is not captured."""

    BUDGET = "BUDGET"
    """More were captured lately than the budget allows."""
    QUEUE_FULL = "QUEUE_FULL"
    """The trainer takes them in more slowly than they come."""
    TRAINER_AWAY = "TRAINER_AWAY"
    """The trainer does not take them in."""
    PAUSED = "PAUSED"
    """The trainer wants none now."""
    TOO_LARGE = "TOO_LARGE"
    """The image is larger than what can be sent or held."""
    NOT_WRITTEN = "NOT_WRITTEN"
    """The gateway's disk does not take it."""


@dataclass(frozen=True)
class CapturePolicy:
    """What to capture of one model; shares are 0 to 1."""

    random_share: float
    """Of all predictions, drawn at random; less where the budget does not suffice."""
    least_random_share: float
    """Rather than a smaller share, none are drawn."""
    low_confidence_share: float
    """Of unsure answers."""
    confidence_below: float
    """An answer is unsure whose best label has a probability below this."""
    rare_class_share: float
    """Of answers with a rare label."""
    rare_labels: frozenset[str]
    samples_per_second: float
    """Budget over all strategies."""
    burst: float
    """How many may come at once."""
    paused_reason: str = ""
    """Why nothing is captured; empty where something is."""

    @property
    def random_part(self) -> float:
        """Part of the budget that only draws are paid from: all of it where there is nothing else to pay."""
        return RANDOM_PART if self.low_confidence_share or self.rare_class_share else 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one prediction."""

    captured: bool
    strategy: Strategy | None = None
    """The strategy that has chosen it, also where it is dropped then; None where none has."""
    probability: float = 0.0
    """With which any prediction at that moment was drawn; 0 where it was not drawn, or dropped."""
    dropped: Dropped | None = None
    """Why it is not captured though it was chosen."""


NOT_CHOSEN = Decision(captured=False)


class RateEstimate:
    """Events per second over an exponential window: each weighs `exp(-age / seconds) / seconds`."""

    __slots__ = ("_rate", "_seconds", "_time")

    def __init__(self, seconds: float = RATE_SECONDS) -> None:
        self._seconds = seconds
        self._rate, self._time = 0.0, -math.inf

    def add(self, now: float) -> float:
        """Count one event and return the rate that was estimated before it; *now* in seconds, never falling."""
        rate = self._rate * math.exp((self._time - now) / self._seconds)
        self._rate, self._time = rate + 1 / self._seconds, now
        return rate


class TokenBucket:
    """Lets *rate* events a second pass, and *burst* at once: in any T seconds at most `burst + rate T`.

    What it holds changes with its own events only, so that looking at it leaves no trace, not even of rounding.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._time = burst, math.nan
        self._spilt = 0.0

    def take(self, now: float) -> bool:
        """Take one token at *now*, seconds, never falling; return whether there was one."""
        level = min(self._filled(now), self._burst)
        taken = level >= 1.0
        self._level, self._time, self._spilt = level - taken, now, 0.0
        return taken

    def spill(self, now: float) -> float:
        """Return how many tokens there was no room for since the last event or spill."""
        spilt, self._spilt = self._spilt, max(self._filled(now) - self._burst, 0.0)
        return self._spilt - spilt

    def add(self, tokens: float) -> None:
        """Add *tokens*, as far as there is room."""
        self._level = min(self._level + tokens, self._burst)

    def _filled(self, now: float) -> float:
        if math.isnan(self._time):
            self._time = now
        return self._level + (now - self._time) * self._rate


class Budget:
    """Two buckets, where what the draws' has no room for goes to the others' (as in RFC 2697).

    Draws never find fewer tokens for what the other strategies took, and together they pass no more than one bucket of
    the policy's rate and burst does.
    """

    def __init__(self, policy: CapturePolicy) -> None:
        rate, part = policy.samples_per_second, policy.random_part
        draws = max(policy.burst * part, min(policy.burst, 1.0))  # below 1 no token would ever be whole
        self._draws = TokenBucket(rate * part, draws)
        self._others = TokenBucket(rate * (1 - part), policy.burst - draws)

    def take(self, strategy: Strategy, now: float) -> bool:
        """Pay for one prediction at *now*, seconds, never falling; return whether it can be paid for."""
        self._others.add(self._draws.spill(now))
        return (self._draws if strategy is Strategy.RANDOM else self._others).take(now)


def random_probability(policy: CapturePolicy, rate: float) -> float:
    """Return the probability with which the next prediction is drawn.

    Args:
        policy: Of the model.
        rate: Predictions per second, as far as they are known before this one.
    """
    affordable = policy.samples_per_second * policy.random_part
    probability = min(policy.random_share, affordable / rate if rate > 0 else 1.0)
    return probability if probability >= policy.least_random_share else 0.0


def choose(
    policy: CapturePolicy, label: str, confidence: float, probability: float, uniform: Callable[[], float]
) -> Strategy | None:
    """Return the strategy that chooses a prediction; None where none does.

    Args:
        policy: Of its model.
        label: Its best label.
        confidence: The probability of that.
        probability: Of a draw, which is made before anything else is looked at.
        uniform: Gives independent numbers from 0 to below 1.
    """
    if uniform() < probability:
        return Strategy.RANDOM
    if confidence < policy.confidence_below and uniform() < policy.low_confidence_share:
        return Strategy.LOW_CONFIDENCE
    if label in policy.rare_labels and uniform() < policy.rare_class_share:
        return Strategy.RARE_CLASS
    return None


class Sampler:
    """Decides on the predictions of one model, one after the other.

    Args:
        policy: What to capture.
        uniform: Gives independent numbers from 0 to below 1.
    """

    def __init__(self, policy: CapturePolicy, uniform: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._uniform = uniform
        self._rate = RateEstimate()
        self._budget = Budget(policy)

    @property
    def policy(self) -> CapturePolicy:
        """What is captured."""
        return self._policy

    def follow(self, policy: CapturePolicy) -> None:
        """Capture by *policy* from here on; what is known of the rate stays."""
        if policy != self._policy:
            self._policy, self._budget = policy, Budget(policy)

    def decide(
        self, label: str, confidence: float, now: float, hindrance: Callable[[], Dropped | None] = lambda: None
    ) -> Decision:
        """Decide on the next prediction.

        Args:
            label: Its best label.
            confidence: The probability of that.
            now: Seconds, never falling.
            hindrance: Says why it cannot be captured; asked where it is chosen.
        """
        policy = self._policy
        probability = random_probability(policy, self._rate.add(now))
        strategy = choose(policy, label, confidence, probability, self._uniform)
        if strategy is None:
            return NOT_CHOSEN
        dropped = hindrance()
        if dropped is None and not self._budget.take(strategy, now):
            dropped = Dropped.BUDGET
        if dropped is not None:
            return Decision(captured=False, strategy=strategy, dropped=dropped)
        return Decision(
            captured=True, strategy=strategy, probability=probability if strategy is Strategy.RANDOM else 0.0
        )
