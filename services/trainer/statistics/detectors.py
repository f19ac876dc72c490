"""Alarms about a stream of judged answers, asked for in an operator's words: so many false ones a month."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput

_ODDS = np.array([1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0])
"""By how much the odds of an error have risen; each is bet on. A small rise takes a fine grid."""
_DAYS_PER_MONTH = 365.25 / 12


@dataclass
class ErrorDetector:
    """Tells that errors have become more frequent than they were; a mixture of Shiryaev-Roberts e-detectors.

    How frequent they were need not be known. Where answers are exchangeable, so that errors are as frequent at all
    times, the next answer is an error with a chance of at most (errors + 1) / (answers + 1), in this sense: the rank of
    an answer among all by then, errors first and ties broken at random, is uniform and independent of the ranks before,
    and that of an error lies below this share. So a bet that the odds are r times those of this share multiplies its
    sum, with one added, by that bet's likelihood ratio, and the mean number of answers to an alarm is the run length or
    more, from the first answer on: no share is set, none is estimated beforehand. After an alarm it begins anew, with
    nothing known: one change makes one alarm.

    From: Vovk, "Testing randomness online" (2021), for p-values and the procedure of Shiryaev and Roberts on them;
    Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection" (2023), for
    mixtures.

    Args:
        run_length: Answers to a false alarm in the mean, above 1.

    Raises:
        InvalidInput: The run length is out of its range.
    """

    run_length: float
    answers: int = field(init=False, default=0)
    """Taken in since the beginning or the last alarm."""
    _errors: int = field(init=False, default=0, repr=False)
    _sums: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.run_length > 1:
            raise InvalidInput(f"the run length is {self.run_length}; give more than 1 answer to a false alarm")
        self._sums = np.zeros(len(_ODDS))

    @property
    def level(self) -> float:
        """How near an alarm is: the mean sum over the run length; an error raises an alarm from 1 on."""
        return float(self._sums.mean()) / self.run_length

    @property
    def share(self) -> float:
        """The largest chance of an error that the next answer has, if nothing changes; above 0, at most 1."""
        return (self._errors + 1) / (self.answers + 1)

    def add(self, error: bool) -> bool:
        """Take one judged answer in, the next in time, and return whether there is an alarm.

        Args:
            error: Whether the answer was wrong; so a rising mean of what is added is bad news.
        """
        self._sums = (self._sums + 1) * _factors(self.share)[int(error)]
        self.answers += 1
        self._errors += error
        if not error or self.level < 1:
            return False
        self._sums = np.zeros(len(_ODDS))
        self.answers = self._errors = 0
        return True


def median_delay(
    share: float, run_length: float, error_rate: float, *, most: int = 20_000, streams: int = 200, seed: int = 0
) -> float:
    """Return after how many answers half of simulated streams raise an alarm; infinite where less do within *most*.

    Args:
        share: Of errors before, in so many answers that it is known.
        run_length: As of `ErrorDetector`.
        error_rate: Share of errors from the first answer on.
        most: Answers that are simulated at most.
        streams: That are simulated.
        seed: Of the streams.
    """
    random = np.random.default_rng(seed)
    factors = _factors(share)
    sums = np.zeros((streams, len(_ODDS)))
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


def _factors(share: float) -> NDArray[np.float64]:
    """Return what each bet multiplies its sum by, (2, bets): for a right answer, and for an error."""
    return np.stack([np.ones(len(_ODDS)), _ODDS]) / (1 - share + share * _ODDS)
