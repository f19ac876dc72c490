"""Versions change places under load: new ones are published, promoted and rolled back while 16 callers go on.

Every answer must come, and must be one version's own: its pixels, its graph, its labels. Latencies while versions
change are compared with those of the same run without a change, of the model itself and of another one beside it.
"""

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import uvloop

from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.inference.v1 import lifecycle_pb2
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from benchmarks.images import small_images
from benchmarks.suites import Suite, running_suite
from benchmarks.telltale import MODEL, expected_label, red_picture, write_version

CALLERS, OTHER_CALLERS = 16, 2
PAUSE_SECONDS = 0.05
"""Between two changes, so that each meets requests in every stage."""


@dataclass
class Seen:
    """What the callers of one model met."""

    latencies: list[float] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    mixed: int = 0

    def p(self, percent: float) -> float:
        """Return a percentile of the latencies in milliseconds."""
        return float(np.percentile(self.latencies, percent)) * 1e3


async def call_until(
    done: asyncio.Event, stub: GatewayServiceStub, model: str, images: list[bytes], seen: Seen
) -> None:
    """Call one after the other, and look at each answer."""
    position = 0
    while not done.is_set():
        begin = time.perf_counter()
        try:
            response = await stub.Predict(
                gateway_pb2.PredictRequest(model=model, images=[images[position % len(images)]], top=1)
            )
        except grpc.aio.AioRpcError as error:
            seen.failed.append(f"{error.code().name}: {error.details()}")
            continue
        seen.latencies.append(time.perf_counter() - begin)
        seen.versions[response.version] = seen.versions.get(response.version, 0) + 1
        label = response.results[0].prediction.labels[0].label
        seen.mixed += model == MODEL and label != expected_label(response.version)
        position += 1


async def load(
    stub: GatewayServiceStub, changes: int, lifecycle: ModelLifecycleServiceStub | None
) -> tuple[Seen, Seen]:
    """Keep both models busy while versions change *changes* times each way, or as long without *lifecycle*."""
    done, own, other = asyncio.Event(), Seen(), Seen()
    callers = [call_until(done, stub, MODEL, [red_picture()], own) for _ in range(CALLERS)]
    callers += [call_until(done, stub, "cifar10", small_images(), other) for _ in range(OTHER_CALLERS)]
    running = [asyncio.create_task(caller) for caller in callers]
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(changes):
            if lifecycle is None:
                await asyncio.sleep(2 * PAUSE_SECONDS)
                continue
            await change(lifecycle, Path(scratch))
    done.set()
    await asyncio.gather(*running)
    return own, other


async def change(lifecycle: ModelLifecycleServiceStub, scratch: Path) -> None:
    """Publish the next version, promote it, roll back, and promote it again."""
    state = (await lifecycle.ListVersions(lifecycle_pb2.ListVersionsRequest(model=MODEL))).models[0]
    number = max(version.version for version in state.versions) + 1
    folder = await asyncio.to_thread(write_version, scratch / str(number), number)
    header = lifecycle_pb2.PublishVersionHeader(model=MODEL, manifest=(folder / "model.json").read_bytes())
    parts = [
        lifecycle_pb2.PublishVersionRequest(header=header),
        lifecycle_pb2.PublishVersionRequest(chunk=(folder / "model.onnx").read_bytes()),
    ]
    published = (await lifecycle.PublishVersion(iter(parts))).version.version
    await lifecycle.Promote(lifecycle_pb2.PromoteRequest(model=MODEL, version=published))
    await asyncio.sleep(PAUSE_SECONDS)
    await lifecycle.Rollback(lifecycle_pb2.RollbackRequest(model=MODEL))
    await asyncio.sleep(PAUSE_SECONDS)
    await lifecycle.Rollback(lifecycle_pb2.RollbackRequest(model=MODEL))


async def run(suite: Suite, changes: int) -> bool:
    """Measure one suite, print, and return whether all held that must."""
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{suite.grpc_port}") as public,
        grpc.aio.insecure_channel(f"127.0.0.1:{suite.inference_port}") as inference,
    ):
        stub, lifecycle = GatewayServiceStub(public), ModelLifecycleServiceStub(inference)
        await load(stub, 10, None)  # warms up
        steady, steady_other = await load(stub, changes, None)
        begin = time.perf_counter()
        swapped, swapped_other = await load(stub, changes, lifecycle)
        seconds = time.perf_counter() - begin
    failed = swapped.failed + swapped_other.failed
    print(
        f"{suite.mode}: {changes} swaps and {changes} roll-backs in {seconds:.1f} s under {CALLERS} + {OTHER_CALLERS} "
        f"callers; {len(swapped.latencies)} + {len(swapped_other.latencies)} answers by {len(swapped.versions)} "
        f"versions, {len(failed)} failed, {swapped.mixed} mixed"
    )
    for name, before, during in ((MODEL, steady, swapped), ("cifar10 beside it", steady_other, swapped_other)):
        print(
            f"  {name}: p50 {during.p(50):.1f} ms (steady {before.p(50):.1f}), p99 {during.p(99):.1f} ms "
            f"(steady {before.p(99):.1f}, {during.p(99) / before.p(99):.2f} times)"
        )
    for sentence in sorted(set(failed)):
        print(f"  failed: {sentence}")
    return not failed and not swapped.mixed


def main() -> None:
    """Run in both modes; end with 1 where a request was lost or an answer mixed versions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=100, help="swaps, and as many roll-backs")
    parser.add_argument("--mode", choices=("pipeline", "services"), help="only this one")
    options = parser.parse_args()
    held = True
    for mode in (options.mode,) if options.mode else ("pipeline", "services"):
        with tempfile.TemporaryDirectory() as home:
            write_version(Path(home) / "models" / MODEL / "1", 1)
            with running_suite(mode, Path(home)) as suite:
                held &= uvloop.run(run(suite, options.changes))
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
