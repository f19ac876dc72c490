"""Figures of the loops that this process drives."""

from collections.abc import Callable, Iterator, Sequence

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from services.common.errors import NotReady
from services.trainer.data.observing import State
from services.trainer.data.tables import ObservationRow
from services.trainer.feedback.queue import count_waiting
from services.trainer.loop.director import Director
from services.trainer.loop.state import Stage
from services.trainer.loop.tables import EventRow
from services.trainer.storage.database import Database

log = structlog.get_logger(__name__)

_IDLE = "IDLE"


class LoopFigures(Collector):
    """Tells how loops stand, at the moment somebody asks.

    Args:
        database: Migrated.
        directors: Returns those of this process.
    """

    def __init__(self, database: Database, directors: Callable[[], Sequence[Director]]) -> None:
        self._database = database
        self._directors = directors

    def collect(self) -> Iterator[Metric]:
        """Yield the figures; of rows nothing while the database is away."""
        directors = [each for each in self._directors() if each.facts is not None]
        yield self._accuracy(directors)
        yield self._stages(directors)
        evidence = _gauge("aimass_loop_log_e", "Evidence for the candidate at the gate, as a logarithm.", "model")
        for director in directors:
            cycle = director.state.cycle
            if cycle is not None and cycle.gate is not None:
                evidence.add_metric([director.model], cycle.gate.figures.log_e)
        yield evidence
        try:
            yield from self._counts(directors)
        except NotReady as error:
            log.warning("no figures of loops", reason=error.message)

    def _accuracy(self, directors: Sequence[Director]) -> Metric:
        family = _gauge("aimass_loop_accuracy", "Ends of the interval of the accuracy on the traffic.", "model", "end")
        for director in directors:
            accuracy = director.facts.accuracy if director.facts is not None else None
            if accuracy is not None:
                family.add_metric([director.model, "low"], accuracy.low)
                family.add_metric([director.model, "high"], accuracy.high)
        return family

    def _stages(self, directors: Sequence[Director]) -> Metric:
        family = _gauge("aimass_loop_stage", "1 for the stage that the loop is at.", "model", "stage")
        for director in directors:
            present = director.state.cycle.stage if director.state.cycle is not None else _IDLE
            for stage in (_IDLE, *(each for each in Stage if each != Stage.ENDED)):
                family.add_metric([director.model, stage], float(stage == present))
        return family

    def _counts(self, directors: Sequence[Director]) -> Iterator[Metric]:
        waiting = _gauge("aimass_loop_pictures_to_review", "Pictures that wait for a reviewer.", "model")
        quarantined = _gauge("aimass_loop_pictures_quarantined", "Pictures in quarantine.", "model")
        alarms = _gauge("aimass_loop_alarms", "Alarms of drift so far.", "model")
        with self._database.read() as session:
            for model in (each.model for each in directors):
                held = select(func.count()).where(
                    ObservationRow.model == model, ObservationRow.state == State.QUARANTINED
                )
                raised = select(func.count()).where(EventRow.model == model, EventRow.kind == "alarm.raised")
                waiting.add_metric([model], count_waiting(session, model))
                quarantined.add_metric([model], session.scalar(held) or 0)
                alarms.add_metric([model], session.scalar(raised) or 0)
        yield from (waiting, quarantined, alarms)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)
