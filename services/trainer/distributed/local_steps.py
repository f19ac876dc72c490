"""Training in several processes that do not wait for each other.

This process hands out work, keeps the weights, measures and saves; the workers that it starts do the steps. Torch's own
`model_averaging` is not used: it averages within a process group, where all have to arrive at the same moment and the
death of one is the end of all.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from services.trainer.data.datasets import Dataset
from services.trainer.distributed.exchange import Began, EpochDone, Exchange, Exchanged, Snapshot
from services.trainer.distributed.flat import Flat
from services.trainer.distributed.leases import LeaseBook
from services.trainer.distributed.outer import OuterState
from services.trainer.distributed.pool import Pool
from services.trainer.distributed.serving import serving
from services.trainer.distributed.task import share_batches
from services.trainer.networks.classifier import Classifier
from services.trainer.options import TrainingOptions
from services.trainer.training import checkpoints
from services.trainer.training.batches import Batches
from services.trainer.training.hardware import choose_precision
from services.trainer.training.loop import ALONE, CPU, Watcher
from services.trainer.training.prediction import evaluate
from services.trainer.training.results import EpochResult, Interrupted, StepResult
from services.trainer.training.schedules import rate_at
from services.trainer.training.state import State

UNWATCHED = Watcher()
_LOOK_SECONDS = 0.1
"""How often the watcher is asked, and workers are looked after, when nothing happens."""


def train_with_local_steps(
    model: Classifier,
    dataset: Dataset,
    options: TrainingOptions,
    *,
    maker: str,
    run_folder: Path,
    device: torch.device = CPU,
    checkpoint: Path | None = None,
    watcher: Watcher = UNWATCHED,
) -> list[EpochResult]:
    """Fit *model* to the training split, as `train` does, by `options.workers.count` processes with local steps.

    It does exactly the steps that the options ask for, whichever workers die; they share this process's number of
    threads. Its result is not the same each time: it depends on who comes first.

    Args:
        model: From `build_model`; changed in place.
        dataset: The test split is not touched.
        options: How to train.
        maker: `<module>:<function>` that makes the run's `Task`, loss included, from the run's folder in each worker.
        run_folder: Handed to it.
        device: Where epochs are measured; workers choose theirs by the options.
        checkpoint: File that is written after each epoch and continued from where it exists.
        watcher: Told how far the run is, about once per lease.

    Returns:
        One result per epoch, also those from before a resumption.

    Raises:
        Conflict: The checkpoint belongs to other options.
        InvalidInput: The loss is no longer finite: the learning rate is too high.
        NotReady: All workers have died more often than they are started again.
        Interrupted: The watcher asked for it.
    """
    model.to(device)
    run = _Run(model, options, checkpoint, ALONE)
    for result in run.resume():
        watcher.on_epoch(result)
    shared = share_batches(options)
    batches = Batches(dataset.train, len(dataset.labels), shared, CPU, 0, 1)
    book = LeaseBook(
        options.epochs, batches.per_epoch, options.workers.local_steps, run.snapshot.finished, len(run.history)
    )
    exchange = Exchange(run.snapshot.state, run.snapshot.average, book, options)
    progress = _Progress(options, batches.per_epoch, min(shared.batch_size, len(dataset.train)), book.steps)
    precision = choose_precision(options.precision, device)

    threads = max(1, torch.get_num_threads() // options.workers.count)

    def command(number: int) -> list[str]:
        worker = "services.trainer.distributed.worker"
        return [sys.executable, "-m", worker, maker, str(run_folder), address, str(number), str(threads)]

    with (
        _few_threads(threads),
        serving(exchange, options.workers.count) as address,
        Pool(command, options.workers.count) as pool,
    ):
        while not run.finished:
            if watcher.should_stop():
                run.take(exchange.snapshot())
                run.save()
                raise Interrupted
            pool.mend()
            try:
                event = exchange.events.get(timeout=_LOOK_SECONDS)
            except Empty:
                continue
            match event:
                case Began(started):
                    progress.started = started
                    run.snapshot = replace(run.snapshot, time=started)
                case Exchanged():
                    if (step := progress.after(event, run)) is not None:
                        watcher.on_step(step)
                case EpochDone(mean_loss, snapshot):
                    seconds = run.take(snapshot)
                    validation_loss, validation_accuracy = evaluate(run.judged, dataset.validation, precision)
                    epoch = len(run.history)
                    result = EpochResult(
                        epoch=epoch + 1,
                        learning_rate=rate_at(((epoch + 1) * batches.per_epoch - 1) / progress.steps, epoch, options),
                        train_loss=mean_loss,
                        validation_loss=run.finite(validation_loss),
                        validation_accuracy=validation_accuracy,
                        seconds=seconds,
                        images_per_second=batches.per_epoch * progress.images_per_step / max(seconds, 1e-9),
                    )
                    run.end_epoch(result)
                    exchange.measured(epoch + 1)
                    watcher.on_epoch(result)

    run.keep()
    model.to("cpu")
    model.eval()
    return run.history


@contextmanager
def _few_threads(threads: int) -> Iterator[None]:
    """Measure with no more *threads* than a worker has: those that wait for each other lose most on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run(State):
    """The state of a run whose steps are done elsewhere: the outer optimiser's and the leases' is saved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.snapshot = Snapshot(time.monotonic(), OuterState.begin(Flat.of(self.model)), None, {})
        """What is measured and saved."""

    def take(self, snapshot: Snapshot) -> float:
        """Make *snapshot* what is measured and saved; returns the seconds since the one before."""
        self.seconds += snapshot.time - self.snapshot.time
        self.snapshot = snapshot
        snapshot.state.model.write_to(self.model)
        if self.averaged is not None and snapshot.average is not None:
            snapshot.average.write_to(self.averaged.module)
        return self.seconds

    def save(self) -> None:
        """Write the checkpoint, where one is wanted."""
        if self.checkpoint is None:
            return
        state, average = self.snapshot.state, self.snapshot.average
        content = {
            "options": self._identity,
            "history": [result.model_dump() for result in self.history],
            "seconds": self.seconds,
            "numbers": state.model.numbers,
            "momentum": state.momentum,
            "exchanges": state.exchanges,
            "average": average.numbers if average is not None else None,
            "finished": self.snapshot.finished,
        }
        checkpoints.save(self.checkpoint, content)

    def resume(self) -> list[EpochResult]:
        """Go on from the checkpoint, if there is one, and return the epochs that it knows."""
        content: dict[str, Any] | None = None
        if self.checkpoint is not None:
            content = checkpoints.load(self.checkpoint, self._identity)
        if content is None:
            return []
        learnt = self.snapshot.state.model.learnt
        state = OuterState(Flat(content["numbers"], learnt), content["momentum"], content["exchanges"])
        average = Flat(content["average"], learnt) if content["average"] is not None else None
        self.take(Snapshot(time.monotonic(), state, average, content["finished"]))
        self.seconds = content["seconds"]
        self.history = [EpochResult.model_validate(result) for result in content["history"]]
        return list(self.history)


class _Progress:
    """What is told between epochs."""

    def __init__(self, options: TrainingOptions, per_epoch: int, images_per_step: int, done: int) -> None:
        self.steps = options.epochs * per_epoch
        self.images_per_step = images_per_step
        self._options = options
        self._per_epoch = per_epoch
        self.started = time.monotonic()
        self._first = self._told = done
        self._loss_sum = 0.0

    def after(self, event: Exchanged, run: _Run) -> StepResult | None:
        """Return what to tell after *event*, or nothing where fewer than `log_every` steps have gone by.

        Raises:
            InvalidInput: The loss is not finite.
        """
        self._loss_sum += event.loss_sum
        since = event.steps - self._told
        loss = run.finite(self._loss_sum / since)
        if since < self._options.log_every:
            return None
        self._told, self._loss_sum = event.steps, 0.0
        rate = (event.steps - self._first) / max(time.monotonic() - self.started, 1e-9)
        return StepResult(
            step=event.steps,
            steps=self.steps,
            epoch=event.lease.epoch + 1,
            train_loss=loss,
            learning_rate=rate_at(
                (event.lease.epoch * self._per_epoch + event.lease.first + event.lease.count - 1) / self.steps,
                event.lease.epoch,
                self._options,
            ),
            images_per_second=rate * self.images_per_step,
            steps_per_second=rate,
        )
