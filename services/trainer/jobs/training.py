"""A training run from beginning to end."""

import atexit
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from services.common import manifest
from services.common.errors import Conflict, Overloaded
from services.common.settings import load_settings
from services.trainer.clock import now
from services.trainer.data.datasets import Dataset
from services.trainer.distributed.data_parallel import joined
from services.trainer.distributed.local_steps import train_with_local_steps
from services.trainer.distributed.task import Task
from services.trainer.evaluation.figures import fit_temperature
from services.trainer.jobs.job import Job
from services.trainer.jobs.origins import find_champion, find_trained
from services.trainer.jobs.product import describe_model, export_model, network_size, read_card, training_record
from services.trainer.jobs.reporting import Silent
from services.trainer.jobs.sources import find_run, load_samples, remember_samples
from services.trainer.jobs.teachers import open_teacher
from services.trainer.networks.classifier import Classifier
from services.trainer.networks.weights import load_weights, save_weights
from services.trainer.options import TrainingOptions
from services.trainer.runs.folder import (
    CHECKPOINT_FILE,
    WEIGHTS_FILE,
    RunFolder,
)
from services.trainer.runs.record import Outcome, RunState
from services.trainer.settings import TrainerSettings
from services.trainer.training.distillation import distilled
from services.trainer.training.group import Group
from services.trainer.training.hardware import prepare
from services.trainer.training.loop import Loss, Watcher, train
from services.trainer.training.model import build_model
from services.trainer.training.prediction import predict
from services.trainer.training.pruning import prune_network
from services.trainer.training.results import EpochResult

_COPIES = 8
"""Of the weights that a run keeps at most: weights, momentum and average, twice while one checkpoint replaces the
other; the best epoch; the graph."""


def run_training(job: Job) -> Outcome:
    """Train, export, prove, measure and describe a model; everything lands in the folder of the run.

    A run that was interrupted goes on from its last checkpoint.

    Raises:
        ServiceError: The samples or the options do not make a model.
        Conflict: The run was begun with other samples, or the graph differs from the network.
        InvalidInput: The loss is no longer finite.
        Interrupted: The job was asked to stop.
    """
    options = job.request.options
    assert isinstance(options, TrainingOptions)
    job.reporter.stage("prepare")
    device = prepare(options, job.threads)
    with joined(device) as group:
        task = make_task(job, options)
        described = remember_samples(job, task.dataset, first=group.rank == 0)
        check_disk(job, task.model)
        job.reporter.stage("prepare", 1.0)
        with job.stop.delayed():
            history = _fit(job, task, device, group)
    if group.rank:  # the first worker finishes for all
        return Outcome(state=RunState.SUCCEEDED, finish_time=now())
    model, dataset = task.model, task.dataset
    model.temperature = fit_temperature(predict(model, dataset.validation), dataset.validation.labels)
    save_weights(model, job.folder / WEIGHTS_FILE, options, dataset.labels)
    metrics = finish_model(job, model, dataset, described, options, history)
    return Outcome(state=RunState.SUCCEEDED, dataset=described, metrics=metrics, finish_time=now())


def finish_model(
    job: Job,
    model: Classifier,
    dataset: Dataset,
    described: manifest.Dataset,
    options: TrainingOptions,
    history: list[EpochResult],
) -> dict[str, float]:
    """Export and describe a trained *model*, and return all final figures."""
    seconds = sum(result.seconds for result in history)
    source = find_run(options.start_from, job.settings) if options.start_from else None
    return describe_model(
        job,
        dataset,
        training_record(job, options.recipe, options.model_dump(mode="json"), described, seconds),
        metrics={
            "validation_accuracy": kept_accuracy(options, history),
            "temperature": model.temperature,
            **export_model(job, model, dataset),
        },
        size=network_size(model, dataset),
        history={result.epoch: result.model_dump(exclude={"epoch"}) for result in history},
        parent=read_card(source) if source else None,
        before=source or find_champion(options.dataset, job.settings),
    )


