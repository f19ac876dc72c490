"""How long the next run would take, and whether that would pay."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.trainer.clock import as_row
from services.trainer.data.choosing import count_beside
from services.trainer.data.tables import PredictionRow
from services.trainer.loop.cycle_payloads import GateMeasured, RunCreated
from services.trainer.loop.log import EventLog
from services.trainer.loop.origins import Origins
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.recipes import make_options
from services.trainer.runs.record import RunKind, RunState
from services.trainer.runs.store import Run, RunFilter, RunStore
from services.trainer.statistics.intervals import Interval
from services.trainer.statistics.value import Worth, errors_avoided, fixable_share, worth

LABELS_TO_JUDGE = 85
"""That a candidate which is 4 points better asks of reviewers, where both differ on 12 % of the contents."""
_NEWEST = 50
"""Runs and events that are looked through."""
_CANDIDATES = 5
"""Newest ones, by which it is foretold what the next can put right."""
_MEASUREMENTS = 500
"""Newest ones, among which those of candidates are looked for."""
_REFIT_SECONDS = 60.0
"""Of a refit, before there was one."""
_DAYS = 1.0
"""Until the next look, where the policy names no interval."""
_DRAWS_OF_TEST = 20.0
"""Judged draws that the champion's accuracy on its test part counts for: few draws alone, by chance all wrong, would
promise too much."""
_LEAST_WINDOW = timedelta(hours=1)
"""Over which requests are told: a burst says little of a day."""
_DAY = timedelta(days=1)


def foretell_seconds(
    log: EventLog, store: RunStore, origins: Origins, model: str, origin: str, samples: int, policy: LoopPolicy
) -> dict[Strategy, float]:
    """Return how long a run of each strategy would take, by runs of this machine; of what is not known, nothing.

    Args:
        log: Says which runs were made how.
        store: The table of runs.
        origins: Knows what runs have made.
        model: Name of the model.
        origin: Run to start from.
        samples: Accepted.
        policy: Of the model.
    """
    learnt = samples + count_beside(samples, policy.retrain.base_per_new, policy.retrain.base_least)
    created = [event.payload for event in log.last(model, "run.created", _NEWEST)]
    of_loop = {each.run_id: each.strategy for each in created if isinstance(each, RunCreated)}
    foretold: dict[Strategy, float] = {}
    refit = next(_ended(store.find(run_id, "") for run_id, how in of_loop.items() if how == Strategy.REFIT), None)
    if refit is not None:
        foretold[Strategy.REFIT] = _seconds(refit)
    start = store.find(origin, "")
    further = (store.find(run_id, "") for run_id, how in of_loop.items() if how == Strategy.INCREMENTAL)
    before = [*further, *(origins.lineage(start) if start else ())]
    pace = next(_paces(origins, before), None)
    if pace is not None:
        foretold[Strategy.INCREMENTAL] = pace * policy.retrain.incremental.epochs * learnt
    recipe = policy.retrain.scratch_recipe
    trained = store.list(RunFilter((RunState.SUCCEEDED,), kind=RunKind.TRAINING, recipe=recipe), _NEWEST)
    pace = next(_paces(origins, trained), None)
    if pace is not None:
        foretold[Strategy.SCRATCH] = pace * make_options(recipe, {}).epochs * learnt
    return foretold


def read_fixed(log: EventLog, model: str) -> tuple[int, int]:
    """Return how many of the champion's errors the last candidates have put right, and how many there were to be.

    Counted on the hold-out, where all labels are known.
    """
    fixed = errors = 0
    candidates = set[int]()
    for event in log.last(model, GateMeasured.kind, _MEASUREMENTS):
        assert isinstance(event.payload, GateMeasured)
        figures = event.payload.figures
        if event.cycle in candidates or not figures.champion_errors:
            continue
        if len(candidates) == _CANDIDATES:
            break
        candidates.add(event.cycle)
        fixed, errors = fixed + figures.holdout.wins, errors + figures.champion_errors
    return fixed, errors


def worth_of_cycle(
    per_day: float | None,
    policy: LoopPolicy,
    accuracy: Interval | None,
    test_accuracy: float | None,
    seconds: dict[Strategy, float],
    fixed: tuple[int, int],
) -> Worth | None:
    """Return what a cycle that begins now would be worth; None where nothing is known of the traffic.

    Args:
        per_day: Requests, as `requests_per_day` gives them.
        policy: Of the model.
        accuracy: Of the champion on the traffic, where draws were judged.
        test_accuracy: Of the champion where it was made; without it, few draws are taken for right ones.
        seconds: As `foretell_seconds` gives them.
        fixed: As `read_fixed` gives it.
    """
    right = _expected_accuracy(accuracy, test_accuracy)
    if per_day is None or right is None:
        return None
    usable = [seconds.get(Strategy.REFIT, _REFIT_SECONDS), *seconds.values()]
    days = policy.trigger.every_days or _DAYS
    labels = LABELS_TO_JUDGE if policy.gate.evidence == "live" else 0
    cost = policy.trigger.cost
    avoided = errors_avoided(per_day, right, fixable_share(*fixed), days)
    return worth(avoided, cost.per_error, min(usable), cost.per_second, labels, cost.per_label)


def requests_per_day(session: Session, model: str, time: datetime) -> float | None:
    """Return how many requests a day there are by the draws of the last day: each stands for 1 / probability.

    Only where the first draw of all is younger than a day, they are of that time alone. None where there are none.
    """
    since = as_row(time - _DAY)
    drawn = (PredictionRow.model == model, PredictionRow.draw.is_not(None))
    requests = session.scalar(
        select(func.sum(1.0 / PredictionRow.probability)).where(*drawn, PredictionRow.time >= since)
    )
    first = session.scalar(select(PredictionRow.time).where(*drawn).order_by(PredictionRow.time).limit(1))
    if requests is None or first is None:
        return None
    window = min(max(time - datetime.fromisoformat(first), _LEAST_WINDOW), _DAY)
    return float(requests) * (_DAY / window)


def _expected_accuracy(accuracy: Interval | None, test_accuracy: float | None) -> float | None:
    """Return the accuracy by judged draws and by the test part, which weighs less the more draws there are."""
    if accuracy is None:
        return test_accuracy
    assumed = 1.0 if test_accuracy is None else test_accuracy
    return (accuracy.estimate * accuracy.count + assumed * _DRAWS_OF_TEST) / (accuracy.count + _DRAWS_OF_TEST)


def _ended(runs: Iterable[Run | None]) -> Iterator[Run]:
    """Yield those that this machine has seen through to success; those that were taken in from elsewhere are not."""
    for run in runs:
        if run is not None and run.state is RunState.SUCCEEDED and run.attempts:
            yield run


def _seconds(run: Run) -> float:
    assert run.start_time is not None, "it was started"
    assert run.finish_time is not None, "it has ended"
    return (datetime.fromisoformat(run.finish_time) - datetime.fromisoformat(run.start_time)).total_seconds()


def _paces(origins: Origins, runs: Iterable[Run | None]) -> Iterator[float]:
    """Yield the seconds that training runs took for a sample in an epoch."""
    for run in _ended(runs):
        manifest = origins.manifest(run.id)
        samples = manifest.training.dataset.counts.get("train", 0) if manifest and manifest.training else 0
        epochs = run.options.get("epochs", 0)
        if run.kind is RunKind.TRAINING and samples and epochs:
            yield _seconds(run) / (epochs * samples)
