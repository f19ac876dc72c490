"""A search for better options: trials one after the other, the hopeless ones ended early."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from pydantic import BaseModel, ConfigDict

from services.common.errors import InvalidInput, Unsupported
from services.trainer.clock import now
from services.trainer.data.datasets import Dataset
from services.trainer.evaluation.figures import fit_temperature
from services.trainer.jobs.job import Job
from services.trainer.jobs.sources import load_samples, remember_samples
from services.trainer.jobs.training import (
    check_disk,
    finish_model,
    kept_accuracy,
    starting_model,
    training_loss,
)
from services.trainer.networks.classifier import Classifier
from services.trainer.networks.weights import load_weights, save_weights
from services.trainer.options import Range, TrainingOptions, TuningOptions
from services.trainer.runs.folder import CHECKPOINT_FILE, WEIGHTS_FILE, read_document, write_document, write_text
from services.trainer.runs.record import Outcome, RunState
from services.trainer.training.hardware import prepare
from services.trainer.training.loop import Watcher, train
from services.trainer.training.prediction import predict
from services.trainer.training.results import EpochResult

log = structlog.get_logger(__name__)

TRIALS_FILE = "trials.json"
"""What was tried and what came of it, best first."""
STUDY_FILE = "study.db"
BEST_TRIAL_FILE = "best.json"
_SEEDS = 2**32


class BestTrial(BaseModel):
    """What the weights that are kept were trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: TrainingOptions
    history: tuple[EpochResult, ...]


def run_tuning(job: Job) -> Outcome:
    """Search, then finish the best trial's model as a training run would.

    An interrupted search goes on with the trial that was interrupted, from its checkpoint.

    Raises:
        Unsupported: The extra `tuning` is not installed.
        InvalidInput: The space holds what trials must share, or not one trial came to an end.
        Interrupted: The job was asked to stop.
    """
    options = job.request.options
    assert isinstance(options, TuningOptions)
    job.reporter.stage("prepare")
    device = prepare(options.training, job.threads)
    dataset = load_samples(job, options.training)
    described = remember_samples(job, dataset)
    search = Search(job, options)
    while (trial := search.next_trial()) is not None:
        job.reporter.stage("search", trial.number / options.trials)
        chosen = options.trial(trial.values)
        trial.folder.mkdir(parents=True, exist_ok=True)
        try:
            with job.stop.delayed():
                model, history = _train(job, search, trial, chosen, dataset, device)
        except Hopeless:
            search.end(trial, "PRUNED")
        except InvalidInput as error:  # a rate that diverges is a result of the search, not its end
            log.info("trial failed", trial=trial.number, values=trial.values, reason=error.message)
            search.fail(trial, error.message)
        else:
            accuracy = kept_accuracy(chosen, history)
            if accuracy > search.best_accuracy:
                model.temperature = fit_temperature(predict(model, dataset.validation), dataset.validation.labels)
                save_weights(model, job.folder / WEIGHTS_FILE, chosen, dataset.labels)
                write_document(job.folder / BEST_TRIAL_FILE, BestTrial(options=chosen, history=tuple(history)))
            search.end(trial, "COMPLETE", accuracy)
        shutil.rmtree(trial.folder)
        search.write(job.folder / TRIALS_FILE)
    shutil.rmtree(search.folder, ignore_errors=True)  # what a process that was killed here and there has left
    search.write(job.folder / TRIALS_FILE)
    best = read_document(job.folder / BEST_TRIAL_FILE, BestTrial)
    if best is None:
        raise InvalidInput(
            f"no trial came to an end; correct the options or narrow the space: {search.first_failure}", field="space"
        )
    model, _ = load_weights(job.folder / WEIGHTS_FILE, allow_code=job.request.trusted)
    metrics = finish_model(job, model, dataset, described, best.options, list(best.history))
    metrics["trials"] = float(options.trials)
    return Outcome(state=RunState.SUCCEEDED, dataset=described, metrics=metrics, finish_time=now())


def _train(
    job: Job, search: "Search", trial: "SearchTrial", options: TrainingOptions, dataset: Dataset, device: torch.device
) -> tuple[Classifier, list[EpochResult]]:
    """Train *trial* from where it is, and tell of each epoch.

    Raises:
        Hopeless: It is not worth going on.
    """
    assert isinstance(job.request.options, TuningOptions)
    epochs = job.request.options.trials * options.epochs

    def on_epoch(result: EpochResult) -> None:
        done = search.report(trial, result)
        job.reporter.epoch(result.model_copy(update={"epoch": done}), max(epochs, done))
        search.judge(trial)

    model = starting_model(job, options, dataset)
    check_disk(job, model)
    watcher = Watcher(on_step=job.reporter.step, on_epoch=on_epoch, should_stop=job.stop)
    with training_loss(job, options, dataset) as loss:
        checkpoint = trial.folder / CHECKPOINT_FILE
        return model, train(model, dataset, options, device=device, loss=loss, checkpoint=checkpoint, watcher=watcher)


class Hopeless(Exception):
    """A trial that is worse than most were at the same epoch."""


@dataclass(frozen=True)
class SearchTrial:
    """One set of values, and where it is trained."""

    number: int
    values: dict[str, Any]
    folder: Path
    trial: Any
    """Optuna's."""


