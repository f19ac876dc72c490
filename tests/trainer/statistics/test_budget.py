import math

import pytest

from services.common.errors import InvalidInput
from services.trainer.statistics.budget import error_share


def test_all_candidates_together_spend_the_budget_and_no_more() -> None:
    shares = [error_share(0.05, candidate) for candidate in range(1, 20_000)]

    assert shares == sorted(shares, reverse=True)
    assert math.fsum(shares) == pytest.approx(0.05, rel=1e-4)
    assert math.fsum(shares) < 0.05


@pytest.mark.parametrize(("alpha", "candidate"), [(0.0, 1), (1.0, 1), (0.05, 0)])
def test_what_is_no_error_or_no_number_is_refused(alpha: float, candidate: int) -> None:
    with pytest.raises(InvalidInput):
        error_share(alpha, candidate)
