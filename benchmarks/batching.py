"""What dynamic batching keeps of the gain that bare ONNX Runtime has from larger batches; ratios from one run.

A small convolutional network, one thread for each run. In process: no sockets, no messages. Every figure is the median
of interleaved rounds, since the machine may have other things to do.
"""

import argparse
import asyncio
import math
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import onnx
import uvloop
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from services.inference.batching.batcher import Batcher, BatchOptions
from services.inference.batching.statistics import Statistics
from services.inference.engine import OnnxModel

BATCH = 16
Infer = Callable[[], Awaitable[object]]


def save_network(path: Path, width: int) -> None:
    """Write two convolutions and a wide dense layer, whose weights a larger batch reads once for all its samples."""
    random = np.random.default_rng(0)
    weights = {
        "k1": random.normal(size=(16, 3, 3, 3)),
        "k2": random.normal(size=(32, 16, 3, 3)),
        "dense": random.normal(size=(32 * 8 * 8, width)),
        "head": random.normal(size=(width, 10)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["c1"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["f"]),
        helper.make_node("MatMul", ["f", "dense"], ["d"]),
        helper.make_node("Relu", ["d"], ["r3"]),
        helper.make_node("MatMul", ["r3", "head"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)


def bare(graph: OnnxModel, batch: int, samples: int) -> float:
    """Return the samples per second of a loop around the graph."""
    array = np.ones((batch, 3, 32, 32), np.float32)
    start = time.perf_counter()
    for _ in range(samples // batch):
        graph.run({"x": array}, ["y"])
    return samples / (time.perf_counter() - start)


async def served(infer: Infer, concurrency: int, samples: int) -> tuple[float, float]:
    """Return samples per second and the 95th percentile of the latency in ms."""
    latencies: list[float] = []

    async def client() -> None:
        for _ in range(samples // concurrency):
            start = time.perf_counter()
            await infer()
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return len(latencies) / (time.perf_counter() - start), float(np.percentile(latencies, 95)) * 1000


async def measure(graph: OnnxModel, rounds: int, samples: int) -> dict[str, list[float]]:
    """Run all variants in turn, *rounds* times."""
    array = np.ones((1, 3, 32, 32), np.float32)

    def infer_by(batcher: Batcher) -> Infer:
        return lambda: batcher.infer({"x": array}, ["y"], 1, math.inf)

    batchers = {
        name: Batcher(graph.run, BatchOptions(most), Statistics()) for name, most in (("on", BATCH), ("off", 1))
    }
    figures: dict[str, list[float]] = {}
    for _ in range(rounds):
        for batch in (1, BATCH):
            figures.setdefault(f"bare {batch}", []).append(await asyncio.to_thread(bare, graph, batch, samples))
        for name, batcher in batchers.items():
            for concurrency in (1, BATCH):
                rate, p95 = await served(infer_by(batcher), concurrency, samples)
                figures.setdefault(f"{name} {concurrency}", []).append(rate)
                figures.setdefault(f"{name} {concurrency} p95", []).append(p95)
    for batcher in batchers.values():
        batcher.close()
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=160, help="of one measurement; a multiple of 16")
    parser.add_argument("--width", type=int, default=8192, help="of the dense layer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_network(path, arguments.width)
        graph = OnnxModel(path, "cpu", 1)
        bare(graph, BATCH, arguments.samples)
        figures = uvloop.run(measure(graph, arguments.rounds, arguments.samples))
    median = {name: statistics.median(values) for name, values in figures.items()}

    def ratio(name: str, other: str) -> str:
        ratios = sorted(one / two for one, two in zip(figures[name], figures[other], strict=True))
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"

    gains = {
        name: [one / two for one, two in zip(figures[more], figures[few], strict=True)]
        for name, more, few in (("bare", f"bare {BATCH}", "bare 1"), ("batcher", f"on {BATCH}", f"off {BATCH}"))
    }
    kept = statistics.median(gains["batcher"]) / statistics.median(gains["bare"])
    print_ = Console(highlight=False).print
    print_(f"bare loop, batch {BATCH} over 1: {ratio(f'bare {BATCH}', 'bare 1')}")
    print_(
        f"batcher, {BATCH} callers, on over off: {ratio(f'on {BATCH}', f'off {BATCH}')}; keeps {kept:.2f} of the gain"
    )
    print_(f"batcher, {BATCH} callers, over the bare loop at batch {BATCH}: {ratio(f'on {BATCH}', f'bare {BATCH}')}")
    print_(f"p95, {BATCH} callers, on over off: {ratio(f'on {BATCH} p95', f'off {BATCH} p95')}")
    print_(f"one caller, on over off: {ratio('on 1', 'off 1')}; p95 {ratio('on 1 p95', 'off 1 p95')}")
    print_(f"one caller, over the bare loop at batch 1: {ratio('on 1', 'bare 1')}")
    print_(f"samples/s: {', '.join(f'{name} {rate:.0f}' for name, rate in median.items() if 'p95' not in name)}")


if __name__ == "__main__":
    main()
