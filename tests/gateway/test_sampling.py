"""What is captured: shares, budgets, and draws that know nothing of the answer."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sampling import (
    Budget,
    CapturePolicy,
    Dropped,
    RateEstimate,
    Sampler,
    Strategy,
    TokenBucket,
    random_probability,
)

POLICY = CapturePolicy(
    random_share=0.1,
    least_random_share=0.005,
    low_confidence_share=0.5,
    confidence_below=0.6,
    rare_class_share=0.25,
    rare_labels=frozenset({"lynx"}),
    samples_per_second=1e9,
    burst=1e9,
)
SURE, UNSURE, RARE = ("cat", 0.9), ("cat", 0.5), ("lynx", 0.9)
gaps = st.lists(st.floats(0, 3), min_size=1, max_size=60)


def decisions(policy, answers, gap=0.01, seed=0):
    sampler = Sampler(policy, random.Random(seed).random)
    return [sampler.decide(*answer, now=gap * number) for number, answer in enumerate(answers)]


def share_of(made, strategy):
    return sum(each.captured and each.strategy is strategy for each in made) / len(made)


@pytest.mark.parametrize(
    ("answer", "strategy", "share"),
    [
        (SURE, Strategy.RANDOM, 0.1),
        (SURE, Strategy.LOW_CONFIDENCE, 0),
        (UNSURE, Strategy.RANDOM, 0.1),
        (UNSURE, Strategy.LOW_CONFIDENCE, 0.9 * 0.5),
        (RARE, Strategy.RANDOM, 0.1),
        (RARE, Strategy.RARE_CLASS, 0.9 * 0.25),
    ],
)
def test_each_strategy_takes_its_share(answer, strategy, share):
    made = decisions(POLICY, [answer] * 5000)

    assert share_of(made, strategy) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 5000))


def test_a_broken_models_answer_is_drawn_like_any_other_and_not_taken_for_unsure():
    made = decisions(POLICY, [("cat", float("nan"))] * 5000)

    assert {each.strategy for each in made} == {None, Strategy.RANDOM}


@settings(max_examples=25)
@given(gaps, st.floats(0.1, 5), st.floats(1, 10), st.integers(0, 9))
def test_in_no_stretch_of_time_is_more_captured_than_the_budget_allows(gaps, rate, burst, seed):
    policy = replace(POLICY, samples_per_second=rate, burst=burst, random_share=0.7, low_confidence_share=1.0)
    times = np.cumsum(gaps)
    sampler = Sampler(policy, random.Random(seed).random)
    taken = times[[sampler.decide(*UNSURE, now=now).captured for now in times]]

    stretches = taken[None] - taken[:, None]
    counts = np.arange(len(taken))[None] - np.arange(len(taken))[:, None] + 1
    assert (counts <= burst + rate * stretches + 1e-6)[stretches >= 0].all()


@settings(max_examples=25)
@given(gaps, st.data())
def test_draws_find_the_same_tokens_whatever_the_other_strategies_take(gaps, data):
    policy = replace(POLICY, samples_per_second=1.0, burst=4)
    alone, beside = Budget(policy), Budget(policy)
    wants = data.draw(st.lists(st.sampled_from([*Strategy]), min_size=len(gaps), max_size=len(gaps)))
    for now, strategy in zip(np.cumsum(gaps), wants, strict=True):
        paid = beside.take(strategy, now)
        if strategy is Strategy.RANDOM:
            assert alone.take(strategy, now) == paid


@pytest.mark.parametrize("others", [SURE, UNSURE, RARE])
def test_which_predictions_are_drawn_does_not_depend_on_the_answers(others):
    """Each prediction has a number of its own for its draw, so the same ones must be drawn whatever was answered."""
    policy = replace(POLICY, samples_per_second=2, burst=6, low_confidence_share=1.0, rare_class_share=1.0)

    def drawn(answers):
        sampler, numbers = Sampler(policy, lambda: next(uniforms)), random.Random(3)
        found = []
        for number, answer in enumerate(answers):
            uniforms = iter([numbers.random(), 0.0, 0.0])
            decision = sampler.decide(*answer, now=0.05 * number)
            found.append((decision.captured, decision.probability) if decision.strategy is Strategy.RANDOM else None)
        return found

    assert drawn([others] * 2000) == drawn([SURE] * 2000)


@settings(max_examples=25)
@given(gaps, st.floats(0, 1), st.floats(0, 0.1), st.floats(0.1, 5))
def test_the_probability_that_is_told_is_the_one_that_was_used(gaps, share, least, rate):
    """A number just below it is drawn, and one at it is not."""
    policy = replace(POLICY, random_share=share, least_random_share=least, samples_per_second=rate, burst=1e9)
    below = Sampler(policy, lambda: np.nextafter(estimate, 0))
    at = Sampler(policy, lambda: estimate)
    reference = RateEstimate()
    for now in np.cumsum(gaps):
        estimate = random_probability(policy, reference.add(now))
        drawn, missed = below.decide(*SURE, now=now), at.decide(*SURE, now=now)
        assert (drawn.probability, drawn.captured) == (estimate, estimate > 0)
        assert missed.strategy is not Strategy.RANDOM


def test_a_prediction_that_was_not_drawn_is_told_no_probability():
    made = decisions(POLICY, [UNSURE] * 200)

    assert {each.probability for each in made if each.strategy is Strategy.RANDOM} == {0.1}
    assert {each.probability for each in made if each.strategy is not Strategy.RANDOM} == {0.0}


def test_draws_weighed_by_their_probabilities_count_what_was_answered_though_the_rate_changes():
    """Horvitz and Thompson: the sum of 1/probability over draws estimates how many there were."""
    policy = replace(POLICY, random_share=0.5, samples_per_second=20.0, burst=1000)
    sampler, now, estimate, answered = Sampler(policy, random.Random(1).random), 0.0, 0.0, 0
    for per_second in (10, 400, 50):
        for _ in range(per_second * 15):
            now += 1 / per_second
            answered += 1
            decision = sampler.decide(*SURE, now=now)
            estimate += 1 / decision.probability if decision.captured and decision.probability else 0

    assert estimate == pytest.approx(answered, rel=0.1)


def test_under_pressure_fewer_are_drawn_and_below_the_least_share_none():
    policy = replace(POLICY, samples_per_second=2)  # half of it for draws

    assert random_probability(policy, 0) == random_probability(policy, 10) == 0.1
    assert random_probability(policy, 100) == 0.01
    assert random_probability(policy, 1000) == 0


def test_draws_have_the_whole_budget_where_nothing_else_is_wanted():
    policy = replace(POLICY, low_confidence_share=0, rare_class_share=0, samples_per_second=2)

    assert random_probability(policy, 100) == 0.02


def test_other_strategies_have_what_draws_leave_of_the_budget():
    policy = replace(POLICY, random_share=0, low_confidence_share=1, samples_per_second=10, burst=10)

    captured = sum(each.captured for each in decisions(policy, [UNSURE] * 4000, gap=0.01))

    assert captured == pytest.approx(10 * 40, abs=11)


def test_a_budget_of_nothing_captures_nothing():
    made = decisions(replace(POLICY, samples_per_second=0, burst=0), [UNSURE] * 500)

    assert not any(each.captured for each in made)
    assert {each.dropped for each in made if each.strategy} == {Dropped.BUDGET}


def test_a_hindrance_is_told_of_what_was_chosen_and_costs_no_token():
    policy = replace(POLICY, random_share=1, samples_per_second=0, burst=2, low_confidence_share=0, rare_class_share=0)
    policy = replace(policy, least_random_share=0)
    sampler = Sampler(replace(policy, samples_per_second=1e-9), lambda: 0.0)

    hindered = [sampler.decide(*SURE, now=0.0, hindrance=lambda: Dropped.QUEUE_FULL) for _ in range(5)]
    free = sampler.decide(*SURE, now=0.0)

    assert {(each.captured, each.dropped, each.probability) for each in hindered} == {(False, Dropped.QUEUE_FULL, 0.0)}
    assert free.captured


def test_a_changed_policy_counts_at_once_and_the_rate_stays_known():
    policy = replace(POLICY, random_share=1.0, samples_per_second=2, low_confidence_share=0, rare_class_share=0)
    sampler = Sampler(replace(policy, samples_per_second=1e9), lambda: 0.0)
    for number in range(3000):
        sampler.decide(*SURE, now=number / 100)

    sampler.follow(policy)

    assert sampler.decide(*SURE, now=30.0).probability == pytest.approx(2 / 100, rel=0.15)


def test_the_rate_is_estimated_from_the_past_alone():
    estimate = RateEstimate(seconds=10)

    assert estimate.add(0.0) == 0
    for number in range(1, 5000):
        rate = estimate.add(number / 200)
    assert rate == pytest.approx(200, rel=0.1)
    assert estimate.add(number / 200 + 1000) < 1e-6


def test_a_bucket_spills_what_it_has_no_room_for_once():
    bucket = TokenBucket(rate=2.0, burst=3.0)

    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.spill(now) for now in (1.0, 1.5, 2.0, 2.0, 3.5)] == [0, 0, 1, 0, 3]
    assert [bucket.take(3.5) for _ in range(4)] == [True, True, True, False]
    assert bucket.spill(4.0) == 0


def test_a_bucket_has_no_room_for_more_than_its_burst():
    bucket = TokenBucket(rate=0.0, burst=2.0)

    bucket.add(10.0)

    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
