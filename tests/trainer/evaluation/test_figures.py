import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, top_k_accuracy_score

from services.common.errors import InvalidInput
from services.trainer.evaluation.figures import (
    Evaluation,
    calibration_error,
    evaluate_predictions,
    fit_temperature,
    reliability,
    top_accuracy,
    wilson_interval,
)

few = settings(max_examples=40, deadline=None)  # the oracle takes milliseconds

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


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels; from a coarse grid, so that ties, sure answers and absent classes are common."""
    classes = draw(st.integers(3, 7))
    samples = draw(st.integers(1, 40))
    row = st.lists(st.integers(0, 4), min_size=classes, max_size=classes).filter(any)
    weights = np.array(draw(st.lists(row, min_size=samples, max_size=samples)), np.float64)
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples))
    return weights / weights.sum(axis=1, keepdims=True), np.array(labels)


def evaluated(probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    names = tuple(f"class {number}" for number in range(probabilities.shape[1]))
    return evaluate_predictions(probabilities, labels, names)


@few
@given(predictions())
def test_accuracy_is_that_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = case

    assert evaluated(*case).accuracy == accuracy_score(labels, probabilities.argmax(axis=1))


@few
@given(predictions())
def test_top_accuracy_is_that_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    """Scikit-learn gives ties to the higher label, so it is shown the classes in reverse."""
    probabilities, labels = case
    classes = probabilities.shape[1]

    found = evaluated(*case).top_accuracy

    assert list(found) == [k for k in (1, 3, 5) if k <= classes]
    for k in set(found) - {classes}:  # which it finds too trivial to compute without a warning
        mirrored = top_k_accuracy_score(classes - 1 - labels, probabilities[:, ::-1], k=k, labels=range(classes))
        assert found[k] == mirrored


def test_top1_accuracy_is_the_accuracy_where_all_is_tied() -> None:
    evaluation = evaluated(np.full((4, 4), 0.25), np.array([0, 1, 2, 0]))

    assert evaluation.top_accuracy[1] == evaluation.accuracy == 0.5


@few
@given(predictions())
def test_loss_is_that_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    """Both bound what is impossible, at values of their own, so nothing is."""
    probabilities, labels = case
    possible = (probabilities + 0.01) / (probabilities + 0.01).sum(axis=1, keepdims=True)

    assert evaluated(possible, labels).loss == log_loss(labels, possible, labels=range(possible.shape[1]))


@few
@given(predictions())
def test_brier_score_is_that_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = case

    expected = brier_score_loss(labels, probabilities, labels=range(probabilities.shape[1]), scale_by_half=False)

    assert evaluated(*case).brier_score == expected


@few
@given(predictions())
def test_reliability_is_that_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = case
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels

    used = [each for each in evaluated(*case).reliability if each.samples]

    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    assert [each.accuracy for each in used] == list(accuracy)
    assert [each.confidence for each in used] == list(mean)


@few
@given(predictions())
def test_calibration_error_is_the_mean_distance_of_the_bins_weighted_by_samples(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    evaluation = evaluated(*case)

    distances = [each.samples * abs(each.accuracy - each.confidence) for each in evaluation.reliability]

    assert evaluation.calibration_error == pytest.approx(sum(distances) / evaluation.samples)
    assert sum(each.samples for each in evaluation.reliability) == evaluation.samples


@few
@given(predictions())
def test_evaluation_survives_its_json(case: tuple[np.ndarray, np.ndarray]) -> None:
    evaluation = evaluated(*case)

    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_bins_without_samples_are_zero() -> None:
    bins = reliability(np.array([[0.95, 0.05]]), np.array([0]), bins=10)

    assert [each.samples for each in bins] == [0] * 9 + [1]
    assert (bins[0].low, bins[0].high, bins[0].confidence, bins[0].accuracy) == (0.0, 0.1, 0.0, 0.0)


def test_single_precision_gives_the_figures_of_double() -> None:
    single = PROBABILITIES.astype(np.float32)

    assert evaluated(single, LABELS) == evaluated(single.astype(np.float64), LABELS)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_range_are_rejected(label: int) -> None:
    with pytest.raises(InvalidInput, match=rf"{label}; with 3 classes|{label} and 2; with 3 classes"):
        evaluate_predictions(PROBABILITIES, np.array([0, 1, 2, label]), NAMES)


def test_answers_that_are_no_numbers_are_rejected() -> None:
    broken = PROBABILITIES.copy()
    broken[1] = np.nan

    with pytest.raises(InvalidInput, match="answers 1 of 4 samples with what is not a number"):
        evaluate_predictions(broken, LABELS, NAMES)
