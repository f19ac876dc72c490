import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.trainer.evaluation.figures import (
    calibration_error,
    evaluate_predictions,
    fit_temperature,
    top_accuracy,
    wilson_interval,
)

NAMES = ("cat", "dog", "owl")
PROBABILITIES = np.array(
    [
        [0.7, 0.2, 0.1],  # cat, called cat
        [0.1, 0.8, 0.1],  # cat, called dog
        [0.2, 0.5, 0.3],  # dog, called dog
        [0.1, 0.6, 0.3],  # owl, called dog
    ]
)
LABELS = np.array([0, 0, 1, 2])


def test_confusion_has_the_truth_in_rows() -> None:
    assert evaluate_predictions(PROBABILITIES, LABELS, NAMES).confusion == ((1, 1, 0), (0, 1, 0), (0, 1, 0))


def test_class_figures_equal_those_worked_out_by_hand() -> None:
    cat, dog, owl = evaluate_predictions(PROBABILITIES, LABELS, NAMES).classes

    assert (cat.precision, cat.recall, cat.f1) == (1.0, 0.5, pytest.approx(2 / 3))
    assert (dog.precision, dog.recall, dog.f1) == (pytest.approx(1 / 3), 1.0, 0.5)
    assert (owl.precision, owl.recall, owl.f1, owl.samples) == (0.0, 0.0, 0.0, 1)


def test_accuracy_and_loss_equal_those_worked_out_by_hand() -> None:
    evaluation = evaluate_predictions(PROBABILITIES, LABELS, NAMES)

    assert evaluation.accuracy == 0.5
    assert evaluation.loss == pytest.approx(-np.log([0.7, 0.1, 0.5, 0.3]).mean())


def test_top_accuracy_counts_the_label_among_the_k_most_probable() -> None:
    assert top_accuracy(PROBABILITIES, LABELS, 1) == 0.5
    assert top_accuracy(PROBABILITIES, LABELS, 2) == 1.0


def test_top_accuracy_gives_ties_to_the_lower_label() -> None:
    tied = np.array([[0.1, 0.8, 0.1]])

    assert top_accuracy(tied, np.array([0]), 2) == 1.0
    assert top_accuracy(tied, np.array([2]), 2) == 0.0


def test_wilson_interval_equals_published_values() -> None:
    """Newcombe (1998), table I: 81 of 263 and 0 of 20."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.65, 0.35]])
    labels = np.array([0, 1, 0, 0])

    assert calibration_error(probabilities, labels, bins=10) == pytest.approx((2 * 0.45 + 2 * 0.35) / 4)


def test_certain_and_right_predictions_have_no_calibration_error() -> None:
    assert calibration_error(np.eye(3), np.arange(3)) == 0.0


def test_temperature_makes_the_mean_confidence_the_accuracy() -> None:
    """Nine to one, but right in 60 %: log(9) / T must be log(0.6 / 0.4)."""
    probabilities = np.tile([0.9, 0.1], (10, 1))
    labels = np.array([0] * 6 + [1] * 4)

    assert fit_temperature(probabilities, labels) == pytest.approx(np.log(9) / np.log(1.5), rel=1e-3)


def test_metrics_carry_the_prefix() -> None:
    metrics = evaluate_predictions(PROBABILITIES, LABELS, NAMES).metrics("test")

    assert metrics["test_accuracy"] == 0.5
    assert metrics["test_accuracy_low"] < 0.5 < metrics["test_accuracy_high"]


@pytest.mark.parametrize(("count", "classes"), [(0, 3), (4, 2), (3, 3)])
def test_shapes_that_do_not_fit_are_rejected(count: int, classes: int) -> None:
    with pytest.raises(InvalidInput, match=r"probabilities have shape"):
        evaluate_predictions(PROBABILITIES[:, :classes], LABELS[:count], NAMES)
