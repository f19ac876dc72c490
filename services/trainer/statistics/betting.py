"""Is the candidate better than the champion? E-values from contents on which both were judged, valid however often.

Each judged content is a bet against the hypothesis that the candidate is not better. The wealth of the bets is an
e-value: whoever stops whenever it pleases, and says "better" only where the wealth has reached 1/a, is wrong with
probability a at most (Ville's inequality). So the running maximum counts, and looking costs nothing.

From: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput

WIN, TIE, LOSS = 1, 0, -1
"""Outcomes of one content: only the candidate is right, both or neither are, only the champion is."""
_BETS = 100


@dataclass(frozen=True)
class Counts:
    """Judged contents by outcome, as the candidate sees them."""

    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Evidence:
    """Natural logarithms of e-values."""

    better: float
    """Against: the candidate is not better than the champion less the margin."""
    worse: float
    """Against: the candidate is no worse than the champion less the margin."""


def log_e_value(wins: int, ties: int, losses: int, margin: float = 0.0) -> float:
    """Return the log e-value against E[X] <= -margin, where X is 1 for a win, 0 for a tie and -1 for a loss.

    The mean over J = 100 bets b_j = (j - 1/2) / (J (1 - margin)) of
    (1 + b_j (1 + margin))^wins (1 + b_j margin)^ties (1 + b_j (margin - 1))^losses. With margin 0, ties say nothing.

    Args:
        wins: Contents on which only the candidate is right.
        ties: Contents on which both are right, or both wrong.
        losses: Contents on which only the champion is right.
        margin: By how much the candidate may be worse, as a share of contents, above -1 and below 1.

    Raises:
        InvalidInput: The margin is no such share.
    """
    return float(_log_e_values(np.array([[wins, ties, losses]]), margin)[0])


def highest_log_e(outcomes: NDArray[np.int8], margin: float = 0.0) -> float:
    """Return the highest log e-value on the way through *outcomes*; 0 at least, with which every way begins.

    Args:
        outcomes: `WIN`, `TIE` or `LOSS`, (n,), in an order that does not depend on who is right.
        margin: As `log_e_value` takes it.

    Raises:
        InvalidInput: The margin is no such share.
    """
    return float(_log_e_path(outcomes, margin).max(initial=0.0))


def highest_log_mean_e(first: NDArray[np.int8], second: NDArray[np.int8], margin: float = 0.0) -> float:
    """Return the highest log of the mean of two streams' e-values, where all of *first* is looked at before *second*.

    The mean of two e-values is one. The mean of two running maxima is not: each may come from another moment.

    Args:
        first: As `highest_log_e` takes it; the hold-out, which is there as a whole.
        second: As *first*; the live contents, which come one by one.
        margin: As `log_e_value` takes it.

    Raises:
        InvalidInput: The margin is no such share.
    """
    before, after = (np.concatenate([[0.0], _log_e_path(outcomes, margin)]) for outcomes in (first, second))
    highest = max(float(np.logaddexp(before, 0.0).max()), float(np.logaddexp(before[-1], after).max()))
    return highest - math.log(2)


def evidence(counts: Counts, margin: float = 0.0) -> Evidence:
    """Return what *counts* say both ways: better than the champion less the margin, and worse than that.

    Raises:
        InvalidInput: The margin is no share as `log_e_value` takes it.
    """
    return Evidence(
        better=log_e_value(counts.wins, counts.ties, counts.losses, margin),
        worse=log_e_value(counts.losses, counts.ties, counts.wins, -margin),
    )


def _log_e_path(outcomes: NDArray[np.int8], margin: float) -> NDArray[np.float64]:
    kinds = outcomes[:, None] == np.array([WIN, TIE, LOSS], np.int8)
    return _log_e_values(np.cumsum(kinds, axis=0), margin)


def _log_e_values(counts: NDArray[np.int64], margin: float) -> NDArray[np.float64]:
    """Return the log e-values of rows of wins, ties and losses."""
    if not -1 < margin < 1:
        raise InvalidInput(f"the margin is {margin}, and must lie between -1 and 1; give a share such as 0.01")
    bets = (np.arange(_BETS) + 0.5) / (_BETS * (1 - margin))
    factors = np.log1p(np.outer([1 + margin, margin, margin - 1], bets))
    wealth = counts @ factors
    highest = wealth.max(axis=1, keepdims=True)
    return np.asarray(highest[:, 0] + np.log(np.exp(wealth - highest).mean(axis=1)))
