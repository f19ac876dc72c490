"""What the training loop keeps of a bare PyTorch loop's throughput; ratios from one run.

Both train the same network on the same images in the same batches and precision. The bare loop has the images of its
batches ready, forward, backward, optimiser, nothing else. Ours augments, averages weights, writes progress for the
service and event files for TensorBoard, as a run does. Interleaved rounds: the machine may have other things to do.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
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
from services.trainer.training.hardware import choose_precision, prepare
from services.trainer.training.loop import Watcher, train
from services.trainer.training.model import build_model

Way = Callable[[], float]
BARE = Augmentation(flip=False, translate=0)
RECIPES = ("quick", "fast", "alexnet-small", "alexnet")


def first_images(options: TrainingOptions, count: int) -> Dataset:
    """Return *count* training images, or as many as there are, and few to measure on."""
    sources = DataSources(data=load_settings(TrainerSettings).data, roots=(), database=None, blobs=Path())
    dataset = make_dataset(collect(options, sources), options)
    return dataclasses.replace(dataset, train=dataset.train[:count], validation=dataset.validation[:10])


def bare_rate(options: TrainingOptions, dataset: Dataset, steps: int) -> float:
    """Return the images per second of the loop that a tutorial would write."""
    device = prepare(options)
    model = build_model(dataset, options).to(device, memory_format=torch.channels_last)
    precision = choose_precision(options.precision, device)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        learnt,
        lr=options.learning_rate / 10,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        foreach=True,
    )
    size = options.batch_size
    images = torch.from_numpy(dataset.train.images.copy()).to(device).split(size)
    labels = torch.from_numpy(dataset.train.labels.copy()).to(device).split(size)
    model.train()
    begun, loss = 0.0, torch.zeros(())
    for step in range(2 * steps):
        if step == steps:  # ours is measured in its second epoch too
            loss.item()  # a GPU may be behind
            begun = time.perf_counter()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = model.network(model.normalise(images[step % steps]))
        loss = functional.cross_entropy(logits.float(), labels[step % steps])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    loss.item()
    return steps * size / (time.perf_counter() - begun)


def our_rate(options: TrainingOptions, dataset: Dataset, *, told: bool) -> float:
    """Return the images per second of the last epoch of a run, with progress told or not."""
    device = prepare(options)
    model = build_model(dataset, options)
    with tempfile.TemporaryDirectory() as folder, Reporter(RunFolder(Path(folder))) as reporter:
        on_epoch = reporter.epoch
        watcher = (
            Watcher(on_step=reporter.step, on_epoch=lambda result: on_epoch(result, options.epochs))
            if told
            else Watcher()
        )
        history = train(model, dataset, options, device=device, watcher=watcher)
    return history[-1].images_per_second


def measure(recipe: str, data: str, steps: int, rounds: int) -> list[str]:
    """Return a row of the table: medians, and the ratios with the half of the rounds in the middle."""
    options = make_options(recipe, {"dataset": data, "epochs": 2, "validation_fraction": 0.1})
    batch = options.batch_size
    whole = first_images(options, steps * batch)
    plain = options.model_copy(update={"augmentation": BARE})
    ways: dict[str, Way] = {
        "bare": partial(bare_rate, options, whole, len(whole.train) // batch),
        "ours": partial(our_rate, options, whole, told=True),
        "silent": partial(our_rate, options, whole, told=False),
        "unchanged": partial(our_rate, plain, whole, told=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in sorted(ways, reverse=turn % 2 == 1):  # who comes first may find a cooler processor
            rates[name].append(in_a_process_of_its_own(ways[name]))
    bare, ours, silent, unchanged = (rates[name] for name in ways)
    return [
        recipe,
        str(batch),
        f"{statistics.median(bare):.0f}",
        f"{statistics.median(ours):.0f}",
        _ratio(ours, bare),
        _ratio(unchanged, bare),
        _ratio(ours, silent),
    ]


def in_a_process_of_its_own(way: Way) -> float:
    """Return what *way* measures where nothing was computed before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(way).result()


def _ratio(part: list[float], whole: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(part, whole, strict=True))
    quarter = len(ratios) // 4
    return f"{statistics.median(ratios):.3f} ({ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})"


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--data", choices=("cifar10", "cifar10-slice"), default="cifar10-slice")
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    arguments = parser.parse_args()
    out = Console()
    out.print("| recipe | batch | bare images/s | ours | ours/bare | without augmentation | told/silent |")
    out.print("|---|---|---|---|---|---|---|")
    for recipe in arguments.recipes:
        row = measure(recipe, arguments.data, arguments.steps, arguments.rounds)
        out.print(f"| {' | '.join(row)} |", highlight=False)


if __name__ == "__main__":
    main()
