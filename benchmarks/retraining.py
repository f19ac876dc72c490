"""What those who wait for answers notice of training beside them, on the same machine, at half of its load.

Requests come at even times, half as many a second as the suite can answer, and each latency counts from the time at
which its request was due, so that a stall is felt by all who come meanwhile. A refit of the last layer and a training
run by the recipe `quick` take turns, each compared with the quiet times before and after it. The load comes from this
process, which shares the machine's processors with what it measures.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import uvloop
from rich.console import Console

from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.starter import MODEL
from aimass.trainer.v1 import training_pb2
from aimass.trainer.v1.training_pb2_grpc import TrainingServiceStub
from benchmarks.images import grpc_call, measure_suite, small_images
from benchmarks.suites import Suite, running_suite

if TYPE_CHECKING:  # exists only for type checkers
    from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceAsyncStub
    from aimass.trainer.v1.training_pb2_grpc import TrainingServiceAsyncStub

CALLERS = 8
DATASET = "cifar10-slice"
MOST_RATIO = 2.0
"""Of a latency beside training, of that without."""
LOOK_SECONDS = 0.2
Run = training_pb2.Run
ENDED = (Run.STATE_SUCCEEDED, Run.STATE_FAILED, Run.STATE_CANCELLED)


def refit() -> training_pb2.CreateRunRequest:
    """Return the request of a new last layer for the starter."""
    options = json.dumps({"source": f"{MODEL}@1", "dataset": DATASET})
    return training_pb2.CreateRunRequest(refit=training_pb2.Refit(options_json=options))


def quick() -> training_pb2.CreateRunRequest:
    """Return the request of a model that is trained from scratch, for longer than anybody measures."""
    overrides = json.dumps({"dataset": DATASET, "epochs": 1000})
    return training_pb2.CreateRunRequest(training=training_pb2.Training(recipe="quick", overrides_json=overrides))


BESIDE: Mapping[str, Callable[[], training_pb2.CreateRunRequest]] = {"a refit": refit, "a `quick` run": quick}


@dataclass(frozen=True)
class Waited:
    """Latencies of one stretch of time."""

    seconds: tuple[float, ...]
    failed: int

    def p(self, percent: float) -> float:
        """Return a percentile in milliseconds."""
        return float(np.percentile(self.seconds, percent)) * 1e3


class Visitors:
    """Those who send pictures at even times.

    Args:
        stub: Of the suite.
        per_second: Requests.
    """

    def __init__(self, stub: "GatewayServiceAsyncStub", per_second: float) -> None:
        self._stub = stub
        self._gap = 1 / per_second
        self._images: Iterator[bytes] = cycle(small_images())

    async def come(self, until: asyncio.Event) -> Waited:
        """Send requests for as long as *until* is not set, and wait for all answers."""
        latencies: list[float] = []
        failed = 0

        async def ask(image: bytes, due: float) -> None:
            nonlocal failed
            try:
                await self._stub.Predict(gateway_pb2.PredictRequest(model=MODEL, images=[image]))
            except grpc.aio.AioRpcError:
                failed += 1
            else:
                latencies.append(time.perf_counter() - due)

        due = time.perf_counter()
        async with asyncio.TaskGroup() as asking:
            while not until.is_set():
                asking.create_task(ask(next(self._images), due))
                due += self._gap
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
        return Waited(tuple(latencies), failed)

    async def quiet(self, seconds: float) -> Waited:
        """Return what they wait while nothing is trained."""
        until = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, until.set)
        return await self.come(until)

    async def beside(
        self, runs: "TrainingServiceAsyncStub", request: training_pb2.CreateRunRequest, most: float
    ) -> Waited:
        """Return what they wait from when a run's process starts to its end, or for *most* seconds.

        Raises:
            RuntimeError: The run failed.
        """
        run = (await runs.CreateRun(request)).run
        while run.state == Run.STATE_QUEUED:
            await asyncio.sleep(LOOK_SECONDS)
            run = (await runs.GetRun(training_pb2.GetRunRequest(id=run.id))).run
        until = asyncio.Event()
        coming = asyncio.create_task(self.come(until))
        deadline = time.monotonic() + most
        while run.state not in ENDED and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            run = (await runs.GetRun(training_pb2.GetRunRequest(id=run.id))).run
        until.set()
        waited = await coming
        if run.state not in ENDED:
            with contextlib.suppress(grpc.aio.AioRpcError):  # it has come to its end meanwhile
                await runs.CancelRun(training_pb2.CancelRunRequest(id=run.id))
        while run.state not in ENDED:
            await asyncio.sleep(LOOK_SECONDS)
            run = (await runs.GetRun(training_pb2.GetRunRequest(id=run.id))).run
        if run.state == Run.STATE_FAILED:
            raise RuntimeError(f"run {run.id} failed: {run.state_reason}")
        return waited


@dataclass(frozen=True)
class Compared:
    """A run, and the quiet times around it."""

    before: Waited
    beside: Waited
    after: Waited

    def ratio(self, percent: float) -> float:
        """Return how many times as long they wait beside the run."""
        return self.beside.p(percent) / statistics.mean((self.before.p(percent), self.after.p(percent)))


async def measure(suite: Suite, rounds: int, seconds: float) -> tuple[float, dict[str, list[Compared]]]:
    """Return the requests per second, and what was found in each round."""
    results: dict[str, list[Compared]] = {name: [] for name in BESIDE}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{suite.grpc_port}") as channel:
        stub: GatewayServiceAsyncStub = GatewayServiceStub(channel)
        runs: TrainingServiceAsyncStub = TrainingServiceStub(channel)
        for _ in range(2):  # the first one warms up
            full = await measure_suite(suite, grpc_call(stub), small_images(), seconds / 2, CALLERS)
        visitors = Visitors(stub, full.images_per_second / 2)
        for _ in range(rounds):
            before = await visitors.quiet(seconds)
            for name, request in BESIDE.items():
                beside = await visitors.beside(runs, request(), 4 * seconds)
                after = await visitors.quiet(seconds)
                results[name].append(Compared(before, beside, after))
                before = after
    return full.images_per_second / 2, results


def report(results: dict[str, list[Compared]], out: Console) -> bool:
    """Print a row for each kind of run, and return whether those who wait were spared."""
    out.print("| beside | p50 ms quiet | beside | times | p99 ms quiet | beside | times | answers beside | failed |")
    out.print("|---|---|---|---|---|---|---|---|---|")
    held = True
    for name, compared in results.items():
        cells = []
        for percent in (50, 99):
            quiet = statistics.median(each.p(percent) for one in compared for each in (one.before, one.after))
            beside = statistics.median(one.beside.p(percent) for one in compared)
            ratios = sorted(one.ratio(percent) for one in compared)
            cells.append(
                f"{quiet:.2f} | {beside:.2f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
            held &= statistics.median(ratios) <= MOST_RATIO
        failed = sum(each.failed for one in compared for each in (one.before, one.beside, one.after))
        held &= not failed
        count = sum(len(one.beside.seconds) for one in compared)
        out.print(f"| {name} | {' | '.join(cells)} | {count} | {failed} |")
    return held


def main() -> None:
    """Measure and print; end with 1 where a request failed, or training is felt too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", choices=("pipeline", "services"), nargs="+", default=["pipeline", "services"])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a quiet time; four times as long beside a run")
    options = parser.parse_args()
    out, held = Console(width=200, highlight=False), True
    for mode in options.modes:
        with tempfile.TemporaryDirectory() as home, running_suite(mode, Path(home)) as suite:
            per_second, results = uvloop.run(measure(suite, options.rounds, options.seconds))
        out.print(
            f"\n{mode}, {per_second:.0f} requests/s; medians and, in brackets, the least and the most of rounds\n"
        )
        held &= report(results, out)
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
