"""Figures of the trainer service."""

from collections.abc import Iterator

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.errors import NotReady
from services.trainer.runs.record import RunState
from services.trainer.runs.store import RunStore

log = structlog.get_logger(__name__)


class RunFigures(Collector):
    """Counts the runs in the database, at the moment somebody asks."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Yield the number of runs in each state; nothing while the database is away."""
        family = GaugeMetricFamily("aimass_training_runs", "Training runs by their state.", labels=["state"])
        try:
            counts = self._store.counts()
        except NotReady as error:
            log.warning("no figures of runs", reason=error.message)
            return
        for state in RunState:
            family.add_metric([state], counts.get(state, 0))
        yield family
