"""Is another training worth its price? The sum that a trigger by cost looks at, with its parts.

The idea of paying for training by the errors that it avoids is that of Modyn's cost trigger (Böther et al., "Modyn:
data-centric machine learning pipeline orchestration", 2025).
"""

from dataclasses import dataclass

from services.common.errors import InvalidInput

_FIXED, _NOT_FIXED = 3.0, 7.0
"""Of the Beta distribution that the share of fixable errors has before any candidate was judged."""


@dataclass(frozen=True)
class Worth:
    """Both sides of the sum, in one currency."""

    value: float
    cost: float
    pays: bool
    """Whether the value is more than the cost."""
    errors_avoided: float = 0.0
    """That the value is of."""
    seconds: float = 0.0
    """That the cost is of, as are *labels*."""
    labels: float = 0.0


def worth(
    errors_avoided: float,
    cost_per_error: float,
    seconds: float,
    price_per_second: float,
    labels: float,
    price_per_label: float,
) -> Worth:
    """Return what a training is worth: errors x cost of each, against seconds x price and labels x price.

    Args:
        errors_avoided: As `errors_avoided` gives them.
        cost_per_error: What one wrong answer costs.
        seconds: That training and judging take.
        price_per_second: Of the machine.
        labels: That judging asks of reviewers.
        price_per_label: Of a reviewer.

    Raises:
        InvalidInput: One of them is below 0.
    """
    amounts = (errors_avoided, cost_per_error, seconds, price_per_second, labels, price_per_label)
    if not min(amounts) >= 0:
        raise InvalidInput(f"an amount of {amounts} is below 0; set errors, seconds, labels and prices of 0 or more")
    value = errors_avoided * cost_per_error
    cost = seconds * price_per_second + labels * price_per_label
    return Worth(value, cost, value > cost, errors_avoided, seconds, labels)


def errors_avoided(requests_per_day: float, accuracy: float, fixable: float, days: float) -> float:
    """Return how many wrong answers a better model is expected to spare.

    Args:
        requests_per_day: That are answered.
        accuracy: Of the champion, 0 to 1; no lower one than is known, which would promise too much.
        fixable: Share of its errors that a candidate gets right, as `fixable_share` gives it.
        days: Until the next look.
    """
    return requests_per_day * (1 - accuracy) * fixable * days


def fixable_share(fixed: int, errors: int) -> float:
    """Return the share of the champion's errors that a candidate is expected to get right: 0.3 before any was judged.

    Args:
        fixed: Errors of champions that the last candidates got right: their wins.
        errors: Judged contents on which those champions were wrong.
    """
    return (_FIXED + fixed) / (_FIXED + _NOT_FIXED + errors)
