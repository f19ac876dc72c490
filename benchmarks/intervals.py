"""How often the interval of live accuracy misses, though somebody looks at it again and again, and how wide it is.

Requests go through the gateway's own sampler: a draw's probability follows the load, and unsure answers are captured
beside the draws. Answers are less sure where they are wrong, so that what is captured beside says little of accuracy.
After more and more judged draws somebody looks at the interval, and an interval that misses at any of these looks
counts as a miss. Beside the product's interval, what is found elsewhere: Wilson's interval at 95 % of the same draws,
looked at as often, and Wilson's of all that was captured.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from gateway.sampling import CapturePolicy, Sampler, Strategy
from services.trainer.feedback.policy import CapturePolicy as Defaults
from services.trainer.statistics.budget import error_share
from services.trainer.statistics.intervals import Interval, accuracy_sequence

ALPHA = 0.05
NORMAL = 1.959963984540054
"""97.5 % point of the normal distribution."""
LOOKS = tuple(round(10 * 1.3**step) for step in range(16))
"""Judged draws after which somebody looks: 10 to 500."""
CALM, CROWD = 5.0, 60.0
"""Requests per second."""
RECENT, CONTENT = 500, 430
"""Answers by which users decide whether to come in crowds, and how many of them must be right for that."""
Load = Callable[[int, int], float]
"""Requests per second, given how many were answered and how many of the last `RECENT` rightly."""


@dataclass(frozen=True)
class Traffic:
    """What a version meets."""

    told: str
    accuracies: tuple[float, ...]
    """One after the other, each for an equal part of the requests."""
    load: Load


def calm(answered: int, right: int) -> float:
    """Return a load that never changes."""
    return CALM


def waves(answered: int, right: int) -> float:
    """Return a load that rises and falls, as in the course of a day."""
    height = 0.5 - 0.5 * math.cos(2 * math.pi * answered / 2000)
    return CALM * math.exp(height * math.log(CROWD / CALM))


def followed(answered: int, right: int) -> float:
    """Return a load that follows the answers: while more than usual are right, crowds come, and few are drawn."""
    return CROWD if right >= CONTENT else CALM


TRAFFIC = (
    Traffic("85 %, calm", (0.85,), calm),
    Traffic("85 %, load in waves", (0.85,), waves),
    Traffic("85 %, load follows the answers", (0.85,), followed),
    Traffic("98 %, calm", (0.98,), calm),
    Traffic("60 %, load in waves", (0.6,), waves),
    Traffic("90 % and then 75 %, calm: the mean so far", (0.9, 0.75), calm),
)


@dataclass(frozen=True, eq=False)
class Path:
    """What one life of a version leaves behind."""

    correct: NDArray[np.bool_]
    """Of the judged draws."""
    probability: NDArray[np.float64]
    """Of the judged draws."""
    truth: NDArray[np.float64]
    """Mean accuracy over all requests up to each draw."""
    captured: tuple[int, int]
    """How many were captured by whatever strategy, and how many of them are right."""


@dataclass
class Tally:
    """Of one interval over paths."""

    at_any_look: int = 0
    at_last_look: int = 0
    width: float = 0.0
    """Sum of the last ones."""

    def add(self, misses: list[bool], width: float) -> None:
        """Count a path."""
        self.at_any_look += any(misses)
        self.at_last_look += misses[-1]
        self.width += width


def policy() -> CapturePolicy:
    """Return the gateway's policy with the numbers that the product ships."""
    shipped = Defaults()
    return CapturePolicy(
        random_share=shipped.random_share,
        least_random_share=shipped.least_random_share,
        low_confidence_share=shipped.low_confidence_share,
        confidence_below=shipped.confidence_below,
        rare_class_share=shipped.rare_class_share,
        rare_labels=frozenset(),
        samples_per_second=shipped.samples_per_second,
        burst=shipped.burst,
    )


