"""What the training loop keeps of a bare PyTorch loop's throughput; ratios from one run.

Both train the same network on the same images in the same batches and precision, in one process, in turns of a few
steps: the machine may have other things to do, and change its speed from one second to the next. The bare loop has the
images of its batches ready, forward, backward, optimiser, nothing else. Ours augments, averages weights, measures
itself after each epoch and writes progress for the service and event files for TensorBoard, as a run does.
"""

import argparse
import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch.nn import functional

from services.common.settings import load_settings
from services.trainer.data.collecting import collect
from services.trainer.data.datasets import Dataset, make_dataset
from services.trainer.data.sources import DataSources
from services.trainer.jobs.reporting import Reporter
from services.trainer.options import Augmentation, TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.runs.folder import RunFolder
from services.trainer.settings import TrainerSettings
from services.trainer.training.hardware import choose_precision, computing_in, prepare
from services.trainer.training.loop import Interrupted, Watcher, train
from services.trainer.training.model import build_model
from services.trainer.training.results import StepResult

BARE = Augmentation(flip=False, translate=0)
RECIPES = ("quick", "fast", "alexnet-small", "alexnet")
WARM_UP = 3
"""Turns that are not counted."""


def load_images(options: TrainingOptions) -> Dataset:
    """Return the data set of *options*, with few images to measure on."""
    sources = DataSources(data=load_settings(TrainerSettings).data, roots=(), database=None, blobs=Path())
    dataset = make_dataset(collect(options, sources), options)
    return dataclasses.replace(dataset, validation=dataset.validation[:10])


def bare_steps(options: TrainingOptions, dataset: Dataset, device: torch.device) -> Iterator[None]:
    """Do a step of the loop that a tutorial would write, each time when asked for the next."""
    model = build_model(dataset, options).to(device, memory_format=torch.channels_last)
    precision = choose_precision(options.precision, device)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        learnt,
        lr=options.learning_rate / 10,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        foreach=True,
    )
    size = options.batch_size
    images = torch.split(torch.from_numpy(dataset.train.images.copy()).to(device), size)
    labels = torch.split(torch.from_numpy(dataset.train.labels.copy()).to(device), size)
    whole = len(dataset.train) // size
    model.train()
    while True:
        for step in range(whole):
            with computing_in(precision, device):
                logits = model.network(model.normalise(images[step]))
            loss = functional.cross_entropy(logits.float(), labels[step], label_smoothing=options.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield


def in_turns(options: TrainingOptions, dataset: Dataset, turns: int) -> tuple[list[float], list[float]]:
    """Return the seconds per step of each turn of ours and of the bare loop.

    A turn has `log_every` steps, and those after the last whole turn of an epoch are the next turn's, as is its end.
    """
    device = prepare(options)
    bare = bare_steps(options, dataset, device)
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Reporter(RunFolder(Path(folder))) as reporter:
        mark, done = time.perf_counter(), 0

        def on_step(result: StepResult) -> None:
            nonlocal mark, done
            reporter.step(result)
            steps, done = result.step - done, result.step
            begin = _now(device)
            ours.append((begin - mark) / steps)
            for _ in range(steps):
                next(bare)
            mark = _now(device)
            theirs.append((mark - begin) / steps)

        watcher = Watcher(on_step=on_step, should_stop=lambda: len(theirs) == WARM_UP + turns)
        with contextlib.suppress(Interrupted):
            train(build_model(dataset, options), dataset, options, device=device, watcher=watcher)
    return ours[WARM_UP:], theirs[WARM_UP:]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()  # it may be behind
    return time.perf_counter()


def measure(recipe: str, data: str, steps: int, turns: int) -> list[str]:
    """Return a row of the table: medians, and the ratios with the half of the turns in the middle."""
    overrides = {"dataset": data, "epochs": 10_000, "validation_fraction": 0.1, "log_every": steps}
    options = make_options(recipe, overrides)
    dataset = load_images(options)
    ours, bare = in_turns(options, dataset, turns)
    plain, beside = in_turns(options.model_copy(update={"augmentation": BARE}), dataset, turns)
    images = min(options.batch_size, len(dataset.train))
    return [
        recipe,
        str(options.batch_size),
        f"{images / statistics.median(bare):.0f}",
        f"{images / statistics.median(ours):.0f}",
        _ratio(bare, ours),
        _ratio(beside, plain),
    ]


def _ratio(theirs: list[float], ours: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    quarter = len(ratios) // 4
    return f"{statistics.median(ratios):.3f} ({ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})"


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--steps", type=int, default=5, help="of each turn")
    parser.add_argument("--data", choices=("cifar10", "cifar10-slice"), default="cifar10-slice")
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    arguments = parser.parse_args()
    out = Console(width=200)
    out.print("| recipe | batch | bare images/s | ours | ours/bare | without augmentation |")
    out.print("|---|---|---|---|---|---|")
    for recipe in arguments.recipes:
        row = measure(recipe, arguments.data, arguments.steps, arguments.turns)
        out.print(f"| {' | '.join(row)} |", highlight=False)


if __name__ == "__main__":
    main()
