"""What a cycle would be worth, where little is known."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from services.trainer.loop.forecasts import requests_per_day, worth_of_cycle
from services.trainer.loop.policy import Strategy
from services.trainer.loop.policy_file import load_policy
from services.trainer.statistics.intervals import Interval, accuracy_sequence
from services.trainer.storage.database import Database
from tests.trainer.loop.conftest import MODEL
from tests.trainer.loop.rows import add_draws, add_pictures

POLICY = load_policy().default
PER_DAY = 100_000.0
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def errors_avoided(accuracy: Interval | None, tested: float | None) -> float:
    worth = worth_of_cycle(PER_DAY, POLICY, accuracy, tested, {Strategy.REFIT: 1.0}, (0, 0))
    assert worth is not None
    return worth.errors_avoided


def judged(right: int, wrong: int) -> Interval:
    correct = np.array([True] * right + [False] * wrong)
    return accuracy_sequence(correct, np.full(right + wrong, 0.1), 0.05)


def test_the_first_judged_draws_change_what_a_cycle_is_worth_but_little() -> None:
    known = errors_avoided(None, 0.9)

    for right, wrong in ((1, 0), (4, 1), (0, 1)):
        draws = judged(right, wrong)
        assert draws.low < 0.2  # which would be eight times the errors
        assert known / 2 < errors_avoided(draws, 0.9) < 1.5 * known


def test_over_all_that_may_be_drawn_the_first_draws_promise_no_more_errors_than_there_are() -> None:
    chances = {0: 0.9**2, 1: 2 * 0.9 * 0.1, 2: 0.1**2}
    promised = sum(chance * errors_avoided(judged(2 - wrong, wrong), 0.9) for wrong, chance in chances.items())

    assert promised == pytest.approx(errors_avoided(None, 0.9))


def test_many_judged_draws_outweigh_the_test_part_and_without_it_few_of_them_promise_nothing() -> None:
    many, few = judged(700, 300), judged(1, 1)

    assert errors_avoided(many, 0.95) == pytest.approx(errors_avoided(None, 0.7), rel=0.05)
    assert errors_avoided(many, None) == pytest.approx(errors_avoided(None, 0.7), rel=0.05)
    assert errors_avoided(few, None) < errors_avoided(None, 0.9)


def test_where_nothing_is_known_nothing_is_foretold() -> None:
    assert worth_of_cycle(PER_DAY, POLICY, None, None, {}, (0, 0)) is None
    assert worth_of_cycle(None, POLICY, judged(9, 1), 0.9, {}, (0, 0)) is None


@pytest.mark.usefixtures("task")
def test_a_burst_of_five_minutes_a_day_counts_once(database: Database) -> None:
    def draw(count: int, after: timedelta) -> None:
        time = (BEGIN + after).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        add_draws(database, add_pictures(database, count), share=0.01, time=time)

    def per_day(after: timedelta) -> float | None:
        with database.read() as session:
            return requests_per_day(session, MODEL, BEGIN + after)

    minutes, days = timedelta(minutes=1), timedelta(days=1)
    assert per_day(0 * days) is None
    for day in range(3):  # 500 requests, and then silence
        for minute in range(5):
            draw(1, day * days + minute * minutes)

    assert per_day(2 * days + 5 * minutes) == 500
    assert per_day(3 * days - minutes) == 500
    assert per_day(4 * days) is None


@pytest.mark.usefixtures("task")
def test_on_the_first_day_a_burst_stands_for_an_hour_at_least(database: Database) -> None:
    add_draws(database, add_pictures(database, 5), share=0.01, time="2026-01-01T00:00:00.000Z")

    with database.read() as session:
        found = [requests_per_day(session, MODEL, BEGIN + timedelta(minutes=each)) for each in (5, 120, 1440)]

    assert found == [500 * 24, 500 * 12, 500]
