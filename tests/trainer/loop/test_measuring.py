"""The interval of the live accuracy, over a life in which old draws are forgotten again and again."""

from collections.abc import Callable
from functools import cache

import numpy as np

from services.trainer.feedback.beginnings import next_beginning
from services.trainer.loop.measuring import ACCURACY_ERROR, measure_accuracy
from services.trainer.loop.streams import JudgedDraws

ACCURACY, KEPT, HOUR, LIFE = 0.8, 100, 10, 20_000
"""The truth, and draws: that are kept, that come in an hour, and in a life."""


@cache
def misses(right: int, count: int, restarts: int) -> bool:
    """Whether the interval misses where *right* of *count* draws were answered rightly; their order does not matter."""
    draws = JudgedDraws(np.arange(count) < right, np.full(count, 0.1), np.arange(count), restarts)
    found = measure_accuracy(draws)
    assert found is not None
    return not found.low <= ACCURACY <= found.high


def share_of_lives_with_a_miss(lives: int, begin_after: Callable[[int, int, int], int], *, counted: bool) -> float:
    random, missed = np.random.default_rng(0), 0
    for _ in range(lives):
        right = np.concatenate([[0], np.cumsum(random.random(LIFE) < ACCURACY)])
        begin = restarts = 0
        for newest in range(HOUR, LIFE + 1, HOUR):
            before, begin = begin, begin_after(begin, max(0, newest - KEPT), newest)
            restarts += counted and begin != before
            seen = int(right[newest] - right[begin]), newest - begin
            if misses(*seen, 0) and misses(*seen, restarts):  # the first, which is narrower, is known already
                missed += 1
                break
    return missed / lives


def test_it_misses_in_few_lives_however_often_draws_were_forgotten() -> None:
    assert share_of_lives_with_a_miss(100, next_beginning, counted=True) <= ACCURACY_ERROR


def test_a_beginning_that_follows_each_draw_with_the_whole_error_each_time_misses_in_many_lives() -> None:
    def follow(begin: int, gone: int, newest: int) -> int:
        return gone

    assert share_of_lives_with_a_miss(100, follow, counted=False) > 3 * ACCURACY_ERROR
