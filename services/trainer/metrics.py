"""Figures of the trainer service."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.trainer.runs.record import list_runs


class RunFigures(Collector):
    """Counts the runs that lie on disk, at the moment somebody asks."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir

    def collect(self) -> Iterator[Metric]:
        """Yield the number of runs in each state."""
        family = GaugeMetricFamily("aimass_training_runs", "Training runs by their state.", labels=["state"])
        for state, count in sorted(Counter(run.state for run in list_runs(self._runs_dir)).items()):
            family.add_metric([state], count)
        yield family
