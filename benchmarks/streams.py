"""What a thousand open streams cost the unary calls beside them: latencies with and without, in turn, in one run.

Each stream was answered once and is then held open, as `perf_analyzer --streaming` holds one for each request at a
time. Streams and callers come from this process.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
import uvloop

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from benchmarks.suites import Suite, running_suite
from benchmarks.telltale import MODEL, write_version

CONNECTIONS, CALLERS = 4, 8


def tensor_request() -> pb.ModelInferRequest:
    """Return a request of one picture."""
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    return request


async def unary_latencies(stub: GRPCInferenceServiceStub, seconds: float) -> list[float]:
    """Call in closed loops, and return the latencies in ms."""
    request, latencies, end = tensor_request(), [], time.perf_counter() + seconds

    async def call() -> None:
        while (begin := time.perf_counter()) < end:
            await stub.ModelInfer(request)
            latencies.append((time.perf_counter() - begin) * 1e3)

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    return latencies


async def run(suite: Suite, streams: int, rounds: int, seconds: float) -> None:
    """Measure one suite and print."""
    options = [("grpc.use_local_subchannel_pool", 1)]  # or else all channels would share one connection
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{suite.grpc_port}", options=options) for _ in range(CONNECTIONS + 1)
    ]
    stubs = [GRPCInferenceServiceStub(channel) for channel in channels]
    figures: dict[str, list[float]] = {"without": [], "with": []}
    await unary_latencies(stubs[0], seconds)  # warms up
    for _ in range(rounds):
        figures["without"] += await unary_latencies(stubs[0], seconds)
        held = [stubs[1 + number % CONNECTIONS].ModelStreamInfer() for number in range(streams)]
        await asyncio.gather(*(stream.write(tensor_request()) for stream in held))
        answers = await asyncio.gather(*(stream.read() for stream in held))
        assert all(answer.infer_response.model_name == MODEL for answer in answers)
        figures["with"] += await unary_latencies(stubs[0], seconds)
        assert not any(stream.done() for stream in held)
        for stream in held:
            stream.cancel()
    for name, latencies in figures.items():
        p50, p99 = np.percentile(latencies, [50, 99])
        print(
            f"{suite.mode}, {name} {streams} open streams: {len(latencies)} calls, p50 {p50:.2f} ms, p99 {p99:.2f} ms"
        )
    for channel in channels:
        await channel.close()


def main() -> None:
    """Measure both modes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--mode", choices=("pipeline", "services"), help="only this one")
    options = parser.parse_args()
    for mode in (options.mode,) if options.mode else ("pipeline", "services"):
        with tempfile.TemporaryDirectory() as home:
            write_version(Path(home) / "models" / MODEL / "1", 1)
            with running_suite(mode, Path(home)) as suite:
                uvloop.run(run(suite, options.streams, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
