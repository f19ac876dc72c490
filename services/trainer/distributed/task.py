"""What a process that helps with a run needs of it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.trainer.data.datasets import Dataset
from services.trainer.networks.classifier import Classifier
from services.trainer.options import TrainingOptions
from services.trainer.training.batches import share_of
from services.trainer.training.loop import Loss


@dataclass(frozen=True)
class Task:
    """A run as each of its processes makes it from the run's folder."""

    model: Classifier
    """The first worker's weights take the place of its own; only its structure has to be the same everywhere."""
    dataset: Dataset
    options: TrainingOptions
    loss: Loss | None = None
    """Cross-entropy with the options' label smoothing if absent."""


def share_batches(options: TrainingOptions) -> TrainingOptions:
    """Return *options* as each worker follows them where none waits for the others: with its part of a batch.

    Raises:
        InvalidInput: The parts would not be equal.
    """
    return options.model_copy(update={"batch_size": share_of(options.batch_size, options.workers.count)})


def find_maker(path: str) -> Callable[[Path], Task]:
    """Return the function `<module>:<function>` that makes a task from a run's folder.

    The path comes from our own code, never from a request: the module is imported.
    """
    module, _, function = path.partition(":")
    maker: Callable[[Path], Task] = getattr(importlib.import_module(module), function)
    return maker
