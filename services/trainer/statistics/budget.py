"""One error budget for whatever is tried again and again: the candidates of a model's life, sequences that restart."""

import math

from services.common.errors import InvalidInput


def error_share(alpha: float, candidate: int) -> float:
    """Return the error that a candidate may be promoted with: alpha 6 / (pi k)^2, which sums to alpha over all k.

    So the chance that a model's life ever promotes one that is not better is *alpha* at most, however many try. The
    same holds for sequences of intervals of which one follows the other.

    Args:
        alpha: Of the whole life, above 0 and below 1.
        candidate: Its number k among those of the model that reached the gate, or of the sequence, from 1.

    Raises:
        InvalidInput: An argument is out of its range.
    """
    if not 0 < alpha < 1:
        raise InvalidInput(f"the error of a life is {alpha}, and must lie between 0 and 1; set one such as 0.05")
    if candidate < 1:
        raise InvalidInput(f"the candidate's number is {candidate}; give numbers from 1")
    return alpha * 6 / (math.pi * candidate) ** 2
