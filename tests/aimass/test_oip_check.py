"""`aimass oip-check` says the truth about right and about faulty servers, and about their clients."""

import asyncio
import json
import os
import queue
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from aimass.oip_check import checking, refusals
from aimass.oip_check.metrics import default_url
from aimass.oip_check.report import document, summary
from aimass.oip_check.server import UnknownModel
from aimass.oip_check.tensors import (
    DATATYPES,
    elements_of,
    parse_shapes,
    raw_filled,
    raw_zeros,
    same_values,
    size_in_bytes,
)
from services.common.tensors import numpy_dtype
from tests.aimass import faulty_server as faults
from tests.end_to_end.suite import Ports

PERF = Path(sys.prefix) / "perf"
REFUSED = {check.id for check in refusals.CHECKS} - {"refuse-malformed"}

FAULTS = [
    (faults.NoModelConfig, {"model-config"}, "perf_analyzer"),
    (faults.TypedOutputs, {"output-is-raw"}, "perf_analyzer"),
    (faults.MissingRawEntries, {"output-raw-count"}, "perf_analyzer"),
    (faults.VersionV1, {"version-numbers", "repository-index"}, "perf_analyzer"),
    (faults.QueueNotCounted, {"statistics-queue-count"}, "perf_analyzer"),
    (faults.EmptyStatistics, {"statistics-entry"}, "perf_analyzer"),
    (faults.UnequalComputes, {"statistics-compute-counts"}, "perf_analyzer"),
    (faults.FailingStatistics, {"statistics"}, "perf_analyzer"),
    (faults.RefusesUnknownParameters, {"infer-unknown-parameter"}, "perf_analyzer and every C++ client"),
    (faults.AcceptsAnyBatch, {"refuse-batch"}, "perf_analyzer"),
    (faults.Hangs, {"infer-raw", "model-ready"}, "tritonclient"),
    (faults.ClosesStreams, {"stream-error"}, "tritonclient"),
    (faults.BareStream, {"stream-type"}, "tritonclient"),
    (faults.FaultsOfItsOwn, REFUSED, "tritonclient"),
    (faults.ForgetsIds, {"infer-id", "stream-id", "stream-error"}, "tritonclient"),
    (faults.FewWorkers, {"stream-concurrency"}, "perf_analyzer"),
    (faults.DefaultLimits, {"large-message"}, "tritonclient and perf_analyzer"),
    (faults.ListsCuda, {"cuda-shared-memory", "cuda-unregister"}, "perf_analyzer"),
    (faults.BatchInConfig, {"config-batch-dimension"}, "perf_analyzer"),
    (faults.StrangeInput, {"config-names"}, "perf_analyzer"),
    (faults.RawOnly, {"infer-typed"}, "grpcurl and clients made from the protocol's own .proto"),
    (faults.IgnoresTyped, {"refuse-mixed-contents"}, "every client"),
    (faults.NeverReady, {"server-ready"}, "Kubernetes and KServe"),
    (faults.KnowsEveryModel, {"model-ready-unknown"}, "tritonclient"),
    (faults.LoadsAnything, {"repository-load-unknown"}, "tritonclient"),
    (faults.IgnoresClassification, {"infer-classification"}, "tritonclient"),
    (faults.NotServing, {"health-check", "health-watch"}, "Kubernetes gRPC probes"),
    (faults.OddState, {"repository-index"}, "tritonclient"),
    (faults.KeepsWorkers, {"deadline", "cancel"}, "every client"),
    (faults.InputsByPosition, {"infer-input-order"}, "tritonclient"),
    (faults.NoMetrics, {"metrics"}, "perf_analyzer --collect-metrics"),
    (faults.FailingMetrics, {"metrics"}, "perf_analyzer --collect-metrics"),
    (faults.SharedMemoryWithoutEntry, {"shared-memory-output"}, "perf_analyzer"),
]


async def check(address, **options):
    """Run all checks beside the server's loop."""
    options = {"metrics_url": address.metrics_url, **options}
    return await asyncio.to_thread(checking.check_server, address, timeout=2, write=True, **options)


async def checked(fault, **options):
    async with faults.serving(fault) as address:
        return await check(address, **options)


def broken(findings):
    return {finding.id for finding in findings if finding.verdict == "breaks"}


