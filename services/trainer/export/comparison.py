"""Decides between two graphs of one model: which is faster here, and whether the other is as good."""

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from services.trainer.data.samples import Samples
from services.trainer.export.graph import INPUT, OUTPUT, open_graph, run_graph

MARGIN = 0.005
"""Accuracy that a smaller or faster graph may lose, as a share of the samples."""
SIGNIFICANCE = 0.05
"""Chance of taking a graph that has lost more than the margin."""
BATCH_SIZES = (1, 8, 32)
ROUNDS = 9
_ROUND_SECONDS = 0.05
_EVALUATION_BATCH = 100


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class Speed(_Figures):
    """How fast two graphs are side by side."""

    batch_size: int
    parent_milliseconds: float
    """Of one batch; the median over the rounds."""
    candidate_milliseconds: float
    ratio: float
    """Parent's time over the candidate's, in the same round; the median over the rounds."""
    ratio_low: float
    """The quarter of the rounds that was worst for the candidate lies below."""
    ratio_high: float
    """The quarter of the rounds that was best for it lies above."""


class Quality(_Figures):
    """How right two graphs are on the same samples."""

    samples: int
    parent_correct: int
    candidate_correct: int
    lost: int
    """Samples that only the parent gets right."""
    won: int
    """Samples that only the candidate gets right."""
    margin: float
    p_value: float
    """Chance of figures this good, or better, if the candidate had lost as much as the margin."""
    not_worse: bool


class Choice(_Figures):
    """Whether a candidate shall be served instead of its parent."""

    chosen: bool
    reason: str
    """One sentence with the figures that decided."""
    threads: int
    parent_bytes: int
    candidate_bytes: int
    quality: Quality
    speeds: tuple[Speed, ...]


def compare_graphs(
    parent: Path, candidate: Path, validation: Samples, *, threads: int, margin: float = MARGIN
) -> Choice:
    """Choose the graph *candidate* if it is not worse than *parent* by more than *margin*, and faster at every batch.

    Faster means that in at least three quarters of the rounds it took less time than the parent right beside it.

    Args:
        parent: Takes `image`, gives `probabilities`, as the candidate does.
        candidate: The graph in another arithmetic.
        validation: Samples that neither graph was made from.
        threads: Of both graphs.
        margin: A share of the samples, above 0.
    """
    sessions = open_graph(parent, threads), open_graph(candidate, threads)
    before, after = (
        run_graph(session, validation.images, _EVALUATION_BATCH).argmax(axis=1) == validation.labels
        for session in sessions
    )
    quality = compare_quality(before, after, margin)
    speeds = tuple(measure_speed(*sessions, validation.images, size) for size in BATCH_SIZES)
    chosen, reason = verdict(quality, speeds)
    return Choice(
        chosen=chosen,
        reason=reason,
        threads=threads,
        parent_bytes=parent.stat().st_size,
        candidate_bytes=candidate.stat().st_size,
        quality=quality,
        speeds=speeds,
    )


def verdict(quality: Quality, speeds: Sequence[Speed]) -> tuple[bool, str]:
    """Return whether the candidate is chosen, and one sentence with the figures that decide."""
    difference = 100 * (quality.candidate_correct - quality.parent_correct) / quality.samples
    accuracy = (
        f"{difference:+.2f} points of accuracy on {quality.samples} samples ({quality.lost} lost, {quality.won} won, "
        f"p {quality.p_value:.2g} against a loss of {100 * quality.margin:g} points)"
    )
    slowest = min(speeds, key=lambda speed: speed.ratio_low)
    speed = f"{slowest.ratio:.2f} times as fast at batch {slowest.batch_size}, where it gains least"
    if not quality.not_worse:
        needed = samples_needed(quality.margin)
        few = f"; {needed} samples are the fewest that can decide" if quality.samples < needed else ""
        return False, f"not chosen: {accuracy}{few}"
    if slowest.ratio_low <= 1:
        return False, f"not chosen: {speed}"
    return True, f"chosen: {accuracy}, {speed}"


def compare_quality(parent: NDArray[np.bool_], candidate: NDArray[np.bool_], margin: float = MARGIN) -> Quality:
    """Test whether a candidate is right as often as its parent, up to *margin*, on the same samples.

    Args:
        parent: Whether each sample's most probable label is the true one, (n,), n at least 1.
        candidate: The same of the candidate.
        margin: A share of the samples, above 0.
    """
    lost, won = int((parent & ~candidate).sum()), int((candidate & ~parent).sum())
    p_value = non_inferiority(lost, won, len(parent), margin)
    return Quality(
        samples=len(parent),
        parent_correct=int(parent.sum()),
        candidate_correct=int(candidate.sum()),
        lost=lost,
        won=won,
        margin=margin,
        p_value=p_value,
        not_worse=p_value <= SIGNIFICANCE,
    )


def non_inferiority(lost: int, won: int, samples: int, margin: float) -> float:
    """Return the p-value of Tango's score test against a loss of *margin* or more.

    Only the pairs that differ say something. With n samples, w won, l lost and the true difference d = -m of the
    hypothesis, z = (w - l + n m) / sqrt(n (2 q - m (1 + m))), where q is the most likely share of lost samples under
    it: the larger root of 2n q² + b q + c with b = -w - l - (2n - w + l) m and c = l m (1 + m). From: Tango,
    "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17 (1998), 891-908.
    """
    a = 2 * samples
    b = -won - lost - (2 * samples - won + lost) * margin
    c = lost * margin * (1 + margin)
    share = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    deviation = math.sqrt(samples * (2 * share - margin * (1 + margin)))
    z = (won - lost + samples * margin) / deviation
    return math.erfc(z / math.sqrt(2)) / 2


def samples_needed(margin: float = MARGIN) -> int:
    """Return how many samples `non_inferiority` needs to say anything, even where no label differs."""
    z = statistics.NormalDist().inv_cdf(1 - SIGNIFICANCE)
    return math.ceil(z * z * (1 - margin) / margin)


def measure_speed(
    parent: onnxruntime.InferenceSession,
    candidate: onnxruntime.InferenceSession,
    images: NDArray[np.uint8],
    batch_size: int,
    rounds: int = ROUNDS,
) -> Speed:
    """Time both graphs in turns, so that what else the machine does meets both.

    Args:
        parent: As the candidate; with as many threads.
        candidate: Takes `image`, gives `probabilities`.
        images: Uint8 (n, H, W, 3), repeated where they are fewer than a batch.
        batch_size: Images in one run.
        rounds: At least 2; in each, either graph runs for about `_ROUND_SECONDS`, and they take turns in being first.
    """
    batch = np.resize(images, (batch_size, *images.shape[1:]))
    sessions = (parent, candidate)
    repeats = [max(1, round(_ROUND_SECONDS / _seconds(session, batch, 1))) for session in sessions]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            times[side].append(_seconds(sessions[side], batch, repeats[side]))
    ratios = [before / after for before, after in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Speed(
        batch_size=batch_size,
        parent_milliseconds=statistics.median(times[0]) * 1000,
        candidate_milliseconds=statistics.median(times[1]) * 1000,
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
    )


def _seconds(session: Any, batch: NDArray[np.uint8], repeats: int) -> float:
    """Return the time of one run, after one that only warms up."""
    session.run([OUTPUT], {INPUT: batch})
    started = time.perf_counter()
    for _ in range(repeats):
        session.run([OUTPUT], {INPUT: batch})
    return (time.perf_counter() - started) / repeats
