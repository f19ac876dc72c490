import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import betainc, betaln

from services.common.errors import InvalidInput
from services.trainer.statistics.betting import (
    Counts,
    evidence,
    highest_log_e,
    highest_log_mean_e,
    log_e_value,
)


def outcomes_of(random: np.random.Generator, win: float, loss: float, count: int) -> np.ndarray:
    return random.choice(np.array([1, 0, -1], np.int8), count, p=[win, 1 - win - loss, loss])


def multinomials(count: int, win: float, loss: float) -> list[tuple[int, int, int, float]]:
    """Every way that *count* contents can turn out, with its probability."""
    tie = 1 - win - loss
    return [
        (w, count - w - x, x, math.comb(count, w) * math.comb(count - w, x) * win**w * loss**x * tie ** (count - w - x))
        for w in range(count + 1)
        for x in range(count - w + 1)
    ]


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 1), (40, 20), (200, 150), (10, 60), (700, 600)])
def test_without_a_margin_it_is_the_mixture_over_coins_in_closed_form(wins: int, losses: int) -> None:
    coins = (wins + losses + 1) * math.log(2) + betaln(wins + 1, losses + 1)
    closed = coins + math.log(1 - betainc(wins + 1, losses + 1, 0.5))

    assert log_e_value(wins, 1000, losses) == pytest.approx(closed, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.0, 0.005, 0.02, -0.02, -0.1]),
    st.floats(0, 0.45),
    st.floats(0, 1),
    st.integers(1, 14),
)
def test_its_mean_is_at_most_one_where_the_candidate_is_not_better(
    margin: float, win: float, more: float, count: int
) -> None:
    least = max(0.0, win + margin)  # E[X] = win - loss <= -margin
    loss = least + more * (1 - win - least)
    win = min(win, loss - margin)
    assume(win >= 0)

    mean = sum(p * math.exp(log_e_value(w, t, x, margin)) for w, t, x, p in multinomials(count, win, loss))

    assert mean <= 1 + 1e-9


@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_candidates_that_are_not_better_pass_as_seldom_as_promised_though_seen_at_every_content(margin: float) -> None:
    """At the edge of the hypothesis, where the most pass."""
    random = np.random.default_rng(1)
    alpha, paths, discordant = 0.01, 3_000, 0.3
    win, loss = (discordant - margin) / 2, (discordant + margin) / 2

    passed = sum(
        highest_log_e(outcomes_of(random, win, loss, 200), margin) >= math.log(1 / alpha) for _ in range(paths)
    )

    assert passed / paths <= alpha + 2 * math.sqrt(alpha * (1 - alpha) / paths)


def test_evidence_of_harm_is_that_of_gain_with_sides_exchanged() -> None:
    there, back = evidence(Counts(30, 500, 10), 0.02), evidence(Counts(10, 500, 30), -0.02)

    assert (there.better, there.worse) == (back.worse, back.better)


def test_a_margin_forgives_a_candidate_that_is_worse_by_less() -> None:
    counts = Counts(wins=28, ties=3940, losses=32)

    assert evidence(counts, 0.0).better < 0
    assert evidence(counts, 0.02).better > math.log(20)


def test_the_highest_value_is_kept_when_luck_turns() -> None:
    outcomes = np.array([1] * 12 + [-1] * 12, np.int8)

    assert highest_log_e(outcomes) == pytest.approx(log_e_value(12, 0, 0))
    assert highest_log_e(outcomes[::-1]) == 0
    assert highest_log_e(outcomes[:0]) == 0


def test_one_stream_alone_carries_the_mean_at_the_price_of_a_half() -> None:
    holdout = np.array([1, 1, 1, 0, 1, 1] * 10, np.int8)
    alone = math.log(0.5 * math.exp(highest_log_e(holdout)) + 0.5)

    assert highest_log_mean_e(holdout, holdout[:0]) == pytest.approx(alone)
    assert highest_log_mean_e(holdout[:0], holdout) == pytest.approx(alone)


def test_two_streams_are_as_high_as_the_mean_was_at_one_moment() -> None:
    rises_then_falls = np.array([1] * 10 + [-1] * 30, np.int8)
    rises = np.ones(10, np.int8)

    found = highest_log_mean_e(rises_then_falls, rises)

    assert found == pytest.approx(math.log(0.5 * math.exp(log_e_value(10, 0, 0)) + 0.5), rel=1e-6)
    assert found < math.log(0.5 * math.exp(highest_log_e(rises_then_falls)) + 0.5 * math.exp(highest_log_e(rises)))


@pytest.mark.parametrize("margin", [-1.0, 1.0, math.nan])
def test_a_margin_that_is_no_share_is_refused(margin: float) -> None:
    with pytest.raises(InvalidInput, match="between -1 and 1"):
        log_e_value(1, 1, 1, margin)
