"""The stock load generator, which nobody here wrote, measures the suite through its public port."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_perf_analyzer_measures_the_starter_model_at_every_concurrency(suite):
    # Short windows of any spread: that it runs through is what is asked here, not how fast.
    quick = ("-p", "200", "-s", "999", "-r", "3")

    done = perf_analyzer("-m", "cifar10", "-i", "grpc", "-u", suite.address, "--concurrency-range", "1:8", *quick)

    assert done.returncode == 0, done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("Concurrency: 8, throughput: ")], done.stdout
    assert "compute infer" in done.stdout, "no server-side breakdown"
