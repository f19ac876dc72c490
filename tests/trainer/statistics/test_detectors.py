import math

import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.trainer.statistics.detectors import ErrorDetector, median_delay, run_length, window_level


def first_alarm(detector: ErrorDetector, errors: np.ndarray) -> float:
    return next((float(n) for n, error in enumerate(errors.tolist(), 1) if detector.add(error)), math.inf)


@pytest.mark.parametrize(("error_rate", "expected"), [(0.15, 590), (0.20, 169), (0.30, 57)])
def test_a_rise_from_a_tenth_is_told_within_as_many_answers_as_are_published(error_rate: float, expected: int) -> None:
    assert median_delay(0.10, 1e5, error_rate) == pytest.approx(expected, rel=0.25)


def test_the_detector_is_as_fast_as_the_simulation_says() -> None:
    random = np.random.default_rng(0)

    delays = []
    for _ in range(60):
        detector = ErrorDetector(1e5)
        first_alarm(detector, random.random(1500) < 0.1)
        delays.append(first_alarm(detector, random.random(600) < 0.25))

    assert np.median(delays) == pytest.approx(median_delay(0.1, 1e5, 0.25), rel=0.25)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_false_alarms_are_as_rare_as_was_asked_for_however_frequent_errors_are(share: float) -> None:
    """Runs are cut at a length, which only shortens their mean."""
    random = np.random.default_rng(1)

    runs = [min(first_alarm(ErrorDetector(100), random.random(800) < share), 800) for _ in range(50)]

    assert np.mean(runs) >= 100


def test_a_change_after_a_long_quiet_time_is_told_as_fast() -> None:
    random = np.random.default_rng(2)
    detector = ErrorDetector(1e5)

    assert first_alarm(detector, random.random(5000) < 0.05) == math.inf
    assert detector.share == pytest.approx(0.05, abs=0.01)
    assert first_alarm(detector, random.random(500) < 0.4) < 80


def test_a_change_that_stays_raises_one_alarm() -> None:
    random = np.random.default_rng(3)
    detector = ErrorDetector(1e4)

    alarms = [
        detector.add(bool(error)) for error in np.concatenate([random.random(1000) < 0.1, random.random(2000) < 0.3])
    ]

    assert sum(alarms) == 1
    assert detector.answers == 2999 - alarms.index(True)
    assert detector.share == pytest.approx(0.3, abs=0.03)


def test_the_same_answers_alarm_at_the_same_one() -> None:
    errors = np.random.default_rng(4).random(3000) < 0.2

    assert first_alarm(ErrorDetector(20), errors) == first_alarm(ErrorDetector(20), errors) < math.inf


def test_after_an_alarm_it_begins_anew() -> None:
    detector = ErrorDetector(1e4)
    for _ in range(100):
        assert not detector.add(False)
    levels = []
    while not detector.add(True):
        levels.append(detector.level)

    assert levels == sorted(levels)
    assert levels[-1] < 1
    assert (detector.level, detector.answers) == (0, 0)


def test_right_answers_alone_never_alarm() -> None:
    assert first_alarm(ErrorDetector(100), np.zeros(2000, bool)) == math.inf


def test_a_rise_that_is_not_found_in_time_has_no_delay() -> None:
    assert median_delay(0.1, 1e5, 0.1, most=200) == math.inf


def test_alarms_are_shared_among_detectors() -> None:
    assert run_length(1, 100, 5) == pytest.approx(5 * 3043.75)
    assert run_length(0.5, 100) == pytest.approx(6087.5)
    assert window_level(1, 24, 5) == pytest.approx(1 / (5 * 730.5))
    assert window_level(1000, 1) == 1


def test_a_run_length_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="; give"):
        ErrorDetector(1)


def test_no_false_alarms_at_all_cannot_be_had() -> None:
    with pytest.raises(InvalidInput, match="more than 0"):
        run_length(0, 100)
