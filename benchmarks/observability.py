"""What watching costs: a suite that is scraped and exports traces, beside one that does neither, in turn.

Once with images to predict, and once with tensors to infer: what watching adds weighs more where a request is cheap.
Counting itself is always on. CPU time per request is the steadier figure of the two. The load comes from this process,
which shares the machine's processors with what it measures.
"""

import argparse
import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import grpc
import uvloop
from rich.console import Console
from rich.table import Table

from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.open_inference import grpc_service_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from benchmarks.images import MODEL, Call, Figures, grpc_call, measure_suite, small_images
from benchmarks.suites import SERVICES, Suite, running_suite
from services.common.manifest import Manifest, PreprocessSpec
from services.common.pixels import transform
from services.preprocess.decoding import DecodeLimits, decode_image
from tests.collector import running_collector

CALLERS = 8
SCRAPE_SECONDS = 5.0
"""Three times as often as Prometheus does by itself."""


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """Read the metrics again and again while inside."""
    opener, end = build_opener(ProxyHandler({})), threading.Event()

    def scrape() -> None:
        while True:
            opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
            if end.wait(SCRAPE_SECONDS):
                break

    with ThreadPoolExecutor(1) as thread:
        scraping = thread.submit(scrape)
        try:
            yield
        finally:
            end.set()
            scraping.result()  # a suite that could not be read was not measured as it should be


def tensors() -> list[bytes]:
    """Return the tensors of the pictures, as the starter model takes them."""
    limits, spec = DecodeLimits(32 * 1024 * 1024, 64_000_000), starter_spec()
    return [transform(decode_image(image, limits), spec).tobytes() for image in small_images()]


def starter_spec() -> PreprocessSpec:
    """Return what the starter model's tensors are made by."""
    spec = Manifest.from_json((MODEL / "model.json").read_bytes(), "model.json").preprocess
    assert spec is not None
    return spec


def infer_call(stub: GRPCInferenceServiceStub) -> Call:
    """Return a call of `ModelInfer`."""
    spec = starter_spec()

    async def call(tensor: bytes) -> None:
        request = grpc_service_pb2.ModelInferRequest(model_name="cifar10", raw_input_contents=[tensor])
        request.inputs.add(name=spec.input, datatype=spec.datatype, shape=(1, *spec.shape))
        await stub.ModelInfer(request)

    return call


async def run(mode: str, seconds: float, rounds: int) -> dict[str, dict[str, list[Figures]]]:
    """Measure each suite under each load in every round, forwards and backwards in turn; return figures by load."""
    loads = {"Predict, 32x32 PNG": small_images(), "ModelInfer, a tensor of 3 KiB": tensors()}
    results: dict[str, dict[str, list[Figures]]] = {load: {} for load in loads}
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        collector = stack.enter_context(running_collector())
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}"}
        unseen = {f"{name}_METRICS_PORT": "0" for name in SERVICES}
        variants = {"unwatched": unseen, "scraped, 1 % traced": traced}
        variants["scraped, all traced"] = {**traced, "OTEL_TRACES_SAMPLER": "always_on"}
        suites: dict[str, Suite] = {
            name: stack.enter_context(running_suite(mode, Path(home) / name.replace(" ", "-"), **settings))
            for name, settings in variants.items()
        }
        calls = {}
        for name, suite in suites.items():
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{suite.grpc_port}")
            both = grpc_call(GatewayServiceStub(channel)), infer_call(GRPCInferenceServiceStub(channel))
            calls[name] = dict(zip(loads, both, strict=True))
        for name in suites:
            if name.startswith("scraped"):
                stack.enter_context(scraped(suites[name].metrics_port))
        for number in range(rounds + 1):
            for name in suites if number % 2 else reversed(suites):
                for load, items in loads.items():
                    figures = await measure_suite(suites[name], calls[name][load], items, seconds, CALLERS)
                    if number:  # the first round warms up
                        results[load].setdefault(name, []).append(figures)
    return {load: {name: figures[name] for name in variants} for load, figures in results.items()}


def report(results: dict[str, list[Figures]], title: str) -> None:
    """Print each suite's figures over those of the unwatched one, round by round."""
    table = Table(title, "requests/s", "of unwatched", "CPU us", "of unwatched", box=None)
    for name, figures in results.items():
        rate = [each.images_per_second for each in figures]
        cpu = [each.cpu_us for each in figures]
        table.add_row(
            name,
            f"{statistics.median(rate):.0f}",
            _ratio(rate, [each.images_per_second for each in results["unwatched"]]),
            f"{statistics.median(cpu):.0f}",
            _ratio(cpu, [each.cpu_us for each in results["unwatched"]]),
        )
    Console(width=140).print(table)


def _ratio(own: list[float], other: list[float]) -> str:
    ratios = sorted(one / two for one, two in zip(own, other, strict=True))
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("pipeline", "services"), default="pipeline")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each suite")
    options = parser.parse_args()
    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    for load, results in uvloop.run(run(options.mode, options.seconds, options.rounds)).items():
        report(results, f"{load} ({options.mode}, gRPC x{CALLERS})")


if __name__ == "__main__":
    main()
