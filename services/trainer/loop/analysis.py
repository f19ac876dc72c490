"""Makes the analysis of a model in use: from rows, and from what the loop knows of it."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy.orm import Session

from services.trainer.clock import now
from services.trainer.data.models import Model
from services.trainer.loop.alarms import DETECTORS
from services.trainer.loop.analysis_document import (
    Analysis,
    ClassShare,
    Consent,
    CycleCost,
    Delay,
    Detector,
    ErrorDrift,
    Look,
    Quality,
    Queue,
    ToldAlarm,
)
from services.trainer.loop.analysis_rows import (
    count_quarantined,
    read_accuracies,
    read_consents,
    read_contributors,
    read_figures,
)
from services.trainer.loop.events import Event
from services.trainer.loop.kinds import ERROR_DRIFT, QUALITY
from services.trainer.loop.measuring import ACCURACY_ERROR
from services.trainer.loop.overview import Overview
from services.trainer.loop.payloads import AlarmRaised
from services.trainer.loop.policy import CostPolicy, LoopPolicy
from services.trainer.loop.tables import FigureRow
from services.trainer.statistics.detectors import median_delay
from services.trainer.statistics.intervals import Interval
from services.trainer.statistics.value import Worth

LOOKS = 100
"""Newest ones of each detector that are told of."""
DROPS = (0.01, 0.05, 0.1)
"""Of the accuracy, for which the delay to an alarm is told."""
_MOST_DRAWS = 10_000
"""To an alarm, that are simulated."""
_HIGHEST = 2.0


def make_analysis(
    session: Session,
    task: Model,
    overview: Overview,
    champion: int,
    accuracy: Interval | None,
    worth: Worth | None,
    policy: LoopPolicy,
    alarms: Sequence[Event],
) -> Analysis:
    """Return what is known of a model in use.

    Args:
        session: Of the database.
        task: The model.
        overview: Of the same model.
        champion: Version that serves; 0 where that is not known.
        accuracy: Of the champion on the traffic, as the loop reckons it; None without draws that were judged.
        worth: Of a cycle that would begin now.
        policy: Of the model.
        alarms: Events of the newest ones, newest first.
    """
    figures = {kind: read_figures(session, task.name, kind, LOOKS) for kind in DETECTORS}
    newest = {kind: rows[-1].values for kind, rows in figures.items() if rows}
    quality = read_figures(session, task.name, QUALITY, 1)
    consents = read_consents(session, task.name)
    return Analysis(
        model=task.name,
        create_time=now(),
        confidence=1 - ACCURACY_ERROR,
        accuracy=read_accuracies(session, task, champion, accuracy, consents),
        reported=_total(consents.values()),
        detectors=[_detector(kind, rows) for kind, rows in figures.items() if rows],
        label_shift=list(_shares(task.labels, newest["label_shift"])) if "label_shift" in newest else [],
        softmax_shift=newest.get("softmax_shift", {}).get("classes", []),
        embedding_discrepancy=newest.get("embedding_shift", {}).get("discrepancy"),
        error_drift=_error_drift(newest["error_drift"]) if "error_drift" in newest else None,
        alarms=list(_alarms(alarms)),
        quality=Quality(time=quality[0].time, **quality[0].values) if quality else None,
        queue=Queue(
            to_review=overview.waiting,
            states=overview.states,
            quarantined=count_quarantined(session, task.name),
            accepted=overview.accepted,
            accepted_since=overview.accepted_since,
        ),
        contributors=read_contributors(session, task),
        cost=_cost(worth, policy.trigger.cost) if worth is not None else None,
    )


def nearness(kind: str, level: float, threshold: float) -> float:
    """Return how near a detector is to an alarm: 0 is not at all, 1 is one, and 2 is the most that is told.

    Args:
        kind: Of the detector. The level of `error_drift` rises to its threshold; those of the others are the chances
            that nothing has changed, by tests, and their logarithms are compared.
        level: Of the look.
        threshold: Above 0.
    """
    if kind == ERROR_DRIFT:
        return min(level / threshold, _HIGHEST)
    if threshold >= 1:
        return 1.0
    return min(math.log(level) / math.log(threshold), _HIGHEST) if level > 0 else _HIGHEST


def _total(consents: Collection[Consent]) -> Consent | None:
    agreed, said = (sum(getattr(each, name) for each in consents) for name in ("agreed", "said"))
    return Consent(agreed=agreed, said=said) if said else None


def _detector(kind: str, rows: Sequence[FigureRow]) -> Detector:
    window = rows[-1].window
    return Detector(
        kind=kind,
        version=window["version"],
        first_draw=window["first"],
        last_draw=window["last"],
        looks=[
            Look(
                time=row.time,
                level=row.values["level"],
                threshold=row.values["threshold"],
                alarm=row.values["alarm"],
                nearness=nearness(kind, row.values["level"], row.values["threshold"]),
            )
            for row in rows
        ],
    )


def _shares(labels: Sequence[str], values: Mapping[str, Any]) -> Iterator[ClassShare]:
    """Yield the classes in the order of the model's labels."""
    totals = [max(sum(values[name]), 1) for name in ("reference", "recent")]
    unknown = [None] * len(labels)
    weights = [values.get(name, unknown) for name in ("weights", "low", "high")]
    for label, reference, recent, weight, low, high in zip(
        labels, values["reference"], values["recent"], *weights, strict=True
    ):
        yield ClassShare(
            label=label,
            reference=reference / totals[0],
            recent=recent / totals[1],
            weight=weight,
            low=low,
            high=high,
        )


def _error_drift(values: Mapping[str, Any]) -> ErrorDrift:
    baseline, length = values["baseline"], values["run_length"]
    return ErrorDrift(
        baseline=baseline,
        run_length=length,
        judged=values["judged"],
        delays=[Delay(drop=drop, draws=_delay(baseline, length, drop)) for drop in DROPS if baseline + drop < 1],
    )


@lru_cache(maxsize=256)
def _delay(baseline: float, length: float, drop: float) -> int | None:
    """Return the delay by simulation, which is the same as long as a version serves."""
    draws = median_delay(baseline, length, baseline + drop, most=_MOST_DRAWS)
    return int(draws) if math.isfinite(draws) else None


def _alarms(events: Sequence[Event]) -> Iterator[ToldAlarm]:
    for event in events:
        alarm = event.payload
        assert isinstance(alarm, AlarmRaised), "others are not asked for"
        yield ToldAlarm(kind=alarm.detector, time=event.time.isoformat(), level=alarm.level, threshold=alarm.threshold)


def _cost(worth: Worth, policy: CostPolicy) -> CycleCost:
    return CycleCost(
        value=worth.value,
        cost=worth.cost,
        pays=worth.pays,
        decides=policy.enabled,
        errors_avoided=worth.errors_avoided,
        cost_per_error=policy.per_error,
        seconds=worth.seconds,
        price_per_second=policy.per_second,
        labels=worth.labels,
        price_per_label=policy.per_label,
    )