def one(findings, id):
    return next(finding for finding in findings if finding.id == id)


def metrics_url(suite):
    return f"127.0.0.1:{suite.ports.metrics}/metrics"


@pytest.mark.parametrize("model", ["cifar10", "sums", "floats"])
def test_our_own_suite_breaks_nobody(suite, run, model):
    shown = run("oip-check", suite.address, "--model", model, "--metrics-url", metrics_url(suite), "--json")

    checks = json.loads(shown.stdout)["checks"]
    assert [each for each in checks if each["verdict"] in ("breaks", "warns")] == []
    assert shown.returncode == 0
    assert {each["id"] for each in checks if each["area"] in ("statistics", "metrics", "refusals")} <= {
        each["id"] for each in checks if each["verdict"] == "ok"
    }


def test_our_own_suite_breaks_nobody_who_writes(suite, run):
    shown = run("oip-check", suite.address, "--model", "sums", "--write", "--metrics-url", "none", "--json")

    assert json.loads(shown.stdout)["breaks"] is False, shown.stdout


async def test_a_right_server_breaks_nobody():
    findings = await checked(faults.Right)

    assert broken(findings) == set()
    assert {each.id for each in findings if each.verdict == "warns"} == set()
    assert summary(findings).endswith("nothing breaks")


async def test_the_first_ready_model_is_asked_where_none_is_named():
    findings = await checked(faults.Right)

    assert one(findings, "model-metadata").came.startswith("a FP32[-1, 4], b FP32[-1, 4] →")