def kept_accuracy(options: TrainingOptions, history: list[EpochResult]) -> float:
    """Return the validation accuracy of the epoch whose weights are kept."""
    accuracies = [result.validation_accuracy for result in history]
    return max(accuracies) if options.keep == "best" else accuracies[-1]


def make_task(job: Job, options: TrainingOptions) -> Task:
    """Return model and samples as every process of the run makes them.

    Raises:
        ServiceError: As `load_samples` and `starting_model`.
    """
    dataset = load_samples(job, options)
    return Task(starting_model(job, options, dataset), dataset, options)


def task_in(folder: Path) -> Task:
    """Make the task of the run in *folder*, loss included, in one of the processes that help with it."""
    run = RunFolder(folder)
    request = run.request()
    assert isinstance(request.options, TrainingOptions)
    job = Job(run, request, load_settings(TrainerSettings), Silent())
    task = make_task(job, request.options)
    if not request.options.distillation.teacher:
        return task
    process = ExitStack()  # the teacher stays open for as long as this process lives
    atexit.register(process.close)
    return replace(task, loss=process.enter_context(training_loss(job, task.options, task.dataset)))


def starting_model(job: Job, options: TrainingOptions, dataset: Dataset) -> Classifier:
    """Return the model that training begins with: new or another run's, with fewer channels where that is asked for.

    Raises:
        ServiceError: As `build_model`, `find_trained` and `prune_network`.
        Conflict: The other run's model has other labels.
    """
    if options.start_from:
        path = find_trained(options.start_from, job.settings) / WEIGHTS_FILE
        model, labels = load_weights(path, allow_code=job.request.trusted)
        if labels != dataset.labels:
            raise Conflict(
                f"{options.start_from} tells {', '.join(labels[:10])} apart, data set {dataset.name} has "
                f"{', '.join(dataset.labels[:10])}; start from a model with the same labels"
            )
        model.temperature = 1.0
    else:
        model = build_model(dataset, options, allow_code=job.request.trusted)
    if options.pruning.speedup > 1:
        example = model.normalise(torch.from_numpy(np.array(dataset.train.images[:1])))
        prune_network(model.network, example, options.pruning)
    return model


def check_disk(job: Job, model: Classifier) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        Overloaded: There is too little room for the checkpoints.
    """
    needed = _COPIES * sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free = shutil.disk_usage(job.folder.path).free
    if free < needed:
        raise Overloaded(
            f"the run needs up to {needed / 2**20:.0f} MiB for its checkpoints, {job.folder.path} has "
            f"{free / 2**20:.0f} MiB free; delete old runs there, or choose a smaller network",
            reason="DISK_FULL",
        )


def _fit(job: Job, task: Task, device: torch.device, group: Group) -> list[EpochResult]:
    """Train, by as many workers as the options want."""
    options = task.options
    checkpoint = job.folder / CHECKPOINT_FILE
    watcher = Watcher(
        on_step=job.reporter.step,
        on_epoch=lambda result: job.reporter.epoch(result, options.epochs),
        should_stop=job.stop,
    )
    if options.workers.count > 1 and options.workers.synchronisation == "local-steps":
        return train_with_local_steps(
            task.model,
            task.dataset,
            options,
            maker=f"{__name__}:{task_in.__name__}",
            run_folder=job.folder.path,
            device=device,
            checkpoint=checkpoint,
            watcher=watcher,
        )
    with training_loss(job, options, task.dataset) as loss:
        return train(
            task.model,
            task.dataset,
            options,
            device=device,
            loss=loss,
            checkpoint=checkpoint,
            watcher=watcher,
            group=group,
        )


@contextmanager
def training_loss(job: Job, options: TrainingOptions, dataset: Dataset) -> Iterator[Loss | None]:
    """Give the loss with a teacher, where *options* name one, and hold it for as long as the block lasts.

    Raises:
        ServiceError: As `open_teacher`.
    """
    source = options.distillation.teacher
    if not source:
        yield None
        return
    with open_teacher(
        source,
        dataset.labels,
        job.settings,
        precision=options.precision,
        threads=job.threads,
        allow_code=job.request.trusted,
    ) as teacher:
        yield distilled(teacher, options)
