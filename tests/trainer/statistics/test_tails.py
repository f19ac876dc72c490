import math

import pytest

from services.common.errors import InvalidInput
from services.trainer.statistics.tails import binomial_tail


@pytest.mark.parametrize("count", [1, 7, 50])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.97, 1.0])
def test_the_tail_is_the_sum_of_all_its_terms(count: int, share: float) -> None:
    terms = [math.comb(count, each) * share**each * (1 - share) ** (count - each) for each in range(count + 1)]

    for least in range(count + 1):
        assert binomial_tail(least, count, share) == pytest.approx(math.fsum(terms[least:]), rel=1e-9, abs=1e-12)


def test_among_very_many_trials_it_agrees_with_the_normal_distribution() -> None:
    count, share = 10**8, 0.01
    mean, deviation = count * share, math.sqrt(count * share * (1 - share))

    for deviations in (-2, 0, 2):
        expected = math.erfc(deviations / math.sqrt(2)) / 2
        assert binomial_tail(round(mean + deviations * deviation), count, share) == pytest.approx(expected, rel=0.01)
    assert binomial_tail(count, count, share) == 0.0


@pytest.mark.parametrize(
    ("least", "count", "share"), [(-1, 5, 0.1), (6, 5, 0.1), (1, 5, -0.1), (1, 5, 1.1), (1, 5, math.nan)]
)
def test_what_is_no_count_or_no_share_is_refused(least: int, count: int, share: float) -> None:
    with pytest.raises(InvalidInput, match="trials with a chance of"):
        binomial_tail(least, count, share)
