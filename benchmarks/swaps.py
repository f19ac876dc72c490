"""Versions change places under load: new ones are published, promoted and rolled back while 16 clients go on.

Every answer must come, and must be one version's own for each of its images: its pixels, its graph, its labels. The
99th percentile of the latencies while versions change may be twice that of the same run without a change, before and
after, of the model itself and of another one beside it.
"""

import argparse
import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
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
IMAGES = (1, 3)
"""Of a client's requests to the model itself, in turn."""
PAUSE_SECONDS = 0.05
"""Between two changes, so that each meets requests in every stage."""
MOST_P99 = 2.0
"""Times the steady one."""


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

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(
            self.latencies + other.latencies,
            self.versions | other.versions,
            self.failed + other.failed,
            self.mixed + other.mixed,
        )


async def call_until(
    done: asyncio.Event, stub: GatewayServiceStub, requests: list[gateway_pb2.PredictRequest], seen: Seen
) -> None:
    """Call one after the other, and look at each answer."""
    position = 0
    while not done.is_set():
        request = requests[position % len(requests)]
        begin = time.perf_counter()
        try:
            response = await stub.Predict(request)
        except grpc.aio.AioRpcError as error:
            seen.failed.append(f"{error.code().name}: {error.details()}")
            continue
        seen.latencies.append(time.perf_counter() - begin)
        seen.versions[response.version] = seen.versions.get(response.version, 0) + 1
        labels = [result.prediction.labels[0].label for result in response.results]
        if request.model == MODEL:
            seen.mixed += labels != [expected_label(response.version)] * len(request.images)
        position += 1


async def load(address: str, changes: int, lifecycle: ModelLifecycleServiceStub | None) -> tuple[Seen, Seen]:
    """Keep both models busy while versions change *changes* times each way, or as long without *lifecycle*."""
    own_requests = [
        gateway_pb2.PredictRequest(model=MODEL, images=[red_picture()] * images, top=1) for images in IMAGES
    ]
    other_requests = [gateway_pb2.PredictRequest(model="cifar10", images=[each], top=1) for each in small_images()]
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each client
    done, own, other = asyncio.Event(), Seen(), Seen()
    async with AsyncExitStack() as stack:
        # Written before, since it would hold up the callers, which run in this process.
        folders = await new_versions(lifecycle, changes, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stubs = [
            GatewayServiceStub(await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options)))
            for _ in range(CALLERS + OTHER_CALLERS)
        ]
        callers = [call_until(done, stub, own_requests, own) for stub in stubs[:CALLERS]]
        callers += [call_until(done, stub, other_requests, other) for stub in stubs[CALLERS:]]
        running = [asyncio.create_task(caller) for caller in callers]
        for folder in folders:
            if lifecycle is None:
                await asyncio.sleep(2 * PAUSE_SECONDS)
            else:
                await change(lifecycle, folder)
        done.set()
        await asyncio.gather(*running)
    return own, other


async def new_versions(lifecycle: ModelLifecycleServiceStub | None, count: int, scratch: Path) -> list[Path]:
    """Write the versions that come next, in folders of their numbers' names; without *lifecycle*, only name them."""
    if lifecycle is None:
        return [scratch] * count
    state = (await lifecycle.ListVersions(lifecycle_pb2.ListVersionsRequest(model=MODEL))).models[0]
    first = max(version.version for version in state.versions) + 1
    return [
        await asyncio.to_thread(write_version, scratch / str(number), number) for number in range(first, first + count)
    ]


async def change(lifecycle: ModelLifecycleServiceStub, folder: Path) -> None:
    """Publish the version in *folder*, promote it, roll back, and go forward again."""
    header = lifecycle_pb2.PublishVersionHeader(model=MODEL, manifest=(folder / "model.json").read_bytes())
    parts = [
        lifecycle_pb2.PublishVersionRequest(header=header),
        lifecycle_pb2.PublishVersionRequest(chunk=(folder / "model.onnx").read_bytes()),
    ]
    published = (await lifecycle.PublishVersion(iter(parts))).version.version
    assert published == int(folder.name)  # which the pixels it takes depend on
    await lifecycle.Promote(lifecycle_pb2.PromoteRequest(model=MODEL, version=published))
    await asyncio.sleep(PAUSE_SECONDS)
    await lifecycle.Rollback(lifecycle_pb2.RollbackRequest(model=MODEL))
    await asyncio.sleep(PAUSE_SECONDS)
    await lifecycle.Rollback(lifecycle_pb2.RollbackRequest(model=MODEL))


async def run(suite: Suite, changes: int) -> bool:
    """Measure one suite, print, and return whether all held that must."""
    address = f"127.0.0.1:{suite.grpc_port}"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{suite.inference_port}") as inference:
        await load(address, 10, None)  # warms up
        before = await load(address, changes // 2, None)
        begin = time.perf_counter()
        swapped = await load(address, changes, ModelLifecycleServiceStub(inference))
        seconds = time.perf_counter() - begin
        after = await load(address, changes // 2, None)
    steady = [one + other for one, other in zip(before, after, strict=True)]
    failed = [sentence for seen in (*swapped, *steady) for sentence in seen.failed]
    print(
        f"{suite.mode}: {changes} swaps and {changes} roll-backs in {seconds:.1f} s under {CALLERS} + {OTHER_CALLERS} "
        f"clients; {len(swapped[0].latencies)} + {len(swapped[1].latencies)} answers by {len(swapped[0].versions)} "
        f"versions, {len(failed)} failed, {swapped[0].mixed} mixed"
    )
    held = not failed and not swapped[0].mixed
    for name, during, quiet in zip((MODEL, "cifar10 beside it"), swapped, steady, strict=True):
        ratio = during.p(99) / quiet.p(99)
        held &= ratio <= MOST_P99
        print(
            f"  {name}: p50 {during.p(50):.1f} ms (steady {quiet.p(50):.1f}), p99 {during.p(99):.1f} ms "
            f"(steady {quiet.p(99):.1f}, {ratio:.2f} times)"
        )
    for sentence in sorted(set(failed)):
        print(f"  failed: {sentence}")
    return held


def main() -> None:
    """Run in both modes; end with 1 where a request was lost, an answer mixed versions or latencies rose too much."""
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
