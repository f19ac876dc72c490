"""The accuracy of a version on its traffic, from answers drawn with known probabilities and then judged.

The interval comes from bets against each accuracy m. A judged draw of probability p multiplies the wealth of a bet b by
1 + b (Y - m) / p, with Y 1 where the answer was right; a request that was not drawn multiplies it by 1. At the true
accuracy the mean of the factor is 1 whatever p was, as long as it was settled before the request was seen, so p may
follow the load. Bets on both sides are mixed with equal weights, and an accuracy is left out once the mixture against
it has reached 1/alpha. Where the accuracy stays as it is, the intervals of all moments cover it together with
probability 1 - alpha; where it moves, the interval of one moment covers the mean over all requests so far. Draws that
are so rare that the boldest bets could lose all on one of them count for less there than 1/p says, so that a mean over
times of very different load and different accuracy is covered less surely. Bets that refute every accuracy say that it
moved; then the interval is everything.

From: Waudby-Smith, Wu, Ramdas, Karampatziakis and Mineiro, "Anytime-valid off-policy inference for contextual bandits"
(2022); Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput

_BETS = np.geomspace(1e-5, 1.0, 75)
"""Over five decades, so that neither the shares drawn nor the number of draws need be known beforehand."""
_BOLDEST = 0.99
"""The share of its wealth that a bet risks at most on one draw."""
_HALVINGS = 20  # to a millionth


@dataclass(frozen=True)
class Interval:
    """Where an accuracy lies."""

    low: float
    high: float
    estimate: float
    """Share of right answers, each draw weighted by 1 / probability; 0.5 without draws."""
    count: int
    """Judged draws."""


def accuracy_sequence(correct: NDArray[np.bool_], probability: NDArray[np.float64], alpha: float) -> Interval:
    """Return the interval of the accuracy after all *correct*, valid at whatever moment it is looked at.

    Args:
        correct: Whether each judged draw was answered rightly, (n,): those up to some draw without a gap, so that what
            is judged cannot depend on how it looks.
        probability: With which each was drawn, above 0 up to 1, (n,).
        alpha: The chance that the interval ever misses, above 0 and below 1.

    Raises:
        InvalidInput: A probability or *alpha* is out of its range.
    """
    if not 0 < alpha < 1:
        raise InvalidInput(f"the error of an interval is {alpha}, and must lie between 0 and 1; set one such as 0.05")
    if not len(correct):
        return Interval(0.0, 1.0, 0.5, 0)
    if not (probability.min() > 0 and probability.max() <= 1):
        raise InvalidInput(
            f"draws have probabilities from {probability.min()} to {probability.max()}, and must have them above 0 and "
            "up to 1; leave out what was not drawn at random"
        )
    estimate = float(np.average(correct, weights=1 / probability))
    wealth = _Wealth(correct, probability)
    bound = math.log(1 / alpha)
    inside = wealth.least()
    if wealth.against(inside) >= bound:
        return Interval(0.0, 1.0, estimate, len(correct))
    low, high = (wealth.crossing(inside, end, bound) for end in (0.0, 1.0))
    return Interval(low, high, estimate, len(correct))


class _Wealth:
    """The log of the mixture of bets, as a function of the accuracy that they bet against.

    Each bet's wealth is a product of positive linear functions that all fall, or all rise: it is convex, and so is
    the mixture. The accuracies that it leaves are one interval therefore, which bisection finds.
    """

    def __init__(self, correct: NDArray[np.bool_], probability: NDArray[np.float64]) -> None:
        kinds, counts = np.unique(np.stack([probability, correct.astype(np.float64)]), axis=1, return_counts=True)
        self._outcomes, self._counts = kinds[1], counts.astype(np.float64)
        stakes = np.minimum(_BETS[:, None] / kinds[0], _BOLDEST)
        self._stakes = np.concatenate([stakes, -stakes])

    def against(self, accuracy: float) -> float:
        """Return the log of the wealth; 0 before any draw."""
        wealth = np.log1p(self._stakes * (self._outcomes - accuracy)) @ self._counts
        highest = wealth.max()
        return float(highest + np.log(np.exp(wealth - highest).mean()))

    def least(self) -> float:
        """Return the accuracy against which the wealth is least, within 1e-5, by golden sections."""
        ratio = (math.sqrt(5) - 1) / 2
        low, high = 0.0, 1.0
        left, right = high - ratio, low + ratio
        at_left, at_right = self.against(left), self.against(right)
        while high - low > 1e-5:
            if at_left < at_right:
                high, right, at_right = right, left, at_left
                left = high - ratio * (high - low)
                at_left = self.against(left)
            else:
                low, left, at_left = left, right, at_right
                right = low + ratio * (high - low)
                at_right = self.against(right)
        return (low + high) / 2

    def crossing(self, inside: float, end: float, bound: float) -> float:
        """Return where the wealth reaches *bound* between *inside* and *end*; *end* where it does not."""
        if self.against(end) < bound:
            return end
        outside = end
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            if self.against(middle) < bound:
                inside = middle
            else:
                outside = middle
        return outside
