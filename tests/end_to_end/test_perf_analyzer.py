"""The stock load generator, which nobody here wrote, measures the suite through its public port."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub

PERF = Path(sys.prefix) / "perf"

pytestmark = pytest.mark.skipif(
    not (PERF / "perf_analyzer").exists(), reason="the stock load generator is missing; `make perf-analyzer` gets it"
)


def perf_analyzer(*arguments):
    return subprocess.run(
        [PERF / "perf_analyzer", *arguments],
        env={**os.environ, "LD_LIBRARY_PATH": str(PERF)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


# Short windows of any spread: that it runs through is what is asked here, not how fast.
QUICK = ("-p", "200", "-s", "999", "-r", "10")
ONE = ("--concurrency-range", "1")
WAYS = {
    "async": ("-i", "grpc", "--async", "--concurrency-range", "4"),
    "streaming": ("-i", "grpc", "--streaming", "--concurrency-range", "4"),
    "shared memory": ("-i", "grpc", "--shared-memory", "system", *ONE),
    "batches": ("-i", "grpc", "-b", "8", *ONE),
    "a rate": ("-i", "grpc", "--request-rate-range", "50"),
    "HTTP": ("-i", "http", *ONE),
    "HTTP and shared memory": ("-i", "http", "--shared-memory", "system", *ONE),
}


def check(done):
    assert done.returncode == 0, done.stdout
    assert "infer/sec" in done.stdout
    assert "compute infer" in done.stdout, f"no server-side breakdown: {done.stdout}"
    assert "error" not in done.stdout.lower()


def test_perf_analyzer_measures_the_starter_model_at_rising_concurrency(suite):
    done = perf_analyzer("-m", "cifar10", "-i", "grpc", "-u", suite.address, "--concurrency-range", "1:8:7", *QUICK)

    check(done)
    assert [line for line in done.stdout.splitlines() if line.startswith("Concurrency: 8, throughput: ")], done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_perf_analyzer_measures_in_every_way_that_it_has(suites, way):
    suite = suites["services"]  # where every request goes through another process, too
    arguments = WAYS[way]
    address = suite.address if "grpc" in arguments else suite.url.removeprefix("http://")

    check(perf_analyzer("-m", "cifar10", "-u", address, *arguments, *QUICK))


def test_perf_analyzer_collects_metrics(suites):
    suite = suites["services"]
    wanted = ("--collect-metrics", "--metrics-url", f"127.0.0.1:{suite.ports.metrics}/metrics")

    done = perf_analyzer("-m", "cifar10", "-i", "grpc", "-u", suite.address, *wanted, *ONE, *QUICK)

    check(done)
    assert "Server Prometheus Metrics" in done.stdout


@pytest.fixture
def untraced(suites):
    """The suite in services mode, whose trace settings are the defaults again afterwards."""
    suite = suites["services"]
    yield suite
    with grpc.insecure_channel(suite.address) as channel:
        for model in ("", "cifar10"):
            request = pb.TraceSettingRequest(model_name=model)
            for name in ("trace_level", "trace_rate", "trace_count"):
                request.settings[name].Clear()  # no value: the default again
            GRPCInferenceServiceStub(channel).TraceSetting(request)


def test_perf_analyzer_has_requests_traced(untraced):
    wanted = ("--trace-level", "TIMESTAMPS", "--trace-rate", "10", "--trace-count", "3")

    done = perf_analyzer("-m", "cifar10", "-i", "grpc", "-u", untraced.address, *wanted, *ONE, *QUICK)

    check(done)
    assert len([event for event in untraced.events() if event["event"] == "trace"]) == 3
