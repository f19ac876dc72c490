"""How long a model takes for a batch, measured on this machine."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from services.common.errors import InvalidInput

BATCH_SIZES = (1, 32)
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch")

_BATCHES = 64


class BatchLatency(BaseModel):
    """Figures for one batch size."""

    model_config = ConfigDict(frozen=True)

    batch_size: int
    runs: int
    median_milliseconds: float
    p95_milliseconds: float
    """Of the runs, 95 % were faster."""
    images_per_second: float
    """Over all runs, one after another."""
    cpu_seconds_per_image: float
    """Of all threads of this process."""


class Latency(BaseModel):
    """Figures for one model on one machine."""

    model_config = ConfigDict(frozen=True)

    processor: str
    cores: int
    """That this process may use."""
    threads: int
    """Of the arithmetic."""
    software: dict[str, str]
    warm_up: int
    """Runs before those that count, at each batch size."""
    batches: tuple[BatchLatency, ...]


def measure_latency(
    run: Callable[[NDArray[np.uint8]], object],
    images: NDArray[np.uint8],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    threads: int = 0,
    seconds: float = 2.0,
    least_runs: int = 30,
    warm_up: int = 5,
    packages: Sequence[str] = PACKAGES,
) -> Latency:
    """Time *run* on batches of *images* at each of *batch_sizes*.

    Args:
        run: Answers a batch (size, height, width, 3) before it returns.
        images: Real ones, (n, height, width, 3); used again from the first where a batch needs more.
        batch_sizes: Images per call.
        threads: That *run* uses, to be noted; 0 is one per core.
        seconds: How long each batch size is measured, where that gives more than *least_runs*.
        least_runs: How often each batch size is measured at least.
        warm_up: Runs before those that count.
        packages: Whose versions are noted, where they are installed.

    Raises:
        InvalidInput: There are no images, or a batch size or the runs are below 1.
    """
    if not len(images) or min(batch_sizes, default=0) < 1 or least_runs < 1:
        raise InvalidInput(
            f"latency of {len(images)} images at batch sizes {list(batch_sizes)} in {least_runs} runs cannot be "
            "measured; give at least one of each"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Latency(
        processor=processor_name(),
        cores=cores,
        threads=threads or cores,
        software=software_versions(packages),
        warm_up=warm_up,
        batches=tuple(_measure(run, images, size, seconds, least_runs, warm_up) for size in batch_sizes),
    )


def processor_name(information: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the processor calls itself, else the machine's architecture."""
    if information.exists():
        for line in information.read_text().splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name" and name.strip():
                return name.strip()
    return platform.processor() or platform.machine()


def software_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those *packages* that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _measure(
    run: Callable[[NDArray[np.uint8]], object],
    images: NDArray[np.uint8],
    size: int,
    seconds: float,
    least_runs: int,
    warm_up: int,
) -> BatchLatency:
    # Other images each time: the processor should not have them in its caches.
    count = min(_BATCHES, max(1, len(images) // size))
    batches = [images[np.arange(turn * size, (turn + 1) * size) % len(images)] for turn in range(count)]
    for turn in range(warm_up):
        run(batches[turn % len(batches)])
    durations: list[float] = []
    started, cpu_started = time.perf_counter(), time.process_time()
    while len(durations) < least_runs or time.perf_counter() - started < seconds:
        batch = batches[len(durations) % len(batches)]
        before = time.perf_counter()
        run(batch)
        durations.append(time.perf_counter() - before)
    cpu = time.process_time() - cpu_started
    return BatchLatency(
        batch_size=size,
        runs=len(durations),
        median_milliseconds=float(np.median(durations) * 1e3),
        p95_milliseconds=float(np.percentile(durations, 95) * 1e3),
        images_per_second=size * len(durations) / sum(durations),
        cpu_seconds_per_image=cpu / (size * len(durations)),
    )
