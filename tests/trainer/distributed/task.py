"""A small run, as every process of it makes it from a folder that holds `options.json`."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from services.common.manifest import PreprocessSpec
from services.trainer.data import slices
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.datasets import Dataset, channel_statistics
from services.trainer.distributed.task import Task
from services.trainer.networks.classifier import Classifier, Network
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from tests.trainer.forks import FORKS
from tests.trainer.splits import split

ENDED = "ended with"


class PlainNetwork(Network):
    """Two convolutions, with or without batch norms, and a layer that is not used."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 5, stride=2)
        self.norm = nn.BatchNorm2d(12) if norm else nn.Identity()
        self.second = nn.Conv2d(12, 24, 3, stride=2)
        self.head = nn.Linear(24, 10)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def plain_options(overrides: Mapping[str, Any]) -> TrainingOptions:
    """Options whose result does not depend on random numbers of each worker."""
    fixed = {
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 0.05,
        "threads": 1,
        "device": "cpu",
        "precision": "float32",
        "augmentation": {"translate": 0, "cutout": 0},
        "log_every": 1,
        "network": "tests.trainer.distributed.task:PlainNetwork",
        "network_options": {"norm": False},
    }
    return make_options("quick", {**fixed, **overrides})


def plain_dataset() -> Dataset:
    """640 training and 100 validation images."""
    public, test = slices.read_slice()
    train, validation = split(public.first_per_class(74), 10 / 74, seed=0)
    spec = PreprocessSpec(input="image", width=32, height=32)
    return Dataset("cifar10-slice", LABELS, spec, train, validation, test.first_per_class(10))


def make_task(folder: Path) -> Task:
    """Make the task of the run in *folder*; where it has a `go`, that is waited for."""
    if (folder / "go").exists():
        tell(folder, f"ready {os.getpid()}")
        with (folder / "go").open("rb", buffering=0) as file:
            file.read(1)
    return task_of(TrainingOptions.model_validate_json((folder / "options.json").read_bytes()))


def task_of(options: TrainingOptions) -> Task:
    """Make the task of these options."""
    dataset = plain_dataset()
    torch.manual_seed(options.seed)
    mean, std = channel_statistics(dataset.train.images)
    model = Classifier(PlainNetwork(**options.network_options), torch.from_numpy(mean), torch.from_numpy(std))
    return Task(model, dataset, options)


def tell(folder: Path, event: str) -> None:
    """Say to whoever reads the events of *folder* what has happened."""
    with (folder / "events").open("a") as file:
        file.write(f"{event}\n")


@contextmanager
def started(target: Callable[[Path], None], folder: Path) -> Iterator[ForkServerProcess]:
    """Fork a process of the run in *folder*; its end, which the end of the block waits for, is one of the events."""
    process = FORKS.Process(target=target, args=(folder,))
    process.start()

    def wait() -> None:
        process.join()
        tell(folder, f"{ENDED} {process.exitcode}")

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        waiting.join()


def read_until(event: str, events: TextIO) -> list[str]:
    """Read *events* until *event* comes; returns all of them."""
    seen: list[str] = []
    while event not in seen:
        seen.append(events.readline().strip())
        assert event.startswith(ENDED) or not seen[-1].startswith(ENDED), f"no {event!r} after {seen}"
    return seen
