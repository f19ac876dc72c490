"""What watching costs: a suite that is scraped and exports traces, beside one that does neither, in turn.

Counting itself is always on. CPU time per prediction is the steadier figure of the two. The load comes from this
process, which shares the machine's processors with what it measures.
"""

import argparse
import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import grpc
import uvloop
from rich.console import Console
from rich.table import Table

from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from benchmarks.images import Figures, grpc_call, measure_suite, small_images
from benchmarks.suites import Suite, running_suite
from tests.collector import running_collector

CALLERS = 8
SCRAPE_SECONDS = 5.0
"""Three times as often as Prometheus does by itself."""


@contextmanager
def scraped(port: int) -> Iterator[None]:
    """Read the metrics again and again while inside."""
    opener, end = build_opener(ProxyHandler({})), threading.Event()

    def scrape() -> None:
        while not end.wait(SCRAPE_SECONDS):
            opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10).read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


async def run(mode: str, seconds: float, rounds: int) -> dict[str, list[Figures]]:
    """Measure each suite in every round, forwards and backwards in turn."""
    results: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        collector = stack.enter_context(running_collector())
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}"}
        unseen = {f"{name}_METRICS_PORT": "0" for name in ("GATEWAY", "PREPROCESS", "INFERENCE", "TRAINER")}
        variants = {"unwatched": unseen, "scraped, 1 % traced": traced}
        variants["scraped, all traced"] = {**traced, "OTEL_TRACES_SAMPLER": "always_on"}
        suites: dict[str, Suite] = {
            name: stack.enter_context(running_suite(mode, Path(home) / name.replace(" ", "-"), **settings))
            for name, settings in variants.items()
        }
        calls = {
            name: grpc_call(GatewayServiceStub(grpc.aio.insecure_channel(f"127.0.0.1:{suite.grpc_port}")))
            for name, suite in suites.items()
        }
        for name in suites:
            if name.startswith("scraped"):
                stack.enter_context(scraped(suites[name].metrics_port))
        for number in range(rounds + 1):
            for name in suites if number % 2 else reversed(suites):
                figures = await measure_suite(suites[name], calls[name], small_images(), seconds, CALLERS)
                if number:  # the first round warms up
                    results.setdefault(name, []).append(figures)
    return {name: results[name] for name in variants}


def report(results: dict[str, list[Figures]], mode: str) -> None:
    """Print each suite's figures over those of the unwatched one, round by round."""
    table = Table(f"{mode}, gRPC x{CALLERS}", "images/s", "of unwatched", "CPU us", "of unwatched", box=None)
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
    report(uvloop.run(run(options.mode, options.seconds, options.rounds)), options.mode)


if __name__ == "__main__":
    main()
