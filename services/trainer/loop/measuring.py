"""The figures of the gate, from the outcomes of both streams, and from what was measured where versions were made."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from services.trainer.evaluation.figures import evaluate_predictions
from services.trainer.loop.gate import joint_log_e, pair
from services.trainer.loop.holdout import Holdout
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.streams import JudgedDraws, LiveStream
from services.trainer.loop.values import GateFigures, GuardFigures
from services.trainer.statistics.betting import highest_log_e
from services.trainer.statistics.budget import error_share
from services.trainer.statistics.intervals import Interval, accuracy_sequence

_SPOILED, _SPOILED_BEFORE = "corrupted_accuracy", "source_corrupted_accuracy"
"""Metrics of a version: its accuracy on spoiled pictures, and that of the version it is to replace on the same."""
ACCURACY_ERROR = 0.05
"""Chance that an interval of a version's live accuracy ever misses, however often its draws begin anew."""
_NONE = np.empty(0, np.int8)
_INTERVALS = 64
"""That are remembered: draws come, and pages are looked at, more often than reviewers say something."""


def measure(
    holdout: Holdout | None,
    live: LiveStream,
    margin: float,
    policy: LoopPolicy,
    labels: tuple[str, ...],
    guards: GuardFigures,
) -> GateFigures:
    """Return all that the gate decides by.

    Args:
        holdout: None before both versions have answered the whole of it; then no guard is measured either.
        live: Of the traffic.
        margin: By how much the candidate may be worse, as it was when the gate began.
        policy: Of the model.
        labels: Of the model.
        guards: What was measured beside the answers: times, bytes, accuracy on spoiled pictures.
    """
    outcomes = _NONE if holdout is None else holdout.outcomes
    return GateFigures(
        holdout=pair(outcomes, margin),
        live=pair(live.outcomes, margin),
        log_e=joint_log_e(outcomes, live.outcomes, margin, policy),
        labels_wanted=live.labels_wanted,
        champion_errors=0 if holdout is None else int((holdout.champion != holdout.labels).sum()),
        guards=GuardFigures() if holdout is None else _guards(holdout, policy, labels, guards),
        agreement=1.0 if holdout is None else float((holdout.champion == holdout.candidate).mean()),
    )


def measure_accuracy(draws: JudgedDraws) -> Interval | None:
    """Return where the accuracy lies by judged draws; None without any.

    Draws that begin anew are another sequence, which may miss as the one before it: each has its share of the error.
    """
    if not len(draws.correct):
        return None
    error = error_share(ACCURACY_ERROR, draws.restarts + 1)
    return _interval(draws.correct.tobytes(), draws.probability.tobytes(), error)


@lru_cache(maxsize=_INTERVALS)
def _interval(correct: bytes, probability: bytes, error: float) -> Interval:
    return accuracy_sequence(np.frombuffer(correct, np.bool_), np.frombuffer(probability, np.float64), error)


def _guards(holdout: Holdout, policy: LoopPolicy, labels: tuple[str, ...], guards: GuardFigures) -> GuardFigures:
    drop = policy.guard.class_drop
    worst, evidence = None, None
    if drop is not None:
        of_classes = _class_evidence(holdout.outcomes, holdout.labels, drop, len(labels))
        worst = int(of_classes.argmax())
        evidence = float(of_classes[worst])
    errors = [
        evaluate_predictions(probabilities, holdout.labels, labels).calibration_error
        for probabilities in (holdout.champion_probabilities, holdout.candidate_probabilities)
    ]
    figures = {
        "class_count": len(labels),
        "worst_class": worst,
        "class_log_e": evidence,
        "calibration_rise": errors[1] - errors[0],
        "holdout_drop": float(-holdout.outcomes.mean(dtype=np.float64)),
    }
    return guards.model_copy(update=figures)


def _class_evidence(
    outcomes: NDArray[np.int8], labels: NDArray[np.int64], drop: float, classes: int
) -> NDArray[np.float64]:
    """Return the evidence, for each class, that it has lost more than *drop* of its accuracy."""
    return np.array([highest_log_e(-outcomes[labels == each], -drop) for each in range(classes)])


def spoiled_drop(
    champion: Mapping[str, float], candidate: Mapping[str, float], *, beside: bool, alike: bool
) -> float | None:
    """Return what the candidate loses of the accuracy on spoiled pictures; None where both did not have the same ones.

    Args:
        champion: Its metrics.
        candidate: As *champion*.
        beside: Whether the candidate's run has measured the champion beside it.
        alike: Whether the runs of both have measured them on the same pictures.
    """
    before, after = candidate.get(_SPOILED_BEFORE) if beside else None, candidate.get(_SPOILED)
    if before is None and alike:
        before = champion.get(_SPOILED)
    return None if before is None or after is None else before - after