def live(traffic: Traffic, seed: tuple[int, int], requests: int) -> Path:
    """Answer *requests*, and return what was drawn of them."""
    random = np.random.default_rng(seed)
    accuracy = np.repeat(traffic.accuracies, -(-requests // len(traffic.accuracies)))[:requests]
    right = (random.random(requests) < accuracy).tolist()
    # Sure answers are right more often: those of right ones are spread above, those of wrong ones below.
    confidence = np.where(right, random.beta(6, 2, requests), random.beta(2, 3, requests)).tolist()
    gaps = random.exponential(size=requests).tolist()
    mean = (np.cumsum(accuracy) / np.arange(1, requests + 1)).tolist()
    uniforms = iter(random.random(2 * requests).tolist())
    sampler = Sampler(policy(), uniforms.__next__)
    now, recent, drawn, captured, captured_right = 0.0, 0, [], 0, 0
    for number in range(requests):
        now += gaps[number] / traffic.load(number, recent)
        decision = sampler.decide("", confidence[number], now)
        recent += right[number] - (right[number - RECENT] if number >= RECENT else 0)
        captured += decision.captured
        captured_right += decision.captured and right[number]
        if decision.captured and decision.strategy is Strategy.RANDOM:
            drawn.append((right[number], decision.probability, mean[number]))
    correct, probability, truth = (np.array(column) for column in zip(*drawn, strict=True))
    return Path(correct.astype(bool), probability, truth, (captured, captured_right))


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return Wilson's interval of a share, which holds for one look."""
    share, square = right / count, NORMAL**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return middle - half, middle + half


def measure(traffic: Traffic, paths: int, requests: int, seed: int) -> tuple[dict[str, Tally], float]:
    """Return the tallies of all intervals, and the mean number of judged draws."""
    tallies = {"product's": Tally(), "Wilson, of draws": Tally(), "Wilson, of all captured": Tally()}
    draws = 0
    for number in range(paths):
        path = live(traffic, (seed, number), requests)
        draws += len(path.correct)
        looks = [*(look for look in LOOKS if look < len(path.correct)), len(path.correct)]
        found = [accuracy_sequence(path.correct[:n], path.probability[:n], error_share(ALPHA, 1)) for n in looks]
        tallies["product's"].add(_misses(found, path, looks), found[-1].high - found[-1].low)
        plain = [Interval(*wilson(int(path.correct[:n].sum()), n), 0.0, n) for n in looks]
        tallies["Wilson, of draws"].add(_misses(plain, path, looks), plain[-1].high - plain[-1].low)
        count, right = path.captured
        low, high = wilson(right, count)
        tallies["Wilson, of all captured"].add([not low <= path.truth[-1] <= high], high - low)
    return tallies, draws / paths


def _misses(found: list[Interval], path: Path, looks: list[int]) -> list[bool]:
    return [not each.low <= path.truth[n - 1] <= each.high for each, n in zip(found, looks, strict=True)]


def main() -> None:
    """Simulate and print a table in Markdown; end with 1 where the product's interval misses too often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=500, help="lives of a version in each kind of traffic")
    parser.add_argument("--requests", type=int, default=5000, help="of a life")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = Console(width=200, highlight=False)
    out.print(f"{options.paths} lives of {options.requests} requests, {ALPHA:.0%} allowed to miss at any look\n")
    out.print("| accuracy and load | interval | missed at any look | at the last | width at the last | draws |")
    out.print("|---|---|---|---|---|---|")
    held = True
    for traffic in TRAFFIC:
        tallies, draws = measure(traffic, options.paths, options.requests, options.seed)
        for name, tally in tallies.items():
            any_look, last = tally.at_any_look / options.paths, tally.at_last_look / options.paths
            out.print(
                f"| {traffic.told} | {name} | {any_look:.1%} | {last:.1%} | "
                f"{tally.width / options.paths:.3f} | {draws:.0f} |"
            )
        allowed = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / options.paths)
        held &= tallies["product's"].at_any_look / options.paths <= allowed
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
