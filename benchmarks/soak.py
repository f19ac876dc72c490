"""Whether memory stays flat: many requests, then many swaps of versions, with the resident size after each part.

The slopes are of a straight line through the second half of the parts: what a process takes while it warms up is no
growth. Requests are tensors of the telltale model over gRPC, from this process.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import numpy as np
import uvloop

from aimass.inference.v1 import lifecycle_pb2
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference import grpc_service_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from benchmarks.suites import Suite, running_suite
from benchmarks.swaps import change, new_versions
from benchmarks.telltale import MODEL, write_version

CALLERS, PARTS = 16, 10


async def send(stub: GRPCInferenceServiceStub, count: int) -> None:
    """Send *count* requests from several callers."""
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    request = grpc_service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)

    async def call(own: int) -> None:
        for _ in range(own):
            await stub.ModelInfer(request)

    await asyncio.gather(*(call(count // CALLERS) for _ in range(CALLERS)))


async def slope(suite: Suite, part: Callable[[], Awaitable[None]], steps: int) -> tuple[float, list[float]]:
    """Do *part* several times; return the bytes per step by which the suite grew, and its sizes in MiB."""
    sizes = []
    for _ in range(PARTS):
        await part()
        sizes.append(suite.resident_bytes())
    late = np.array(sizes[PARTS // 2 :], float)
    return float(np.polyfit(np.arange(len(late)) * steps, late, 1)[0]), [size / 2**20 for size in sizes]


async def run(suite: Suite, requests: int, swaps: int) -> None:
    """Measure one suite and print."""
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{suite.grpc_port}") as public,
        grpc.aio.insecure_channel(f"127.0.0.1:{suite.inference_port}") as inference,
    ):
        stub, lifecycle = GRPCInferenceServiceStub(public), ModelLifecycleServiceStub(inference)
        begin = time.perf_counter()
        per_request, sizes = await slope(suite, lambda: send(stub, requests // PARTS), requests // PARTS)
        rate = requests / (time.perf_counter() - begin)
        print(f"{suite.mode}: {requests:,} requests, {rate:.0f}/s: {per_request:+.2f} bytes per request; {_mib(sizes)}")
        with tempfile.TemporaryDirectory() as scratch:

            async def swap() -> None:
                for folder in await new_versions(lifecycle, swaps // PARTS, Path(scratch)):
                    await change(lifecycle, folder)
                    if (old := int(folder.name) - 2) > 0:  # neither the stable version nor the one before
                        await lifecycle.DeleteVersion(lifecycle_pb2.DeleteVersionRequest(model=MODEL, version=old))

            per_swap, sizes = await slope(suite, swap, swaps // PARTS)
        print(f"{suite.mode}: {swaps} swaps: {per_swap:+.0f} bytes per swap; {_mib(sizes)}")


def _mib(sizes: list[float]) -> str:
    return "MiB " + " ".join(f"{size:.0f}" for size in sizes)


def main() -> None:
    """Measure both modes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--mode", choices=("pipeline", "services"), help="only this one")
    options = parser.parse_args()
    for mode in (options.mode,) if options.mode else ("pipeline", "services"):
        with tempfile.TemporaryDirectory() as home:
            write_version(Path(home) / "models" / MODEL / "1", 1)
            with running_suite(mode, Path(home)) as suite:
                uvloop.run(run(suite, options.requests, options.swaps))


if __name__ == "__main__":
    main()
