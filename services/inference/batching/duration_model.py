"""The time that a batch takes, learned from those that ran: t = per_sample * n + fixed."""

from collections import deque
from statistics import median

WINDOW = 64
"""Runs that are remembered; older ones say nothing of the machine's present load."""
FEWEST = 4
"""Runs before anything is predicted: the first ones are cold."""


class DurationModel:
    """Predicts the duration of a batch by its size.

    A weighted least-squares line through the median of each size: a run that stalled moves no median.
    """

    def __init__(self) -> None:
        self._runs: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._line: tuple[float, float] | None = None

    def record(self, samples: int, seconds: float) -> None:
        """Learn that a batch of *samples* took *seconds*."""
        self._runs.append((samples, seconds))
        self._line = None

    def predict(self, samples: int) -> float:
        """Return the seconds that a batch of *samples* takes; 0, which limits nothing, while too little is known."""
        if len(self._runs) < FEWEST:
            return 0.0
        if self._line is None:
            self._line = _fit(_medians(self._runs))
        per_sample, fixed = self._line
        return per_sample * samples + fixed


def _medians(runs: deque[tuple[int, float]]) -> list[tuple[int, float, int]]:
    """Return (samples, median seconds, runs) of each batch size."""
    by_size: dict[int, list[float]] = {}
    for samples, seconds in runs:
        by_size.setdefault(samples, []).append(seconds)
    return [(samples, median(times), len(times)) for samples, times in by_size.items()]


def _fit(points: list[tuple[int, float, int]]) -> tuple[float, float]:
    """Return (per_sample, fixed), neither below 0: a larger batch takes no less time."""
    weight = sum(runs for *_, runs in points)
    mean_n = sum(samples * runs for samples, _, runs in points) / weight
    mean_t = sum(seconds * runs for _, seconds, runs in points) / weight
    spread = sum(runs * (samples - mean_n) ** 2 for samples, _, runs in points)
    if not spread:
        return 0.0, mean_t  # one size says nothing of others
    slope = sum(runs * (samples - mean_n) * (seconds - mean_t) for samples, seconds, runs in points) / spread
    per_sample = min(max(slope, 0.0), mean_t / mean_n)
    return per_sample, mean_t - per_sample * mean_n
