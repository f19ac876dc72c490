from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.data.samples import Samples
from services.trainer.export.comparison import (
    SIGNIFICANCE,
    Speed,
    compare_graphs,
    compare_quality,
    measure_speed,
    non_inferiority,
    samples_needed,
    verdict,
)
from services.trainer.export.graph import open_graph

STARTER = Path(__file__).parents[3] / "aimass" / "starter" / "cifar10" / "1" / "model.onnx"


def test_the_test_errs_as_often_as_it_says() -> None:
    """Candidates that have lost just the margin are taken in 5 % of the cases."""
    generator = np.random.default_rng(0)
    samples, margin = 2000, 0.005
    for differing in (0.01, 0.03, 0.1):
        shares = [(differing + margin) / 2, (differing - margin) / 2, 1 - differing]
        draws = generator.multinomial(samples, shares, 4000)
        taken = np.mean([non_inferiority(lost, won, samples, margin) <= SIGNIFICANCE for lost, won, _ in draws])
        assert 0.035 < taken < 0.065


def test_the_test_finds_equal_candidates() -> None:
    generator = np.random.default_rng(0)
    draws = generator.multinomial(10_000, [0.005, 0.005, 0.99], 1000)

    found = np.mean([non_inferiority(lost, won, 10_000, 0.005) <= SIGNIFICANCE for lost, won, _ in draws])

    assert found > 0.99


def test_the_statistic_follows_its_restricted_likelihood() -> None:
    """The closed form is the maximum that a search over the nuisance parameter finds."""
    lost, won, samples, margin = 31, 18, 2000, 0.01
    shares = np.linspace(margin + 1e-6, 0.1, 200_001)
    likelihood = lost * np.log(shares) + won * np.log(shares - margin)
    likelihood += (samples - lost - won) * np.log(1 - 2 * shares + margin)
    best = shares[likelihood.argmax()]
    z = (won - lost + samples * margin) / np.sqrt(samples * (2 * best - margin - margin**2))

    p_value = non_inferiority(lost, won, samples, margin)

    assert p_value == pytest.approx(1 - NormalDist().cdf(z), rel=1e-3)


@given(lost=st.integers(0, 200), won=st.integers(0, 200), more=st.integers(1, 5000), margin=st.floats(0.001, 0.1))
def test_a_further_loss_never_makes_a_candidate_look_better(lost: int, won: int, more: int, margin: float) -> None:
    samples = lost + won + more

    first, second = (non_inferiority(each, won, samples, margin) for each in (lost, lost + 1))

    assert 0 <= first <= second + 1e-12 <= 1 + 1e-12


def test_too_few_samples_decide_nothing() -> None:
    needed = samples_needed(0.005)

    assert needed == 539
    assert non_inferiority(0, 0, needed, 0.005) <= SIGNIFICANCE < non_inferiority(0, 0, needed - 1, 0.005)


def test_only_pairs_that_differ_are_counted() -> None:
    parent = np.array([True, True, True, False, False] * 200)
    candidate = np.array([True, True, False, True, False] * 200)

    quality = compare_quality(parent, candidate)

    assert (quality.parent_correct, quality.candidate_correct, quality.lost, quality.won) == (600, 600, 200, 200)
    assert not quality.not_worse  # 400 of 1,000 differ: half a point more or less would not be seen


@pytest.mark.parametrize(
    ("won", "ratios_low", "chosen", "reason"),
    [
        (30, (2.0, 1.5), True, "chosen: +0.00 points of accuracy on 10000 samples (30 lost, 30 won, p "),
        (30, (2.0, 1.0), False, "not chosen: 1.10 times as fast at batch 32, where it gains least"),
        (0, (2.0, 1.5), False, "not chosen: -0.30 points of accuracy on 10000 samples (30 lost, 0 won, p "),
    ],
    ids=["both", "not faster", "worse"],
)
def test_a_candidate_is_chosen_that_is_faster_at_every_batch_and_not_worse(
    won: int, ratios_low: tuple[float, float], chosen: bool, reason: str
) -> None:
    right = np.arange(10_000)
    quality = compare_quality(right >= won, right < 9_970, margin=0.003)
    speeds = [
        Speed(
            batch_size=size,
            parent_milliseconds=2,
            candidate_milliseconds=1,
            ratio=low + 0.1,
            ratio_low=low,
            ratio_high=low + 1,
        )
        for size, low in zip((1, 32), ratios_low, strict=True)
    ]

    found = verdict(quality, speeds)

    assert found[0] is chosen
    assert found[1].startswith(reason)


def test_a_choice_that_too_few_samples_prevent_says_how_many_are_needed(
    slice_samples: tuple[Samples, Samples],
) -> None:
    choice = compare_graphs(STARTER, STARTER, slice_samples[1][:50], threads=1)

    assert not choice.chosen
    assert choice.reason.startswith("not chosen: +0.00 points of accuracy on 50 samples (0 lost, 0 won, p 0.31")
    assert choice.reason.endswith("539 samples are the fewest that can decide")
    assert choice.parent_bytes == choice.candidate_bytes == STARTER.stat().st_size


def test_speed_is_told_with_its_spread(slice_samples: tuple[Samples, Samples]) -> None:
    session = open_graph(STARTER, 1)

    speed = measure_speed(session, session, slice_samples[1].images[:3], 8, rounds=3)

    assert speed.batch_size == 8
    assert speed.ratio_low <= speed.ratio <= speed.ratio_high
    assert min(speed.parent_milliseconds, speed.candidate_milliseconds) > 0
