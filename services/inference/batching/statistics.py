"""Counters of a version, as the protocol's statistics extension defines them."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass

from aimass.open_inference import grpc_service_pb2 as pb
from services.common.metrics import Latencies


@dataclass(slots=True)
class Executions:
    """How often a batch of one size ran, and the nanoseconds that it took in all."""

    count: int = 0
    compute_input: int = 0
    compute_infer: int = 0
    compute_output: int = 0


@dataclass(frozen=True)
class BatchTimes:
    """What one execution of a batch took, in nanoseconds."""

    compute_input: int
    compute_infer: int
    compute_output: int


class Statistics:
    """Counts requests, samples and executions.

    Every successful request counts once in `queue` and in each `compute_*`, whether it waited or not: clients find
    the version that was measured by its queue count, and require the compute counts to be equal.
    """

    def __init__(self) -> None:
        self.last_inference_ms = 0
        self.inference_count = 0
        self.execution_count = 0
        self.success = Latencies()
        self.fail_ns = 0
        self.failures: Counter[str] = Counter()
        """Failed requests by the reasons of Triton's metrics."""
        self.queue = Latencies()
        self.compute_input = Latencies()
        self.compute_infer = Latencies()
        self.compute_output = Latencies()
        self.batches: defaultdict[int, Executions] = defaultdict(Executions)
        """By the samples in the batch."""

    def record_execution(self, batch_size: int, times: BatchTimes) -> None:
        """Count one run of the graph on *batch_size* samples."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.execution_count += 1
        batch = self.batches[batch_size]
        batch.count += 1
        batch.compute_input += times.compute_input
        batch.compute_infer += times.compute_infer
        batch.compute_output += times.compute_output

    def record_success(self, samples: int, total_ns: int, queue_ns: int, times: BatchTimes) -> None:
        """Count one request of *samples* that was answered."""
        self.inference_count += samples
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.compute_input.add(times.compute_input)
        self.compute_infer.add(times.compute_infer)
        self.compute_output.add(times.compute_output)

    def record_failure(self, total_ns: int, reason: str) -> None:
        """Count one request that ended in an error."""
        self.fail_ns += total_ns
        self.failures[reason] += 1


def statistics_message(name: str, number: int, statistics: Statistics) -> pb.ModelStatistics:
    """Return the contract's form of a version's counters."""
    return pb.ModelStatistics(
        name=name,
        version=str(number),
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.inference_count,
        execution_count=statistics.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(statistics.success),
            fail=pb.StatisticDuration(count=statistics.failures.total(), ns=statistics.fail_ns),
            queue=_duration(statistics.queue),
            compute_input=_duration(statistics.compute_input),
            compute_infer=_duration(statistics.compute_infer),
            compute_output=_duration(statistics.compute_output),
            cache_hit=pb.StatisticDuration(),  # no answer is kept
            cache_miss=pb.StatisticDuration(),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=pb.StatisticDuration(count=batch.count, ns=batch.compute_input),
                compute_infer=pb.StatisticDuration(count=batch.count, ns=batch.compute_infer),
                compute_output=pb.StatisticDuration(count=batch.count, ns=batch.compute_output),
            )
            for size, batch in sorted(statistics.batches.items())
        ],
    )


def _duration(latencies: Latencies) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=latencies.count, ns=latencies.ns)
