"""Figures of a process in Prometheus form: cheap to count, put into words when somebody asks."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.samples import Sample

from services.common.channels import host_and_port
from services.common.errors import SettingsError

log = structlog.get_logger(__name__)

BOUNDS_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds of the buckets of all latencies: where all are the same, histograms of several processes add up."""
_BOUNDS_NS = tuple(round(bound * 1e9) for bound in BOUNDS_SECONDS)
SOURCE_SECONDS = 1.0
"""How long another process may take to tell its figures."""
SOURCE_BYTES = 16 * 1024 * 1024
"""How much it may tell: some thousand versions of models."""
CLIENT_SECONDS = 10.0
"""How long the endpoint waits for a client that neither sends nor reads: each holds a thread."""


class Latencies:
    """How often something happened and how long it took: the sum, and how many in each bucket.

    `prometheus_client.Histogram` takes six times as long to count one event, 1.5 us of what a request may cost.
    """

    __slots__ = ("buckets", "count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0
        self.buckets = [0] * (len(_BOUNDS_NS) + 1)

    def add(self, ns: int) -> None:
        """Count one event of *ns* nanoseconds."""
        self.count += 1
        self.ns += ns
        self.buckets[bisect_left(_BOUNDS_NS, ns)] += 1

    def cumulated(self) -> list[tuple[str, float]]:
        """Return, for each upper bound as Prometheus writes it, how many events took no longer."""
        total = 0
        cumulated = []
        for bound, count in zip((*map(str, BOUNDS_SECONDS), "+Inf"), self.buckets, strict=True):
            total += count
            cumulated.append((bound, float(total)))
        return cumulated


def add_latencies(family: HistogramMetricFamily, labels: Sequence[str], latencies: Latencies) -> None:
    """Add one series to *family*, in seconds."""
    family.add_metric(labels, latencies.cumulated(), latencies.ns / 1e9)


class StageLatencies(Collector):
    """Latencies of the stages that requests to a version of a model go through."""

    def __init__(self, name: str, text: str, stages: Sequence[str], knows: Callable[[str, int], bool]) -> None:
        """Begin with none.

        Args:
            name: Of the metric, in seconds.
            text: What it tells.
            stages: Their names.
            knows: Whether a model has a version: they come and go, and memory is finite.
        """
        self._name, self._text, self._stages = name, text, stages
        self._knows = knows
        self._versions: dict[tuple[str, int], tuple[Latencies, ...]] = {}

    def of(self, model: str, version: int) -> tuple[Latencies, ...]:
        """Return the latencies of each stage, in their order, to add to; not from several threads at once."""
        return self._versions.get((model, version)) or self._begin(model, version)

    def _begin(self, model: str, version: int) -> tuple[Latencies, ...]:
        # Forgotten here, not by who asks: there may be nobody who does, or two at once in threads of their own.
        for gone in [known for known in self._versions if not self._knows(*known)]:
            del self._versions[gone]
        begun = self._versions[model, version] = tuple(Latencies() for _ in self._stages)
        return begun

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram of what is known now."""
        family = HistogramMetricFamily(self._name, self._text, labels=("model", "version", "stage"))
        for (model, version), stages in list(self._versions.items()):
            if self._knows(model, version):
                for stage, latencies in zip(self._stages, stages, strict=True):
                    add_latencies(family, (model, str(version), stage), latencies)
        yield family


class LabelledCounts(Collector):
    """Counts by the values of some labels."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: defaultdict[tuple[str, ...], int] = defaultdict(int)

    def add(self, labels: tuple[str, ...], more: int = 1) -> None:
        """Count *more* events."""
        self._counts[labels] += more

    def collect(self) -> Iterator[Metric]:
        """Yield the counter."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family


class ProcessFigures(Collector):
    """What every process tells: memory, CPU time, garbage collection, calls; a label tells it from its siblings'."""

    def __init__(self, service: str, *further: Collector) -> None:
        self._service = service
        own = ProcessCollector(registry=None), PlatformCollector(registry=None), GCCollector(CollectorRegistry())
        self._collectors = (*own, *further)

    def collect(self) -> Iterator[Metric]:
        """Yield it all, each sample with the name of the service."""
        for collector in self._collectors:
            for metric in collector.collect():
                samples = (each._replace(labels={**each.labels, "service": self._service}) for each in metric.samples)
                yield _family_of(metric, samples)


class Sources(Collector):
    """What other processes of the suite tell, so that one address is enough to see all of them."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    def collect(self) -> Iterator[Metric]:
        """Ask all of them at once, and yield their figures and who answered."""
        if not self._addresses:
            return
        up = GaugeMetricFamily("aimass_metrics_source_up", "Whether a process told its figures.", labels=["source"])
        with ThreadPoolExecutor(len(self._addresses)) as threads:
            for address, metrics in zip(self._addresses, threads.map(_read, self._addresses), strict=True):
                up.add_metric([address], 0 if metrics is None else 1)
                yield from metrics or ()
        yield up


def _read(address: str) -> list[Metric] | None:
    ends = time.monotonic() + SOURCE_SECONDS
    try:
        with closing(http.client.HTTPConnection(address, timeout=SOURCE_SECONDS)) as connection:
            connection.connect()
            connection.sock = _Socket(connection.sock, ends)
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            text = answer.read(SOURCE_BYTES)
            if answer.status != http.client.OK:
                raise ValueError(f"status {answer.status}")
            if answer.length or answer.read(1):
                raise ValueError("cut off, or too long")
        return list(text_string_to_metric_families(text.decode()))
    except (OSError, ValueError, IndexError, http.client.HTTPException) as error:  # IndexError: a flaw of the parser
        log.debug("no metrics from a sibling", source=address, reason=str(error))
        return None


class _Socket(socket.socket):
    """Receives until a deadline: a timeout is for each read alone, and what drips never exceeds it."""

    def __init__(self, connected: socket.socket, ends: float) -> None:
        super().__init__(fileno=connected.detach())
        self._ends = ends

    def recv_into(self, *args: Any) -> int:
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)
        return super().recv_into(*args)


class _Merged(CollectorRegistry):
    """All collectors as one: figures of the same name, from several processes, become one family."""

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for metric in super().collect():
            family = families.setdefault(metric.name, _family_of(metric, ()))
            family.samples.extend(metric.samples)
        return families.values()


def _family_of(metric: Metric, samples: Iterable[Sample]) -> Metric:
    """Return a family of its own: some collectors keep theirs, and yield it again."""
    family = Metric(metric.name, metric.documentation, metric.type)
    family.samples.extend(samples)
    return family


class _ServerV6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    """Gives up a client that is silent: the library's own handler would wait without an end."""

    timeout = CLIENT_SECONDS

    def handle(self) -> None:
        with suppress(TimeoutError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def metrics_endpoint(host: str, port: int, collectors: Iterable[Collector]) -> Iterator[None]:
    """Answer `GET /metrics` in threads of its own while inside; port 0 means not at all.

    Raises:
        SettingsError: The address is taken or not ours.
    """
    if not port:
        yield
        return
    registry = _Merged()
    for collector in collectors:
        registry.register(collector)
    kind = _ServerV6 if ":" in host else ThreadingWSGIServer
    try:
        server = make_server(host, port, make_wsgi_app(registry), kind, _Handler)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host_and_port(host, port)}: is another suite running? ({error.strerror})"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
