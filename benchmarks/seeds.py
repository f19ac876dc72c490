"""What a recipe comes to on the test images, over seeds: accuracy, with and without views, and seconds of training.

Weights, order and augmentation change with the seed; the split does not. No checkpoints are written. The seconds are
those from the samples in memory to the finished weights, validation after each epoch included; the first run also warms
the device up, so medians are told.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console

from aimass.trainer_access import parse_assignments
from services.common.settings import load_settings
from services.trainer.data.datasets import Dataset, load_dataset
from services.trainer.data.sources import DataSources
from services.trainer.options import TrainingOptions
from services.trainer.recipes import RECIPES, make_options
from services.trainer.settings import TrainerSettings
from services.trainer.training.hardware import prepare
from services.trainer.training.loop import train
from services.trainer.training.model import build_model
from services.trainer.training.prediction import evaluate

VIEWS = (1, 2, 6)


def run(options: TrainingOptions, dataset: Dataset) -> tuple[float, float, dict[int, float]]:
    """Train once.

    Returns:
        The seconds that it took, the images per second of the last epoch, and the share of test images that are named
        rightly, by number of views.
    """
    device = prepare(options)
    model = build_model(dataset, options)
    begin = time.perf_counter()
    history = train(model, dataset, options, device=device)  # ends with weights on the CPU: nothing is still under way
    seconds = time.perf_counter() - begin
    model.to(device)
    accuracies = {}
    for views in VIEWS:
        model.views = views
        _, accuracies[views] = evaluate(model, dataset.test)
    return seconds, history[-1].images_per_second, accuracies


def device_name(options: TrainingOptions) -> str:
    """Return what to call the device that *options* train on."""
    if prepare(options).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of the processor"


def spread(values: list[float]) -> str:
    """Return mean, standard deviation and range of shares, in percent."""
    deviation = f" ± {statistics.stdev(values):.2%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2%}{deviation} ({min(values):.2%} to {max(values):.2%})"


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--set", action="append", default=[], help="name=value; overrides an option of the recipe")
    arguments = parser.parse_args()
    overrides = parse_assignments(arguments.set)
    options = make_options(arguments.recipe, overrides)
    settings = load_settings(TrainerSettings)
    dataset = load_dataset(options, DataSources(settings.data, roots=(), database=None, blobs=settings.blobs))
    seconds: list[float] = []
    rates: list[float] = []
    accuracies: dict[int, list[float]] = {views: [] for views in VIEWS}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        taken, rate, found = run(options.model_copy(update={"seed": seed}), dataset)
        seconds.append(taken)
        rates.append(rate)
        for views, accuracy in found.items():
            accuracies[views].append(accuracy)
        told = ", ".join(f"{accuracy:.2%} with {views}" for views, accuracy in found.items())
        print(f"seed {seed}: {told} views; {taken:.1f} s, {rate:,.0f} images/s", flush=True)
    out = Console(width=200)
    out.print(f"{device_name(options)}, torch {torch.__version__}, {len(dataset.test)} test images\n", highlight=False)
    out.print(f"| recipe | seeds | {' | '.join(f'{n} view(s)' for n in VIEWS)} | seconds | images/s |", highlight=False)
    out.print("|---|---|---|---|---|---|---|")
    cells = " | ".join(map(spread, accuracies.values()))
    name = " ".join([arguments.recipe, *arguments.set])
    speed = f"{statistics.median(seconds):.1f} | {statistics.median(rates):,.0f}"
    out.print(f"| {name} | {len(seconds)} | {cells} | {speed} |", highlight=False)


if __name__ == "__main__":
    main()
