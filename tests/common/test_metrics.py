"""Figures in Prometheus form, counted by the suite and read by the library that wrote the format down."""

import math
import socket
from contextlib import contextmanager
from urllib.request import ProxyHandler, build_opener

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from services.common.errors import SettingsError
from services.common.metrics import (
    BOUNDS_SECONDS,
    LabelledCounts,
    LabelledLatencies,
    Latencies,
    ProcessFigures,
    Sources,
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
    latencies = LabelledLatencies("stage_seconds", "Time.", ("model", "stage"))
    counts = LabelledCounts("calls", "Calls.", ("code",))
    latencies.add(("m", "queue"), 2_000_000)
    latencies.add(("m", "queue"), 2_000_000_000)
    counts.add(("OK",))
    counts.add(("OK",), 2)

    with telling(latencies, counts) as port:
        found = scrape(port)

    labels = (("model", "m"), ("stage", "queue"))
    assert found["stage_seconds_count", labels] == 2
    assert found["stage_seconds_sum", labels] == pytest.approx(2.002)
    assert found["stage_seconds_bucket", (("le", "0.0025"), *labels)] == 1
    assert found["stage_seconds_bucket", (("le", "+Inf"), *labels)] == 2
    assert found["calls_total", (("code", "OK"),)] == 3


def test_series_that_matter_no_more_are_forgotten():
    known = {"old", "new"}
    latencies = LabelledLatencies("stage_seconds", "Time.", ("model",), lambda labels: labels[0] in known)
    latencies.add(("old",), 1)
    latencies.add(("new",), 1)

    with telling(latencies) as port:
        known.remove("old")
        scrape(port)
        known.add("old")
        found = scrape(port)

    assert {labels for name, labels in found if name == "stage_seconds_count"} == {(("model", "new"),)}


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


def test_a_source_that_is_no_metrics_endpoint_is_away():
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and never answers
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with telling(Sources([address])) as port:
            found = scrape(port)

    assert found == {("aimass_metrics_source_up", (("source", address),)): 0}


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
