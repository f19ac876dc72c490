"""The short form of benchmarks/honesty.py."""

import math

import numpy as np
import pytest

from benchmarks.honesty import ALPHA, EQUAL, GATES, SOME_BETTER, Tally, discordant, price, tally_of
from benchmarks.honesty import first_passing as first_passing_of
from services.trainer.statistics.betting import highest_log_e

LIVES = 60


def tally(gate: str, gains: tuple[float, ...], lives: int = LIVES, alike: float = 0.0) -> Tally:
    return tally_of(GATES[gate], gains, differ=0.12, lives=lives, seed=0, alike=alike)


SHIPPED, DRAWS = "betting on hold-out and draws", "betting on draws, labels in order"


@pytest.mark.parametrize(("gains", "alike"), [(EQUAL, 0.0), (EQUAL, 0.5), (SOME_BETTER, 0.0)])
@pytest.mark.parametrize("gate", [SHIPPED, DRAWS])
def test_few_lives_see_a_promotion_of_a_candidate_that_is_not_better(
    gate: str, gains: tuple[float, ...], alike: float
) -> None:
    found = tally(gate, gains, alike=alike)

    assert found.spoiled / found.lives <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / found.lives)
    assert found.not_better > 500


@pytest.mark.parametrize("gate", ["more right on 1,000", "McNemar 5 %, each day", "betting, whatever is labelled"])
def test_gates_that_look_at_will_or_at_what_users_report_spoil_most_lives(gate: str) -> None:
    found = tally(gate, EQUAL, lives=10)

    assert found.spoiled / found.lives > 0.5


def test_better_candidates_are_promoted_all_the_same() -> None:
    found = tally(SHIPPED, SOME_BETTER)

    assert found.better_promoted / found.better > 0.4


@pytest.mark.parametrize("holdout", [0, 1000])
def test_a_gain_of_four_points_costs_seven_hundred_contents_and_a_hundred_labels_at_most(holdout: int) -> None:
    promoted, contents, labels = price(np.random.default_rng(0), 0.04, 0.12, paths=80, most=3000, holdout=holdout)

    assert promoted > 0.95
    assert contents <= 700
    assert labels <= 100


def test_the_first_passing_content_is_where_the_evidence_first_suffices() -> None:
    outcomes = discordant(np.random.default_rng(3).choice(np.array([1, 1, 0, -1], np.int8), 400))

    asked = first_passing_of(outcomes, 3.0)

    assert asked is not None
    assert highest_log_e(outcomes[:asked]) >= 3.0 > highest_log_e(outcomes[: asked - 1])
