"""Counts what became of predictions that could be captured, for operators and for the trainer."""

from collections import defaultdict
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aimass.trainer.v1.capture_pb2 import CaptureCount, CaptureCounts
from gateway.sampling import Decision, Strategy


class _Sums:
    """Of one version, since the process began."""

    def __init__(self) -> None:
        self.answered = 0
        self.captured: defaultdict[str, int] = defaultdict(int)
        self.dropped: defaultdict[str, int] = defaultdict(int)


class CaptureFigures(Collector):
    """Sums by version: of what was answered, that is captured (the trainer said so), that was dropped.

    What was chosen and is in none of the last two is on its way.
    """

    def __init__(self) -> None:
        self.queue_bytes = 0
        """Of images that wait for the trainer's receipt."""
        self.changed = False
        """Whether something was counted since `message` was made."""
        self._sums: defaultdict[tuple[str, int], _Sums] = defaultdict(_Sums)
        self._decided: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._probabilities: dict[str, float] = {}

    def add_decision(self, model: str, version: int, decision: Decision) -> None:
        """Count an answered prediction, and what was decided on it."""
        sums = self._sums[model, version]
        sums.answered += 1
        self.changed = True
        if decision.strategy is None:
            return
        self._decided[model, decision.strategy] += 1
        if decision.dropped is not None:
            sums.dropped[decision.dropped] += 1
        elif decision.strategy is Strategy.RANDOM:
            self._probabilities[model] = decision.probability

    def add_captured(self, model: str, version: int, strategy: Strategy) -> None:
        """Count a prediction that the trainer has kept."""
        self._sums[model, version].captured[strategy] += 1
        self.changed = True

    def add_dropped(self, model: str, version: int, reason: str) -> None:
        """Count a prediction that was to be captured, and is lost after all."""
        self._sums[model, version].dropped[reason] += 1
        self.changed = True

    def message(self) -> CaptureCounts:
        """Return the sums as the trainer is told them."""
        self.changed = False
        return CaptureCounts(
            counts=[
                CaptureCount(
                    model=model,
                    version=version,
                    answered_count=sums.answered,
                    captured_counts=sums.captured,
                    dropped_counts=sums.dropped,
                )
                for (model, version), sums in self._sums.items()
            ]
        )

    def collect(self) -> Iterator[Metric]:
        """Yield the figures; may be called in any thread."""
        decided = CounterMetricFamily(
            "aimass_capture_decided", "Predictions that a strategy has chosen.", labels=("model", "strategy")
        )
        for (model, strategy), count in list(self._decided.items()):
            decided.add_metric((model, strategy), count)
        yield decided
        lost: defaultdict[tuple[str, str], int] = defaultdict(int)
        for (model, _version), sums in list(self._sums.items()):
            for reason, count in list(sums.dropped.items()):
                lost[model, reason] += count
        dropped = CounterMetricFamily(
            "aimass_capture_dropped", "Predictions that were chosen and are lost.", labels=("model", "reason")
        )
        for (model, reason), count in lost.items():
            dropped.add_metric((model, reason), count)
        yield dropped
        probability = GaugeMetricFamily(
            "aimass_capture_probability", "With which the newest draw was drawn.", labels=("model",)
        )
        for model, drawn in list(self._probabilities.items()):
            probability.add_metric((model,), drawn)
        yield probability
        yield GaugeMetricFamily(
            "aimass_capture_queue_bytes", "Images that wait for the trainer's receipt.", value=self.queue_bytes
        )
