import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.trainer.statistics.value import Worth, errors_avoided, fixable_share, worth


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ((1000, 0.01, 60, 0.0001, 85, 0.02), Worth(10.0, 1.706, True)),
        ((100, 0.01, 60, 0.0001, 85, 0.02), Worth(1.0, 1.706, False)),
        ((0, 0.01, 0, 0.0001, 0, 0.02), Worth(0.0, 0.0, False)),
        ((100, 0.01, 10_000, 0.0001, 0, 0.02), Worth(1.0, 1.0, False)),
    ],
)
def test_it_pays_where_errors_cost_more_than_seconds_and_labels(
    amounts: tuple[float, float, float, float, float, float], expected: Worth
) -> None:
    found = worth(*amounts)

    assert found.value == pytest.approx(expected.value)
    assert found.cost == pytest.approx(expected.cost)
    assert found.pays == expected.pays


@given(st.lists(st.floats(0, 1e6), min_size=6, max_size=6), st.integers(0, 5), st.floats(0, 1e6))
def test_more_errors_raise_the_value_and_all_else_the_cost(amounts: list[float], which: int, more: float) -> None:
    raised = [*amounts[:which], amounts[which] + more, *amounts[which + 1 :]]

    before, after = worth(*amounts), worth(*raised)

    assert after.value - after.cost >= before.value - before.cost if which < 2 else after.cost >= before.cost
    assert after.value >= before.value


def test_errors_are_those_of_a_better_model_until_the_next_look() -> None:
    assert errors_avoided(10_000, 0.9, 0.3, 2) == pytest.approx(600)
    assert errors_avoided(10_000, 1.0, 0.3, 2) == 0


def test_the_fixable_share_follows_what_candidates_have_fixed() -> None:
    assert fixable_share(0, 0) == pytest.approx(0.3)
    assert fixable_share(500, 1000) == pytest.approx(0.5, abs=0.01)
    assert fixable_share(0, 1000) < 0.01


def test_an_amount_below_zero_is_refused() -> None:
    with pytest.raises(InvalidInput, match="below 0"):
        worth(1, 1, -1, 1, 1, 1)
