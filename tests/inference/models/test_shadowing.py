"""What counts as agreement between two versions."""

import numpy as np
import pytest

from services.inference.models.shadowing import agree

SCORES = np.array([[0.1, 0.9], [0.6, 0.4]], np.float32)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (SCORES, SCORES, True),
        (SCORES, SCORES[:, ::-1], False),
        (SCORES, np.array([[0.4, 0.6], [0.9, 0.1]], np.float32), True),  # other numbers, same classes
        (SCORES, SCORES[:1], False),
        (np.float32([1.0, 2.0]), np.float32([1.001, 2.0]), True),
        (np.float32([1.0, 2.0]), np.float32([1.1, 2.0]), False),
        (np.array([1, 2]), np.array([1, 3]), False),
        (np.array([b"a"], np.object_), np.array([b"a"], np.object_), True),
    ],
)
def test_versions_agree_on_the_best_class_or_else_on_the_numbers(one, other, same):
    assert agree([one], [other]) is same
