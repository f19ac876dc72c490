"""Counters of all loaded versions in Prometheus form: under Triton's names, and as histograms of our own."""

from collections.abc import Iterator
from operator import attrgetter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.metrics import add_latencies
from services.common.traffic import READY
from services.inference.batching.statistics import Statistics
from services.inference.models.served_model import ServedModel
from services.inference.models.serving import ModelServer

LABELS = ("model", "version")
STAGES = {
    "request": attrgetter("success"),
    "queue": attrgetter("queue"),
    "compute_input": attrgetter("compute_input"),
    "compute_infer": attrgetter("compute_infer"),
    "compute_output": attrgetter("compute_output"),
}
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Why a request failed, as Triton tells them apart: not let run, given up, failed on by the graph, anything else."""
_COUNTS = {
    "nv_inference_request_success": ("Requests that were answered.", attrgetter("success.count")),
    "nv_inference_count": ("Samples that were answered.", attrgetter("inference_count")),
    "nv_inference_exec_count": ("Runs of the graph, each on a batch.", attrgetter("execution_count")),
}


class ModelFigures(Collector):
    """Reads the counters that `ModelStatistics` tells too, at the moment somebody asks.

    Triton's counters don't end in `_total`, as Prometheus wants of a counter; so they have no type here, which changes
    nothing for queries.
    """

    def __init__(self, models: ModelServer) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of each loaded version; those of a version that is unloaded are gone."""
        models = self._models.models()
        loaded = [
            ((model.name, str(number)), version) for model in models for number, version in list(model.loaded.items())
        ]
        yield from _triton_metrics([(labels, version.statistics) for labels, version in loaded])
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests that wait to run.", labels=LABELS)
        stages = HistogramMetricFamily(
            "aimass_inference_stage_seconds", "Time of answered requests in each stage.", labels=(*LABELS, "stage")
        )
        batches = CounterMetricFamily(
            "aimass_inference_batches", "Runs of the graph by samples in the batch.", labels=(*LABELS, "samples")
        )
        for labels, version in loaded:
            pending.add_metric(labels, version.batcher.waiting_requests)
            for stage, latencies in STAGES.items():
                add_latencies(stages, (*labels, stage), latencies(version.statistics))
            for samples, executions in sorted(version.statistics.batches.items()):
                batches.add_metric((*labels, str(samples)), executions.count)
        yield from (pending, stages, batches)
        yield from _traffic_metrics(models)


def _traffic_metrics(models: list[ServedModel]) -> Iterator[Metric]:
    ready = GaugeMetricFamily("aimass_model_version_ready", "Whether a version can serve.", labels=LABELS)
    generation = GaugeMetricFamily("aimass_traffic_generation", "Changes of a model's traffic.", labels=["model"])
    shadow = CounterMetricFamily(
        "aimass_shadow_requests", "What became of requests that a shadow was offered.", labels=(*LABELS, "outcome")
    )
    times = HistogramMetricFamily(
        "aimass_shadow_graph_seconds",
        "Time of compared requests in the graph of either version.",
        labels=(*LABELS, "graph"),
    )
    for model in models:
        generation.add_metric([model.name], model.traffic.generation)
        for number, version in sorted(model.versions.items()):
            ready.add_metric([model.name, str(number)], version.state == READY)
        if model.shadow is not None:
            counts = model.shadow.counts
            for outcome in ("agreed", "disagreed", "failed", "dropped", "skipped"):
                shadow.add_metric([model.name, str(counts.version), outcome], getattr(counts, outcome))
            for graph, latencies in (("shadow", counts.shadow), ("stable", counts.stable)):
                add_latencies(times, [model.name, str(counts.version), graph], latencies)
    yield from (ready, generation, shadow, times)


def _triton_metrics(versions: list[tuple[tuple[str, str], Statistics]]) -> Iterator[Metric]:
    for name, (text, value) in _COUNTS.items():
        yield _untyped(name, text, [(labels, value(statistics)) for labels, statistics in versions])
    failures = Metric("nv_inference_request_failure", "Requests that failed.", "unknown")
    for (model, version), statistics in versions:
        for reason in REASONS:
            labels = {"model": model, "version": version, "reason": reason}
            failures.add_sample(failures.name, labels, statistics.failures[reason])
    yield failures
    for stage, latencies in STAGES.items():
        yield _untyped(
            f"nv_inference_{stage}_duration_us",
            f"Microseconds of answered requests: {stage}.",
            [(labels, latencies(statistics).ns // 1000) for labels, statistics in versions],
        )


def _untyped(name: str, text: str, samples: list[tuple[tuple[str, str], float]]) -> Metric:
    metric = Metric(name, text, "unknown")
    for labels, value in samples:
        metric.add_sample(name, dict(zip(LABELS, labels, strict=True)), value)
    return metric
