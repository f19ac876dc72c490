"""The time of a batch is learned from those that ran."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.batching.duration_model import FEWEST, WINDOW, DurationModel


def taught(*runs: tuple[int, float]) -> DurationModel:
    model = DurationModel()
    for samples, seconds in runs:
        model.record(samples, seconds)
    return model


def test_nothing_is_predicted_from_too_few_runs():
    assert taught(*[(1, 5.0)] * (FEWEST - 1)).predict(1) == 0


@given(st.floats(1e-6, 10), st.floats(0, 10), st.lists(st.integers(1, 64), min_size=FEWEST, max_size=WINDOW))
def test_line_is_found_again(per_sample, fixed, sizes):
    model = taught(*((size, per_sample * size + fixed) for size in sizes))

    for size in sizes:
        assert model.predict(size) == pytest.approx(per_sample * size + fixed)
    if len(set(sizes)) > 1:
        assert model.predict(100) == pytest.approx(100 * per_sample + fixed, rel=1e-4)


def test_run_that_stalled_changes_nothing():
    runs = [(1, 0.2), (4, 0.5)] * 5

    assert taught(*runs, (4, 60.0), (1, 60.0)).predict(2) == pytest.approx(0.3)


def test_only_the_newest_runs_count():
    assert taught(*[(1, 60.0)] * WINDOW, *[(1, 0.5)] * WINDOW).predict(1) == pytest.approx(0.5)


def test_one_size_says_nothing_of_others():
    assert taught(*[(4, 1.0)] * FEWEST).predict(8) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-6, 10)), min_size=FEWEST, max_size=WINDOW))
def test_prediction_is_never_negative_and_never_falls_with_the_size(runs):
    predictions = [taught(*runs).predict(size) for size in range(1, 100)]

    assert min(predictions) >= 0
    assert predictions == sorted(predictions)
