"""Scores to classes."""

import numpy as np
import pytest

from services.inference.contracts.classification import best_classes, classification_strings, is_numeric
from services.inference.engine import BFLOAT16

LABELS = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("scores", "top", "order"),
    [
        ([0.1, 0.4, 0.2, 0.3], 0, [1, 3, 2, 0]),
        ([0.1, 0.4, 0.2, 0.3], 2, [1, 3]),
        ([0.1, 0.4, 0.2, 0.3], 99, [1, 3, 2, 0]),
        ([0.5, 0.5, 0.5, 0.5], 3, [0, 1, 2]),
        ([0.2, 0.9, 0.2, 0.9], 0, [1, 3, 0, 2]),
        ([-np.inf, 0.0, np.inf, -1.0], 0, [2, 1, 3, 0]),
        ([0.1, 0.5] * 500, 0, [*range(1, 1000, 2), *range(0, 1000, 2)]),
        ([np.nan, 0.0, 1.0, 0.5], 0, [2, 3, 1, 0]),
    ],
)
def test_classes_come_best_first_and_equals_by_index(scores, top, order):
    assert [each.index for each in best_classes(np.array(scores, np.float32), LABELS, top)] == order


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int8, np.float16, np.float64, BFLOAT16])
def test_scores_of_any_datatype_are_ordered(dtype):
    scores = np.array([0, 100, 1], dtype)

    assert is_numeric(scores)
    assert [(each.index, each.score) for each in best_classes(scores, (), 2)] == [(1, 100.0), (2, 1.0)]


@pytest.mark.parametrize("values", [[b"a"], [True], [1j]])
def test_what_has_no_order_is_not_numeric(values):
    assert not is_numeric(np.array(values, np.object_ if values == [b"a"] else None))


def test_class_without_a_label_has_an_empty_one():
    assert [each.label for each in best_classes(np.arange(5.0), LABELS, 2)] == ["", "d"]


def test_strings_are_as_triton_writes_them():
    scores = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)

    assert classification_strings(scores, ("cat", "dög"), 1).tolist() == [
        ["0.750000:1:dög".encode()],
        [b"1.000000:0:cat"],
    ]
    assert classification_strings(scores, (), 5).tolist()[1] == [b"1.000000:0", b"0.000000:1"]
