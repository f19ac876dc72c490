"""How ranges are written, and what is drawn of a run."""

import pytest

from aimass.curves import sparkline
from aimass.training import parse_range
from services.common.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("lr=0.01..1", ("lr", {"low": 0.01, "high": 1.0, "log": False})),
        ("lr=1e-3..1e-1:log", ("lr", {"low": 0.001, "high": 0.1, "log": True})),
        ("augmentation.cutout=0..8", ("augmentation.cutout", {"low": 0.0, "high": 8.0, "log": False})),
        ("batch_size=64,128", ("batch_size", {"choices": [64, 128]})),
        ("schedule=cosine,linear", ("schedule", {"choices": ["cosine", "linear"]})),
        ("nesterov=true", ("nesterov", {"choices": [True]})),
    ],
)
def test_a_range_is_an_interval_or_a_list(text, meant):
    assert parse_range(text) == meant


@pytest.mark.parametrize("text", ["lr", "lr=", "lr=1..x", "lr=..2", "lr=1..2:square"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(InvalidInput, match=r"is no range; write name=low\.\.high"):
        parse_range(text)


def test_a_curve_goes_from_the_lowest_to_the_highest_bar():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"


def test_a_flat_curve_is_drawn_low():
    assert sparkline([3.0, 3.0]) == "▁▁"


def test_a_long_curve_is_drawn_by_means():
    assert sparkline([0, 0, 1, 1], width=2) == "▁█"
