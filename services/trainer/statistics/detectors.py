"""Alarms about a stream of judged answers, asked for in an operator's words: so many false ones a month."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput

_BETS = 20
_DAYS_PER_MONTH = 365.25 / 12


@dataclass
class ErrorDetector:
    """Tells that errors have become more frequent than a baseline; a mixture of Shiryaev-Roberts e-detectors.

    Each bet b multiplies its sum, with one added, by 1 + b (error - baseline). Where errors are as frequent as the
    baseline or less, whatever came before, the mean number of answers to an alarm is the run length or more. After an
    alarm it begins anew: one change makes one alarm.

    From: Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection" (2023).

    Args:
        baseline: Share of errors that is as it should be, above 0 and below 1.
        run_length: Answers to a false alarm in the mean, above 1.

    Raises:
        InvalidInput: The baseline or the run length is out of its range.
    """

    baseline: float
    run_length: float
    _sums: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.baseline < 1:
            raise InvalidInput(
                f"the baseline of errors is {self.baseline}, and must lie between 0 and 1; give the upper end of the "
                "error's interval"
            )
        if not self.run_length > 1:
            raise InvalidInput(f"the run length is {self.run_length}; give more than 1 answer to a false alarm")
        self._factors = _factors(self.baseline)
        self._sums = np.zeros(_BETS)

    @property
    def level(self) -> float:
        """How near an alarm is: the mean sum over the run length; there is an alarm at 1."""
        return float(self._sums.mean()) / self.run_length

    def add(self, error: bool) -> bool:
        """Take one judged answer in, the next in time, and return whether there is an alarm.

        Args:
            error: Whether the answer was wrong; so a rising mean of what is added is bad news.
        """
        self._sums = (self._sums + 1) * self._factors[int(error)]
        if self.level < 1:
            return False
        self._sums = np.zeros(_BETS)
        return True


def median_delay(
    baseline: float, run_length: float, error_rate: float, *, most: int = 20_000, streams: int = 200, seed: int = 0
) -> float:
    """Return after how many answers half of simulated streams raise an alarm; infinite where less do within *most*.

    Args:
        baseline: As of `ErrorDetector`.
        run_length: As of `ErrorDetector`.
        error_rate: Share of errors from the first answer on.
        most: Answers that are simulated at most.
        streams: That are simulated.
        seed: Of the streams.
    """
    random = np.random.default_rng(seed)
    factors = _factors(baseline)
    sums = np.zeros((streams, _BETS))
    waiting = np.ones(streams, bool)
    for answer in range(1, most + 1):
        sums = (sums + 1) * factors[(random.random(streams) < error_rate).astype(np.int64)]
        waiting &= sums.mean(axis=1) < run_length
        if 2 * waiting.sum() <= streams:
            return float(answer)
    return math.inf


def run_length(false_alarms_per_month: float, labels_per_day: float, detectors: int = 1) -> float:
    """Return the run length with which one of *detectors* raises its equal part of the false alarms.

    Args:
        false_alarms_per_month: Of all detectors together, above 0.
        labels_per_day: Judged answers that come in a day.
        detectors: That share the alarms, windowed tests among them.

    Raises:
        InvalidInput: No false alarms are allowed.
    """
    _check_alarms(false_alarms_per_month)
    return detectors * labels_per_day * _DAYS_PER_MONTH / false_alarms_per_month


def window_level(false_alarms_per_month: float, looks_per_day: float, detectors: int = 1) -> float:
    """Return the level of a test that is made anew at every look, so that it raises its equal part of false alarms.

    Args:
        false_alarms_per_month: Of all detectors together, above 0.
        looks_per_day: Tests made in a day.
        detectors: That share the alarms.

    Raises:
        InvalidInput: No false alarms are allowed.
    """
    _check_alarms(false_alarms_per_month)
    return min(1.0, false_alarms_per_month / (detectors * looks_per_day * _DAYS_PER_MONTH))


def _check_alarms(per_month: float) -> None:
    if not per_month > 0:
        raise InvalidInput(
            f"{per_month} false alarms are allowed a month, and no alarm is without that risk; set more than 0"
        )


def _factors(baseline: float) -> NDArray[np.float64]:
    """Return what each bet multiplies its sum by, (2, bets): for a right answer, and for an error."""
    bets = (np.arange(_BETS) + 0.5) / (_BETS * baseline)
    return 1 + bets * (np.array([[0.0], [1.0]]) - baseline)
