"""Figures in Prometheus form, counted by the suite and read by the library that wrote the format down."""

import math
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier, Event
from urllib.request import ProxyHandler, build_opener

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from services.common import metrics
from services.common.errors import SettingsError
from services.common.metrics import (
    BOUNDS_SECONDS,
    LabelledCounts,
    Latencies,
    ProcessFigures,
    Sources,
    StageLatencies,
    metrics_endpoint,
)

OPENER = build_opener(ProxyHandler({}))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def scrape(port):
    """Return the samples by name and labels, as Prometheus reads them; twice the same is an error."""
    with OPENER.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = list(text_string_to_metric_families(answer.read().decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


@contextmanager
def telling(*collectors):
    port = free_port()
    with metrics_endpoint("127.0.0.1", port, collectors):
        yield port


@given(st.lists(st.integers(0, 2 * 10**11), max_size=50))
def test_each_event_is_in_the_buckets_of_all_bounds_that_it_keeps(durations):
    latencies = Latencies()

    for duration in durations:
        latencies.add(duration)

    expected = [sum(duration <= bound * 1e9 for duration in durations) for bound in (*BOUNDS_SECONDS, math.inf)]
    assert [count for _, count in latencies.cumulated()] == expected
    assert (latencies.count, latencies.ns) == (len(durations), sum(durations))


def test_latencies_and_counts_are_told_by_their_labels():
    latencies = StageLatencies("stage_seconds", "Time.", ("queue", "run"), lambda *_: True)
    counts = LabelledCounts("calls", "Calls.", ("code",))
    for took in (2_000_000, 2_000_000_000):
        queue, _ = latencies.of("m", 3)
        queue.add(took)
    counts.add(("OK",))
    counts.add(("OK",), 2)

    with telling(latencies, counts) as port:
        found = scrape(port)

    labels = (("model", "m"), ("stage", "queue"), ("version", "3"))
    assert found["stage_seconds_count", labels] == 2
    assert found["stage_seconds_sum", labels] == pytest.approx(2.002)
    assert found["stage_seconds_bucket", (("le", "0.0025"), *labels)] == 1
    assert found["stage_seconds_bucket", (("le", "+Inf"), *labels)] == 2
    assert found["calls_total", (("code", "OK"),)] == 3


def versions_told(latencies):
    (family,) = latencies.collect()
    return {sample.labels["version"] for sample in family.samples}


def test_a_version_that_is_gone_is_told_no_more():
    known = {1, 2}
    latencies = StageLatencies("stage_seconds", "Time.", ("run",), lambda _, version: version in known)
    latencies.of("m", 1)
    latencies.of("m", 2)

    known.remove(1)

    assert versions_told(latencies) == {"2"}


def test_versions_that_are_gone_leave_nothing_where_nobody_scrapes():
    known = set()
    latencies = StageLatencies("stage_seconds", "Time.", ("run",), lambda _, version: version in known)
    for version in range(100):
        known.add(version)
        latencies.of("m", version)
        known.discard(version - 1)

    known.update(range(99))  # those that are still held would be told

    assert versions_told(latencies) == {"98", "99"}


def test_two_who_ask_at_once_may_both_find_a_version_gone():
    both = Barrier(2, timeout=30)

    def knows(_model, _version):
        both.wait()
        return False

    latencies = StageLatencies("stage_seconds", "Time.", ("run",), knows)
    latencies.of("m", 1)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: versions_told(latencies), range(2))) == [set(), set()]


def test_a_client_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(metrics._Handler, "timeout", 0.01)

    with telling() as port, socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no end of it

        assert client.recv(1) == b""


