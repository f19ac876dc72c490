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
from services.trainer.loop.alarms import last_looks
from services.trainer.loop.analysis import nearness
from services.trainer.loop.director import Director
from services.trainer.loop.state import Stage
from services.trainer.loop.tables import EventRow, FigureRow
from services.trainer.statistics.intervals import Interval
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
        self._accuracies: dict[str, Interval] = {}
        """By model, as they were read last: while a cycle is under way they are not."""

    def collect(self) -> Iterator[Metric]:
        """Yield the figures; of rows nothing while the database is away."""
        directors = [each for each in self._directors() if each.facts is not None]
        yield from self._accuracy(directors)
        yield self._stages(directors)
        evidence = _gauge("aimass_loop_log_e", "Evidence for the candidate at the gate, as a logarithm.", "model")
        for director in directors:
            cycle = director.state.cycle
            if cycle is not None and cycle.gate is not None:
                evidence.add_metric([director.model], cycle.gate.figures.log_e)
        yield evidence
        models = [each.model for each in directors]
        try:
            yield from self._counts(models)
            yield from self._shifts(models)
        except NotReady as error:
            log.warning("no figures of loops", reason=error.message)

    def _accuracy(self, directors: Sequence[Director]) -> Iterator[Metric]:
        ends = _gauge("aimass_loop_accuracy", "Ends of the interval of the accuracy on the traffic.", "model", "end")
        estimate = _gauge("aimass_loop_accuracy_estimate", "Estimate of the accuracy on the traffic.", "model")
        judged = _gauge("aimass_loop_accuracy_draws", "Judged draws that the accuracy is estimated by.", "model")
        for director in directors:
            self._remember(director)
            accuracy = self._accuracies.get(director.model)
            if accuracy is not None:
                ends.add_metric([director.model, "low"], accuracy.low)
                ends.add_metric([director.model, "high"], accuracy.high)
                estimate.add_metric([director.model], accuracy.estimate)
                judged.add_metric([director.model], accuracy.count)
        yield from (ends, estimate, judged)

    def _remember(self, director: Director) -> None:
        accuracy = director.facts.accuracy if director.facts is not None else None
        if accuracy is not None:
            self._accuracies[director.model] = accuracy
        elif director.state.cycle is None:
            self._accuracies.pop(director.model, None)

    def _stages(self, directors: Sequence[Director]) -> Metric:
        family = _gauge("aimass_loop_stage", "1 for the stage that the loop is at.", "model", "stage")
        for director in directors:
            present = director.state.cycle.stage if director.state.cycle is not None else _IDLE
            for stage in (_IDLE, *(each for each in Stage if each != Stage.ENDED)):
                family.add_metric([director.model, stage], float(stage == present))
        return family

    def _shifts(self, models: Sequence[str]) -> Iterator[Metric]:
        level = _gauge("aimass_loop_shift_level", "Level of the last look of a detector of drift.", "model", "detector")
        threshold = _gauge("aimass_loop_shift_threshold", "Level at which it raises an alarm.", "model", "detector")
        near = _gauge("aimass_loop_shift_nearness", "How near an alarm is: 0 is none, 1 is one.", "model", "detector")
        with self._database.read() as session:
            for model in models:
                for kind, number in last_looks(session, model):
                    values = session.get_one(FigureRow, (model, kind, number)).values
                    level.add_metric([model, kind], values["level"])
                    threshold.add_metric([model, kind], values["threshold"])
                    near.add_metric([model, kind], nearness(kind, values["level"], values["threshold"]))
        yield from (level, threshold, near)

    def _counts(self, models: Sequence[str]) -> Iterator[Metric]:
        waiting = _gauge("aimass_loop_pictures_to_review", "Pictures that wait for a reviewer.", "model")
        quarantined = _gauge("aimass_loop_pictures_quarantined", "Pictures in quarantine.", "model")
        alarms = _gauge("aimass_loop_alarms", "Alarms of drift so far.", "model")
        with self._database.read() as session:
            for model in models:
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
