"""What the inference service keeps of bare ONNX Runtime where the model is the work: ratios from one run.

A convolutional network of several milliseconds per sample and 12 KiB of input. Its best batch is sought with the bare
loop, then rounds of the bare loop in this process and of `ModelInfer` at that batch over gRPC on loopback take turns,
with the same session options and threads. The callers run in this process, so what they cost is taken from the same
processors and counts against the service.
"""

import argparse
import asyncio
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import onnxruntime as ort
import uvloop
from onnx import TensorProto, helper, numpy_helper

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from benchmarks.callers import rate
from benchmarks.suites import running_inference
from services.inference.engine import OnnxModel

MODEL, SIDE = "network", 32
BATCHES = (1, 2, 4, 8, 16, 32)
CALLERS = 3
"""One request runs, one waits, and one is on its way."""
LOOKS = 4
"""At each batch, to find the best."""
Run = Callable[[np.ndarray], object]


def save_network(path: Path) -> None:
    """Write five convolutions and a dense layer: 600 million multiplications for a picture of 32x32."""
    random = np.random.default_rng(0)
    channels, strides = (3, 64, 128, 256, 256, 512), (1, 1, 1, 2, 2)
    weights, nodes, last = {}, [], "x"
    for layer, stride in enumerate(strides):
        before, after = channels[layer : layer + 2]
        weights[f"k{layer}"] = random.normal(size=(after, before, 3, 3)) / np.sqrt(9 * before)
        nodes += [
            helper.make_node("Conv", [last, f"k{layer}"], [f"c{layer}"], pads=[1] * 4, strides=[stride] * 2),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
    weights["head"] = random.normal(size=(channels[-1], 10))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), path)


def pictures(batch: int) -> np.ndarray:
    """Return noise for a batch."""
    return np.random.default_rng(1).normal(size=(batch, 3, SIDE, SIDE)).astype(np.float32)


def bare(run: Run, batch: int, seconds: float) -> float:
    """Return the samples per second of a loop around the graph."""
    array, runs = pictures(batch), 0
    begin = time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        run(array)
        runs += 1
    return runs * batch / passed


async def served(stub: GRPCInferenceServiceStub, batch: int, callers: int, seconds: float) -> float:
    """Return the samples per second that *callers* get who each send *batch* at once."""
    array = pictures(batch)
    request = pb.ModelInferRequest(model_name=MODEL, raw_input_contents=[array.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=array.shape)
    return await rate(stub, request, batch, callers, seconds)


async def measure(
    address: str, loops: dict[str, Run], batch: int, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Run all variants in turn, *rounds* times and once more before to warm up."""
    figures: dict[str, list[float]] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for number in range(rounds + 1):
            rates = {name: await asyncio.to_thread(bare, run, batch, seconds) for name, run in loops.items()}
            rates["served"] = await served(stub, batch, CALLERS, seconds)
            rates["gathered"] = await served(stub, 1, 2 * batch, seconds)
            for name, rate in rates.items() if number else ():
                figures.setdefault(name, []).append(rate)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--threads", type=int, default=0, help="of one run; 0 means one per processor")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL / "1" / "model.onnx"
        save_network(path)
        graph = OnnxModel(path, "cpu", options.threads)
        defaults = ort.SessionOptions()
        defaults.intra_op_num_threads = options.threads
        session = ort.InferenceSession(path, defaults, providers=["CPUExecutionProvider"])
        loops: dict[str, Run] = {
            "bare": lambda array: graph.run({"x": array}, ["y"]),
            "bare with spinning threads": lambda array: session.run(["y"], {"x": array}),
        }
        # The best of several looks, since anything else that the machine does only makes one slower.
        looks = [[bare(loops["bare"], batch, options.seconds / 2) for batch in BATCHES] for _ in range(LOOKS)]
        rates = dict(zip(BATCHES, map(max, zip(*looks, strict=True)), strict=True))
        best = max(batch for batch, rate in rates.items() if rate > 0.99 * max(rates.values()))
        (path.parent.parent / "config.pbtxt").write_text(f"max_batch_size: {best}\n")
        with running_inference(Path(folder), options.threads) as address:
            figures = uvloop.run(measure(address, loops, best, options.rounds, options.seconds))

    def ratio(name: str, other: str) -> str:
        ratios = sorted(one / two for one, two in zip(figures[name], figures[other], strict=True))
        return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"

    print(
        f"{platform.machine()}, {os.cpu_count()} processors, onnxruntime {ort.__version__}; {options.rounds} rounds of "
        f"{options.seconds:g} s; the callers' own cost counts against the service"
    )
    print("bare loop, samples/s by batch: " + ", ".join(f"{batch}: {rate:.0f}" for batch, rate in rates.items()))
    print(f"ModelInfer of {best} samples from {CALLERS} callers, over the bare loop: {ratio('served', 'bare')}")
    print(f"ModelInfer of 1 sample from {2 * best} callers, over the bare loop: {ratio('gathered', 'bare')}")
    print(
        f"bare loop with ONNX Runtime's own options, over the bare loop: {ratio('bare with spinning threads', 'bare')}"
    )
    print("samples/s: " + ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in figures.items()))


if __name__ == "__main__":
    main()
