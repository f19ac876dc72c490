import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.trainer.statistics.intervals import Interval, accuracy_sequence


def traffic(
    random: np.random.Generator, accuracy: np.ndarray, shares: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws from requests of which each is answered rightly with its *accuracy*, under pressure that follows the past.

    Many right answers in a row bring crowds, and crowds are drawn from less often, as *shares* fall.
    """
    right = random.random(len(accuracy)) < accuracy
    before = np.concatenate([[0.0], np.cumsum(right[:-1])])
    recent = (before - np.concatenate([np.zeros(20), before[:-20]])) / 20
    probability = np.array(shares)[(recent > 0.8).astype(int) + (recent > 0.9)]
    drawn = random.random(len(accuracy)) < probability
    return right[drawn], probability[drawn]


def covers(interval: Interval, accuracy: float) -> bool:
    return interval.low <= accuracy <= interval.high


def test_it_covers_at_all_times_though_the_probability_follows_the_past() -> None:
    random = np.random.default_rng(0)
    looks, paths, missed = (5, 20, 50, 100, 200, 400), 200, 0
    for _ in range(paths):
        correct, probability = traffic(random, np.full(3000, 0.85), (0.3, 0.1, 0.03))
        missed += any(not covers(accuracy_sequence(correct[:n], probability[:n], 0.05), 0.85) for n in looks)

    assert missed / paths <= 0.05


def test_it_covers_the_mean_over_all_requests_after_the_accuracy_has_changed() -> None:
    random = np.random.default_rng(1)
    accuracy = np.repeat([0.9, 0.6], 1500)
    missed = sum(
        not covers(accuracy_sequence(*traffic(random, accuracy, (0.3, 0.2, 0.1)), 0.05), accuracy.mean())
        for _ in range(200)
    )

    assert missed / 200 <= 0.05


def test_weights_make_up_for_draws_that_were_rarer_while_answers_were_right() -> None:
    accuracy = np.repeat([0.95, 0.5], 10_000)
    random = np.random.default_rng(2)
    right = random.random(len(accuracy)) < accuracy
    probability = np.repeat([0.02, 0.4], 10_000)
    drawn = random.random(len(accuracy)) < probability

    found = accuracy_sequence(right[drawn], probability[drawn], 0.05)

    assert right[drawn].mean() < 0.56
    assert found.estimate == pytest.approx(0.725, abs=0.03)
    assert covers(found, 0.725)


@pytest.mark.parametrize("probability", [1.0, 0.1, 0.005, 0.0005])
def test_it_is_as_narrow_whatever_the_share_that_is_drawn(probability: float) -> None:
    correct = np.arange(1000) % 10 > 0

    found = accuracy_sequence(correct, np.full(1000, probability), 0.05)

    assert found.estimate == pytest.approx(0.9)
    assert 0.86 < found.low < 0.9 < found.high < 0.94
    assert found.count == 1000


def test_it_narrows_with_more_draws_and_widens_with_less_error() -> None:
    def width(count: int, alpha: float) -> float:
        found = accuracy_sequence(np.arange(count) % 5 > 0, np.full(count, 0.1), alpha)
        return found.high - found.low

    assert width(4000, 0.05) < 0.7 * width(1000, 0.05) < 0.7 * width(1000, 0.001)


def test_without_draws_nothing_is_known() -> None:
    assert accuracy_sequence(np.zeros(0, bool), np.zeros(0), 0.05) == Interval(0.0, 1.0, 0.5, 0)


def test_right_answers_alone_leave_accuracy_one_possible() -> None:
    found = accuracy_sequence(np.ones(60, bool), np.full(60, 0.2), 0.05)

    assert found.high == 1
    assert 0.85 < found.low < 1


def test_draws_that_no_one_accuracy_explains_leave_everything_possible() -> None:
    """Always right while few were drawn, mostly wrong while all were."""
    correct = np.concatenate([np.ones(3000, bool), np.arange(3000) % 5 == 0])

    found = accuracy_sequence(correct, np.repeat([0.005, 1.0], 3000), 0.05)

    assert (found.low, found.high) == (0, 1)


@pytest.mark.parametrize(("probability", "alpha"), [(0.0, 0.05), (1.5, 0.05), (np.nan, 0.05), (0.5, 0.0)])
def test_what_is_no_probability_is_refused(probability: float, alpha: float) -> None:
    with pytest.raises(InvalidInput):
        accuracy_sequence(np.ones(3, bool), np.full(3, probability), alpha)
