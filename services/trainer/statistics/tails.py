"""How surely something happens more often than it may, by exact counts."""

import math

from services.common.errors import InvalidInput

_NEGLIGIBLE = 1e-17
"""Of a sum: what adds less is left out."""


def binomial_tail(least: int, count: int, share: float) -> float:
    """Return the chance that *least* or more of *count* independent trials happen that each happen with chance *share*.

    The sum of C(n, k) p^k (1 - p)^(n - k) over k >= *least*: the p-value of the exact one-sided binomial test.

    Raises:
        InvalidInput: *share* is not 0 to 1, or *least* is below 0 or above *count*.
    """
    if not (0 <= share <= 1 and 0 <= least <= count):
        raise InvalidInput(
            f"{least} of {count} trials with a chance of {share} cannot be; give at most all of them, and a chance "
            "of 0 to 1"
        )
    if least == 0 or share == 1:
        return 1.0
    if share == 0:
        return 0.0
    # From the middle outwards the terms fall, so that few are summed however many trials there were.
    if least > count * share:
        return min(1.0, _sum(least, count, share))
    return max(0.0, 1 - _sum(count - least + 1, count, 1 - share))


def _sum(first: int, count: int, share: float) -> float:
    """Return the sum of the terms from *first* on, which lies above the mean."""
    odds = share / (1 - share)
    term = math.exp(
        math.lgamma(count + 1)
        - math.lgamma(first + 1)
        - math.lgamma(count - first + 1)
        + first * math.log(share)
        + (count - first) * math.log1p(-share)
    )
    total = 0.0
    for number in range(first, count + 1):
        total += term
        if term <= _NEGLIGIBLE * total:
            break
        term *= (count - number) / (number + 1) * odds
    return total