@pytest.mark.parametrize(("fault", "expected", "client"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
async def test_a_fault_breaks_exactly_its_checks_and_names_the_client(fault, expected, client):
    findings = await checked(fault)

    assert broken(findings) == expected, summary(findings)
    assert any(client in one(findings, id).clients for id in expected)
    assert client in summary(findings)


async def test_a_server_that_hangs_on_wrong_requests_is_not_asked_for_ever():
    findings = await checked(faults.HangsOnWrong)

    assert broken(findings) == {"refuse-mixed-contents", "refuse-missing-input", "refuse-unknown-input"}
    assert one(findings, "refuse-unknown-input").came == "no answer in time"
    assert one(findings, "refuse-shape").came == "ModelInfer gave no answer 3 times and isn't asked again"


async def test_statistics_that_are_not_listed_are_skipped():
    findings = await checked(faults.UnlistedStatistics)

    assert broken(findings) == set()
    assert one(findings, "statistics").came.startswith("not listed; perf_analyzer then runs without")
    assert {each.verdict for each in findings if each.area == "statistics"} == {"skipped"}


async def test_metrics_that_are_not_tritons_are_a_warning():
    findings = await checked(faults.ForeignMetrics)

    assert broken(findings) == set()
    assert one(findings, "metrics").came == "1 figures, no nv_inference_*"


@pytest.mark.parametrize("text", ["", "<html>", "nv_inference_count"])
async def test_what_is_not_in_prometheus_form_is_a_warning(text):
    class Odd(faults.Right):
        metrics = (200, text)

    assert one(await checked(Odd), "metrics").verdict == "warns"


async def test_metrics_that_may_be_at_another_port_are_a_warning_and_can_be_left_out():
    usual = await checked(faults.Right, metrics_url="")
    left_out = await checked(faults.Right, metrics_url="none")

    assert default_url("127.0.0.1:8001") == "127.0.0.1:8002/metrics"
    assert one(usual, "metrics").verdict in ("warns", "ok"), "this machine may have a suite at the usual port"
    assert one(left_out, "metrics").verdict == "skipped"


async def test_exchanged_inputs_are_noticed_by_their_answer():
    finding = one(await checked(faults.InputsByPosition), "infer-input-order")

    assert finding.came == "another difference for the same inputs"


async def test_the_protocol_under_another_name_is_recognised():
    findings = await checked(faults.OtherPackage, model="sums")

    assert one(findings, "server-live").came.startswith("the service is org.pytorch.serve.grpc.openinference")


async def test_nothing_is_written_unless_it_is_allowed():
    async with faults.serving(faults.LoadsAnything) as address:
        findings = await asyncio.to_thread(checking.check_server, address, timeout=2, metrics_url="none")

    assert one(findings, "repository-load").came == "loads a model; allow it with --write"
    assert broken(findings) == set()


async def test_an_unknown_model_is_a_sentence_with_the_known_ones():
    with pytest.raises(UnknownModel, match=r"does not know the model 'dogs'.*it has sums"):
        await checked(faults.Right, model="dogs")


async def test_given_shapes_are_sent():
    findings = await checked(faults.Right, shapes={"a": (3, 4), "b": (3, 4)})

    assert broken(findings) == set()


async def test_the_document_says_all_for_each_check():
    findings = await checked(faults.TypedOutputs)

    said = json.loads(json.dumps(document("host:1", findings)))
    assert (said["address"], said["breaks"]) == ("host:1", True)
    finding = next(each for each in said["checks"] if each["id"] == "output-is-raw")
    assert finding["verdict"] == "breaks"
    assert finding["came"] == "typed contents in sum, difference"
    assert "exit code 139" in finding["clients"]["perf_analyzer"]


async def test_the_command_ends_with_1_and_says_who_breaks(run):
    async with faults.serving(faults.VersionV1) as address:
        shown = await asyncio.to_thread(run, "oip-check", address)

    assert shown.returncode == 1
    assert "perf_analyzer aborts with exit code 134: std::invalid_argument: stoll" in shown.stdout
    assert "breaks perf_analyzer (version-numbers)" in shown.stdout.splitlines()[-1]


def test_the_command_says_in_a_sentence_that_nobody_listens(run):
    shown = run("oip-check", f"127.0.0.1:{Ports.free().grpc}", "--timeout", "0.5")

    assert shown.returncode == 1
    assert "nothing that speaks gRPC answers at 127.0.0.1" in shown.stderr


@pytest.mark.parametrize("text", ["image", "image:", ":1,2", "image:1,-1"])
def test_a_shape_of_another_form_is_refused(run, text):
    shown = run("oip-check", "127.0.0.1:1", "--shape", text)

    assert shown.returncode == 1
    assert "is no shape; write input:1,3,224" in shown.stderr


def test_a_shape_is_parsed_by_its_last_colon():
    assert parse_shapes(["serving:image:1,3"]) == {"serving:image": (1, 3)}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_zeros_are_as_long_as_they_say(datatype):
    assert len(raw_zeros(datatype, (2, 3))) == size_in_bytes(datatype, (2, 3))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_value_fills_all_elements_as_numpy_would(datatype):
    raw = raw_filled(datatype, (2, 2), 1)

    if datatype == "BYTES":
        assert elements_of(raw) == [b"1"] * 4
    else:
        assert raw == np.ones((2, 2), numpy_dtype(datatype)).tobytes()


@pytest.mark.parametrize(
    ("datatype", "one", "other", "same"),
    [
        ("FP32", np.float32([1, np.nan]), np.float32([1.0001, np.nan]), True),
        ("FP32", np.float32([1]), np.float32([2]), False),
        ("INT32", np.int32([1000]), np.int32([1001]), False),
        ("FP64", np.float64([1]), np.float64([1, 1]), False),
    ],
)
def test_values_are_compared_by_their_datatype(datatype, one, other, same):
    assert same_values(datatype, one.tobytes(), other.tobytes()) is same


@pytest.mark.parametrize(
    ("raw", "elements"),
    [(b"", []), (b"\1\0\0\0x\0\0\0\0", [b"x", b""]), (b"\2\0\0\0x", None), (b"\1\0", None)],
)
def test_strings_are_split_by_their_lengths(raw, elements):
    assert elements_of(raw) == elements


def tensors():
    given = [triton.InferInput(name, [1, 4], "FP32") for name in faults.INPUTS]
    for tensor in given:
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    return given


async def with_client(fault, ask):
    """Let the stock client ask a faulty server."""

    def run(address):
        with triton.InferenceServerClient(address) as client:
            return ask(client)

    async with faults.serving(fault) as address:
        return await asyncio.to_thread(run, address)


@pytest.mark.parametrize("fault", [faults.TypedOutputs, faults.MissingRawEntries])
async def test_tritonclient_cannot_read_what_is_not_raw(fault):
    answer = await with_client(fault, lambda client: client.infer("sums", tensors()))

    with pytest.raises(ValueError, match="cannot reshape array of size 0"):
        answer.as_numpy("difference")


async def test_tritonclient_raises_without_a_model_config():
    with pytest.raises(InferenceServerException, match="not implemented"):
        await with_client(faults.NoModelConfig, lambda client: client.get_model_config("sums"))


async def test_tritonclient_is_told_a_fault_of_the_server_for_its_own():
    with pytest.raises(InferenceServerException) as raised:
        await with_client(faults.FaultsOfItsOwn, lambda client: client.infer("sums", tensors()[:1]))

    assert raised.value.status() == "StatusCode.INTERNAL"


def stream(client, *requests):
    """Return what the callback of a stream is given for *requests*, until it ends."""
    given = queue.Queue()
    client.start_stream(lambda result, error: given.put((result, error)))
    for request in requests:
        client.async_stream_infer("sums", request)
    outcomes = [given.get(timeout=5)]
    client.stop_stream()
    return outcomes + list(given.queue)


async def test_tritonclient_cannot_read_bare_answers_on_a_stream():
    async def requests():
        yield {"model_name": "sums", "inputs": tensors()}

    # The synchronous client waits for ever on what it can't decode, so it is the asynchronous one that is asked.
    async with faults.serving(faults.BareStream) as address, triton_aio.InferenceServerClient(address) as client:
        with pytest.raises(AttributeError, match="error_message"):
            await anext(client.stream_infer(requests()))


async def test_tritonclient_loses_the_stream_that_an_error_closes():
    right = await with_client(faults.Right, lambda client: stream(client, tensors()[:1], tensors()))
    closed = await with_client(faults.ClosesStreams, lambda client: stream(client, tensors()[:1], tensors()))

    assert [result is not None for result, _ in right] == [False, True]
    assert [result is not None for result, _ in closed] == [False]


@pytest.mark.skipif(
    not (PERF / "perf_analyzer").exists(), reason="the stock load generator is missing; `make perf-analyzer` gets it"
)
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (faults.Right, 0, "compute infer"),
        (faults.UnlistedStatistics, 0, "Concurrency: 1, throughput"),
        (faults.NoModelConfig, 99, "failed to get model config"),
        (faults.TypedOutputs, -11, ""),
        (faults.MissingRawEntries, -11, ""),
        (faults.VersionV1, -6, "stoll"),
        (faults.QueueNotCounted, 99, "failed to find the requested model version"),
        (faults.EmptyStatistics, 99, "failed to find the requested model version"),
        (faults.UnequalComputes, -6, "Server side statistics compute counts must be the same."),
        (faults.FailingStatistics, 99, ""),
        (faults.RefusesUnknownParameters, 99, "unknown parameters"),
        (faults.StrangeInput, 99, "no metadata found for input tensor"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_perf_analyzer_ends_as_is_said(fault, code, words):
    async with faults.serving(fault) as address:
        done = await asyncio.to_thread(perf_analyzer, "-m", "sums", "-i", "grpc", "-u", address)

    assert done.returncode == code, done.stdout
    assert words in done.stdout


@pytest.mark.skipif(
    not (PERF / "perf_analyzer").exists(), reason="the stock load generator is missing; `make perf-analyzer` gets it"
)
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (faults.Right, 0, "Server Prometheus Metrics"),
        (faults.ForeignMetrics, 0, "Unable to parse 'nv_gpu_utilization' metric"),
        (faults.NoMetrics, 99, "Metrics endpoint"),
        (faults.FailingMetrics, 99, "Metrics endpoint"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_perf_analyzer_ends_as_is_said_where_it_collects_metrics(fault, code, words):
    async with faults.serving(fault) as address:
        wanted = ("-u", address, "--collect-metrics", "--metrics-url", address.metrics_url)
        done = await asyncio.to_thread(perf_analyzer, "-m", "sums", "-i", "grpc", *wanted)

    assert done.returncode == code, done.stdout
    assert words in done.stdout


def perf_analyzer(*arguments):
    # Short windows of any spread: how it ends is asked here, not how fast.
    return subprocess.run(
        [PERF / "perf_analyzer", *arguments, "-p", "200", "-s", "999", "-r", "3"],
        env={**os.environ, "LD_LIBRARY_PATH": str(PERF)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