class Search:
    """An optuna study that is kept in the folder of the run.

    Raises:
        Unsupported: The extra `tuning` is not installed.
    """

    def __init__(self, job: Job, options: TuningOptions) -> None:
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise Unsupported(
                "a search needs optuna, which is not installed; install it with: pip install 'aimass[tuning]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._options = options
        self.folder = job.folder.path / "trials"
        """Of the checkpoints, until the search is over."""
        self._study = optuna.create_study(
            storage=f"sqlite:///{job.folder / STUDY_FILE}",
            study_name=job.request.id,
            load_if_exists=True,
            direction="maximize",
            pruner={
                "none": optuna.pruners.NopPruner,
                "median": optuna.pruners.MedianPruner,
                "halving": optuna.pruners.SuccessiveHalvingPruner,
            }[options.pruner](),
        )

    @property
    def best_accuracy(self) -> float:
        """The highest validation accuracy at the end of a trial; -1 before the first."""
        return max((trial.value for trial in self._trials("COMPLETE")), default=-1.0)

    def next_trial(self) -> SearchTrial | None:
        """Return the trial that was interrupted or else a new one; none when all are done."""
        interrupted = self._trials("RUNNING")
        begun = len(self._study.trials) - len(self._trials("WAITING"))
        # A seed for each trial: a search that was interrupted draws what it would have drawn.
        seed = self._options.seed + (interrupted[0].number if interrupted else begun)
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed % _SEEDS)
        if interrupted:
            trial = self._optuna.Trial(self._study, interrupted[0]._trial_id)
        elif begun < self._options.trials:
            if not self._study.trials:  # what is known to train well comes first
                self._study.enqueue_trial(
                    {name: self._stored(name, value) for name, value in self._first_values().items()}
                )
            trial = self._study.ask()
        else:
            return None
        values = {name: self._suggest(trial, name, values) for name, values in self._options.space.items()}
        return SearchTrial(trial.number, values, self.folder / str(trial.number), trial)

    def report(self, trial: SearchTrial, result: EpochResult) -> int:
        """Tell the study of an epoch, and return how many it knows of all trials up to this one."""
        known = [self._epochs(each) for each in self._study.trials]
        if result.epoch > known[trial.number]:
            trial.trial.report(result.validation_accuracy, result.epoch)
        return sum(known[: trial.number]) + result.epoch

    def judge(self, trial: SearchTrial) -> None:
        """Compare *trial* with those before.

        Raises:
            Hopeless: The pruner ends the trial.
        """
        if trial.trial.should_prune():
            raise Hopeless

    def end(self, trial: SearchTrial, state: str, accuracy: float | None = None) -> None:
        """Close *trial* as COMPLETE with its validation *accuracy*, as PRUNED or as FAIL."""
        self._study.tell(trial.trial, accuracy, state=self._optuna.trial.TrialState[state])

    def fail(self, trial: SearchTrial, reason: str) -> None:
        """Close *trial* as FAIL."""
        trial.trial.set_user_attr("reason", reason)
        self.end(trial, "FAIL")

    @property
    def first_failure(self) -> str:
        """Which trial failed first, and why."""
        first = next(iter(self._trials("FAIL")), None)
        if first is None:
            return "all were stopped early"
        return f"trial {first.number} failed: {first.user_attrs.get('reason', 'see the log')}"

    def write(self, path: Path) -> None:
        """Write what was tried, the best first."""
        rows = [
            {
                "trial": trial.number,
                "state": trial.state.name,
                "validation_accuracy": trial.value,
                "epochs": self._epochs(trial),
                "values": {name: self._value(name, value) for name, value in trial.params.items()},
            }
            for trial in sorted(self._study.trials, key=_rank, reverse=True)
        ]
        write_text(path, json.dumps(rows, indent=1) + "\n")

    def _epochs(self, trial: Any) -> int:
        return len(trial.intermediate_values)

    def _trials(self, state: str) -> list[Any]:
        return [trial for trial in self._study.trials if trial.state.name == state]

    def _first_values(self) -> dict[str, Any]:
        """Return what the options that the search starts from have, as far as the space admits it."""
        values = {name: self._present(name) for name in self._options.space}
        return {name: value for name, value in values.items() if self._options.space[name].admits(value)}

    def _present(self, name: str) -> Any:
        """Return what the options that the search starts from have for *name*, if anything."""
        value: Any = self._options.training.model_dump(mode="json")
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def _suggest(self, trial: Any, name: str, values: Range) -> Any:
        if values.choices:
            stored = trial.suggest_categorical(name, [self._stored(name, choice) for choice in values.choices])
            return self._value(name, stored)
        assert values.low is not None
        assert values.high is not None
        if isinstance(self._present(name), int):
            return trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
        return trial.suggest_float(name, values.low, values.high, log=values.log)

    def _stored(self, name: str, value: Any) -> Any:
        """Return *value* as the study keeps it, which takes no lists."""
        return json.dumps(value) if self._options.space[name].choices else value

    def _value(self, name: str, stored: Any) -> Any:
        return json.loads(stored) if self._options.space[name].choices else stored


def _rank(trial: Any) -> tuple[bool, float]:
    """By which trials are sorted: those that came to their end above those that were stopped."""
    return trial.state.name == "COMPLETE", trial.value or 0.0
