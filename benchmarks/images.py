"""Image bytes -> label: the gateway in both modes beside the bare in-process loop, as ratios from one run.

The bare loop decodes, transforms and runs the graph in as many threads as the preprocess service has, with no server
in between. Every figure is the median of interleaved rounds. The load comes from this process, which shares the
machine's processors with what it measures: CPU time per image is the comparable figure, images per second are not
what a machine of its own would give.
"""

import argparse
import asyncio
import io
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import httpx
import numpy as np
import uvloop
from PIL import Image
from rich.console import Console
from rich.table import Table

from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.starter import STARTER
from benchmarks.suites import Suite, running_suite
from services.common.manifest import Manifest
from services.common.pixels import transform
from services.inference.engine import OnnxModel
from services.preprocess.decoding import DecodeLimits, decode_image

MODEL = STARTER / "cifar10" / "1"
SAMPLES = Path(__file__).parent.parent / "gateway" / "page" / "samples"
Call = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Figures:
    """One measurement."""

    images_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """CPU time per image of the measured side alone."""


def small_images() -> list[bytes]:
    """Return real 32x32 pictures as PNG: the load is all overhead."""
    return [path.read_bytes() for path in sorted(SAMPLES.glob("*.png"))]


def photos() -> list[bytes]:
    """Return the same pictures as JPEG of 500x375, the size of a photo on the web: decoding weighs more."""
    return [_as_photo(data) for data in small_images()]


def _as_photo(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


def measure_bare(images: list[bytes], seconds: float, threads: int) -> Figures:
    """Decode, transform and run in *threads* threads of this process."""
    manifest = Manifest.from_json((MODEL / "model.json").read_bytes(), "model.json")
    graph = OnnxModel(MODEL / "model.onnx", "cpu", 0)
    limits = DecodeLimits(32 * 1024 * 1024, 64_000_000)
    spec = manifest.preprocess
    assert spec is not None
    latencies: list[list[float]] = [[] for _ in range(threads)]
    end = time.perf_counter() + seconds

    def work(own: list[float]) -> None:
        position = 0
        while (begin := time.perf_counter()) < end:
            tensor = transform(decode_image(images[position % len(images)], limits), spec)
            graph.run({spec.input: tensor[np.newaxis]}, ["probabilities"])
            own.append(time.perf_counter() - begin)
            position += 1

    cpu = time.process_time()
    workers = [threading.Thread(target=work, args=(own,)) for own in latencies]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return _figures([each for own in latencies for each in own], seconds, time.process_time() - cpu)


async def measure_suite(suite: Suite, call: Call, images: list[bytes], seconds: float, concurrency: int) -> Figures:
    """Call in *concurrency* closed loops."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def loop(position: int) -> None:
        while (begin := time.perf_counter()) < end:
            await call(images[position % len(images)])
            latencies.append(time.perf_counter() - begin)
            position += 1

    cpu = suite.cpu_seconds()
    await asyncio.gather(*(loop(start) for start in range(concurrency)))
    return _figures(latencies, seconds, suite.cpu_seconds() - cpu)


def _figures(latencies: list[float], seconds: float, cpu: float) -> Figures:
    count = len(latencies)
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return Figures(count / seconds, float(p50), float(p99), cpu / count * 1e6)


def grpc_call(stub: GatewayServiceStub) -> Call:
    """Return a call of `Predict`."""

    async def call(image: bytes) -> None:
        await stub.Predict(gateway_pb2.PredictRequest(model="cifar10", images=[image]))

    return call


def http_call(client: httpx.AsyncClient) -> Call:
    """Return a call of the HTTP interface."""

    async def call(image: bytes) -> None:
        (await client.post("/v1/models/cifar10/predict", content=image)).raise_for_status()

    return call


async def run(seconds: float, rounds: int) -> dict[tuple[str, str], list[Figures]]:
    """Measure every cell in each round, in turn forwards and backwards."""
    results: dict[tuple[str, str], list[Figures]] = {}
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        suites = [stack.enter_context(running_suite(mode, Path(home) / mode)) for mode in ("pipeline", "services")]
        cells: list[tuple[str, str, Callable[[], Awaitable[Figures]]]] = []
        for load, images in (("32x32 PNG", small_images()), ("500x375 JPEG", photos())):
            cells.append(
                (load, "bare loop", lambda images=images: asyncio.to_thread(measure_bare, images, seconds, threads))
            )
            for suite in suites:
                stub = GatewayServiceStub(grpc.aio.insecure_channel(f"127.0.0.1:{suite.grpc_port}"))
                client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{suite.http_port}", timeout=30.0)
                for name, call, concurrency in (
                    ("gRPC", grpc_call(stub), 1),
                    ("gRPC", grpc_call(stub), 8),
                    ("HTTP", http_call(client), 8),
                ):
                    label = f"{suite.mode}, {name} x{concurrency}"
                    cells.append(
                        (
                            load,
                            label,
                            lambda s=suite, c=call, i=images, n=concurrency: measure_suite(s, c, i, seconds, n),
                        )
                    )
        for number in range(rounds + 1):
            for load, label, measure in cells if number % 2 else reversed(cells):
                figures = await measure()
                if number:  # the first round warms up
                    results.setdefault((load, label), []).append(figures)
    return {(load, label): results[load, label] for load, label, _ in cells}


def report(results: dict[tuple[str, str], list[Figures]], seconds: float, rounds: int) -> None:
    """Print medians, and ratios to the bare loop."""
    out = Console()
    out.print(
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}, "
        f"grpcio {version('grpcio')}; medians of {rounds} rounds of {seconds:g} s",
        highlight=False,
    )
    for load in dict.fromkeys(load for load, _ in results):
        table = Table(load, "images/s", "of bare", "p50 ms", "p99 ms", "CPU us", "of bare", box=None)
        bare = _median(results[load, "bare loop"])
        for (own, label), figures in results.items():
            if own != load:
                continue
            median = _median(figures)
            table.add_row(
                label,
                f"{median.images_per_second:.0f}",
                f"{median.images_per_second / bare.images_per_second:.2f}",
                f"{median.p50_ms:.2f}",
                f"{median.p99_ms:.2f}",
                f"{median.cpu_us:.0f}",
                f"{median.cpu_us / bare.cpu_us:.2f}",
            )
        out.print()
        out.print(table)


def _median(figures: list[Figures]) -> Figures:
    columns = zip(*((f.images_per_second, f.p50_ms, f.p99_ms, f.cpu_us) for f in figures), strict=True)
    return Figures(*(statistics.median(column) for column in columns))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each cell")
    options = parser.parse_args()
    report(uvloop.run(run(options.seconds, options.rounds)), options.seconds, options.rounds)


if __name__ == "__main__":
    main()