def test_several_processes_are_told_as_one_and_who_is_away_is_named():
    one, other = ProcessFigures("one", LabelledCounts("calls", "Calls.", ("code",))), ProcessFigures("other")
    away = f"127.0.0.1:{free_port()}"

    with telling(other) as behind, telling(one, Sources([f"127.0.0.1:{behind}", away])) as port:
        found = scrape(port)

    assert {labels for name, labels in found if name == "process_cpu_seconds_total"} == {
        (("service", "one"),),
        (("service", "other"),),
    }
    assert found["aimass_metrics_source_up", (("source", f"127.0.0.1:{behind}"),)] == 1
    assert found["aimass_metrics_source_up", (("source", away),)] == 0


@contextmanager
def source(answer, *, drips=False):
    """The address of one that sends *answer* to the first who asks, and then drips for as long as it is asked."""
    over = Event()

    def serve():
        client, _ = listener.accept()
        with client, suppress(ConnectionError):
            client.recv(65536)
            client.sendall(answer)
            while drips and not over.wait(0.01):
                client.sendall(b"#")

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        served = threads.submit(serve)
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
        served.result(30)


def told_of(address):
    """Whether the figures of a source are told, and nothing else but that."""
    with telling(Sources([address])) as port:
        found = scrape(port)
    up = found.pop(("aimass_metrics_source_up", (("source", address),)))
    assert found == ({("calls_total", ()): 1} if up else {})
    return bool(up)


OK, FIGURES = b"HTTP/1.1 200 OK\r\n", b"calls_total 1\n"


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (OK + b"\r\n" + FIGURES, True),
        (OK + b"\r\n" + FIGURES + b"#", False),  # a byte more than it may be
        (OK + b"Content-Length: 15\r\n\r\n" + FIGURES + b"#", False),
        (OK + b"Content-Length: 14\r\n\r\n" + FIGURES, True),
        (OK + b"Content-Length: 14\r\n\r\n" + FIGURES[:-1], False),  # cut off
        (OK + b"Transfer-Encoding: chunked\r\n\r\ne\r\n" + FIGURES + b"\r\n0\r\n\r\n", True),
        (OK + b"\r\n<html>\n", False),
        (OK + b'\r\na{x="", =""} 1', False),
        (b"HTTP/1.1 404 Not Found\r\n\r\n" + FIGURES, False),
        (b"220 mail.example ESMTP\r\n", False),
    ],
)
def test_only_a_whole_answer_of_figures_counts(monkeypatch, answer, counts):
    monkeypatch.setattr(metrics, "SOURCE_BYTES", len(FIGURES))

    with source(answer) as address:
        assert told_of(address) is counts


@pytest.mark.parametrize("begun", [b"", OK, OK + b"\r\n" + FIGURES])
def test_a_source_that_drips_is_given_up(monkeypatch, begun):
    monkeypatch.setattr(metrics, "SOURCE_SECONDS", 0.1)

    with source(begun, drips=True) as address:
        assert not told_of(address)


@pytest.mark.parametrize("address", ["localhost:port", "not a host:1", f"{'x' * 64}:1"])
def test_a_source_that_cannot_be_is_away(address):
    assert not told_of(address)


def test_a_source_that_is_mute_is_away():
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and never answers
        assert not told_of(f"127.0.0.1:{mute.getsockname()[1]}")


def test_an_address_of_ipv6_is_listened_on():
    port = free_port()
    with metrics_endpoint("::1", port, ()), OPENER.open(f"http://[::1]:{port}/metrics", timeout=10) as answer:
        assert answer.status == 200


def test_port_0_means_no_endpoint():
    with metrics_endpoint("127.0.0.1", 0, [LabelledCounts("calls", "Calls.", ())]):
        pass  # nothing to connect to: no port was chosen


def test_a_taken_port_is_refused_with_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}"), telling_on(port):
            pass


def telling_on(port):
    return metrics_endpoint("127.0.0.1", port, [])


def test_the_port_is_free_again_afterwards():
    port = free_port()
    for _ in range(2):
        with metrics_endpoint("127.0.0.1", port, [LabelledCounts("calls", "Calls.", ())]):
            scrape(port)
