"""The training loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from services.trainer.data.datasets import Dataset
from services.trainer.networks.classifier import Classifier
from services.trainer.options import TrainingOptions
from services.trainer.training.batches import Batches
from services.trainer.training.group import Alone, Group
from services.trainer.training.hardware import choose_precision, computing_in
from services.trainer.training.prediction import evaluate
from services.trainer.training.results import EpochResult, Interrupted, StepResult
from services.trainer.training.schedules import momentum_at, rate_at
from services.trainer.training.state import State

CPU = torch.device("cpu")
ALONE = Alone()


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits (B, classes), labels (B,) or (B, classes), and images, uint8 (B, H, W, 3), to a scalar."""


@dataclass(frozen=True)
class Watcher:
    """Whoever wants to know how far a run is, and may end it."""

    on_step: Callable[[StepResult], None] = lambda result: None
    """Called every `log_every` steps."""
    on_epoch: Callable[[EpochResult], None] = lambda result: None
    """Called after each epoch, when its checkpoint is safe; also for those of before, when a run goes on."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step; on yes, a checkpoint is written and `Interrupted` raised."""


def train(
    model: Classifier,
    dataset: Dataset,
    options: TrainingOptions,
    *,
    device: torch.device = CPU,
    loss: Loss | None = None,
    checkpoint: Path | None = None,
    watcher: Watcher = Watcher(),
    group: Group = ALONE,
) -> list[EpochResult]:
    """Fit *model* to the training split; it leaves in evaluation mode, on the CPU, with the weights to be kept.

    Given the same options, samples, software and number of threads, the result is the same, also when the run was
    interrupted at any step and resumed from *checkpoint*.

    Args:
        model: From `build_model`; changed in place.
        dataset: The test split is not touched.
        options: How to train.
        device: Where.
        loss: What is made small; cross-entropy with the options' label smoothing if absent.
        checkpoint: File that is written after each epoch and continued from where it exists; beside it, the weights
            of the best epoch.
        watcher: Told how far the run is.
        group: The workers that train together.

    Returns:
        One result per epoch, also those from before a resumption.

    Raises:
        Conflict: The checkpoint belongs to other options.
        InvalidInput: The loss is no longer finite: the learning rate is too high.
        Interrupted: The watcher asked for it.
    """
    model.to(device)
    loss = loss or cross_entropy(options)
    state = State(model, options, checkpoint, group)
    if group.rank:
        watcher = Watcher()  # the first worker tells, and is told, for all
    for result in state.resume():
        watcher.on_epoch(result)
    batches = Batches(dataset.train, len(dataset.labels), options, device, group.rank, group.count)
    network = group.wrap(model.network)
    precision = choose_precision(options.precision, device)
    steps = options.epochs * batches.per_epoch
    images_per_step = min(options.batch_size, len(dataset.train))

    while not state.finished:
        epoch = len(state.history)
        clock = _Clock(state.seconds, state.batch)
        model.train()
        state.frozen.keep()
        for images, labels in batches.epoch(epoch, state.batch):
            step = epoch * batches.per_epoch + state.batch
            state.set_rate(rate_at(step / steps, epoch, options), momentum_at(step / steps, options))
            with computing_in(precision, device):
                logits = network(model.normalise(images))
            state.step(loss(logits.float(), labels, images))
            if state.batch % options.log_every == 0:
                watcher.on_step(
                    StepResult(
                        step=step + 1,
                        steps=steps,
                        epoch=epoch + 1,
                        train_loss=state.recent_loss(),
                        learning_rate=state.rate,
                        images_per_second=clock.rate(state.batch) * images_per_step,
                        steps_per_second=clock.rate(state.batch),
                    )
                )
            if group.agree(watcher.should_stop()):
                state.seconds = clock.seconds
                state.save()
                raise Interrupted
        mean_loss = state.mean_loss()
        seconds, rate = clock.seconds, clock.rate(state.batch) * images_per_step
        validation_loss, validation_accuracy = 0.0, 0.0
        if group.rank == 0:
            validation_loss, validation_accuracy = evaluate(state.judged, dataset.validation, precision)
        state.finite(group.agree(validation_loss))
        result = EpochResult(
            epoch=epoch + 1,
            learning_rate=state.rate,
            train_loss=mean_loss,
            validation_loss=group.agree(validation_loss),
            validation_accuracy=group.agree(validation_accuracy),
            seconds=seconds,
            images_per_second=rate,
        )
        state.end_epoch(result)
        watcher.on_epoch(result)

    if group.rank == 0:
        state.keep()
    group.share(model)
    model.to("cpu")
    model.eval()
    return state.history


def cross_entropy(options: TrainingOptions) -> Loss:
    """Return the mean cross-entropy in nats, with the options' label smoothing."""
    return lambda logits, labels, images: functional.cross_entropy(
        logits, labels, label_smoothing=options.label_smoothing
    )


class _Clock:
    """Times the steps of an epoch, those of before an interruption included."""

    def __init__(self, seconds: float, batch: int) -> None:
        self._started = time.monotonic()
        self._before = seconds
        self._first = batch

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def rate(self, batch: int) -> float:
        """Batches per second since this process has begun the epoch."""
        return (batch - self._first) / max(time.monotonic() - self._started, 1e-9)
