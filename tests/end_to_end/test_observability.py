"""What operators see of a running suite: metrics on one port, and traces across its services."""

import signal
from contextlib import contextmanager

import grpc
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from aimass.open_inference import grpc_service_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from tests.collector import running_collector
from tests.end_to_end.pictures import cat
from tests.end_to_end.suite import MODES, start_suite

MODEL = "cifar10"
STAGES = {
    "aimass_gateway_stage_seconds": {"total", "preprocess", "inference"},
    "aimass_preprocess_stage_seconds": {"request", "wait", "decode"},
    "aimass_inference_stage_seconds": {"request", "queue", "compute_input", "compute_infer", "compute_output"},
}


def scrape(port):
    """Return the families by name; a series that is told twice is an error, as it is to Prometheus."""
    with httpx.Client(trust_env=False, timeout=30) as client:
        answer = client.get(f"http://127.0.0.1:{port}/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    for family in families.values():
        series = [(sample.name, *sorted(sample.labels.items())) for sample in family.samples]
        assert len(set(series)) == len(series)
    return families


def value(families, name, **labels):
    """Return the sum of the samples that have these labels."""
    samples = [sample for family in families.values() for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def predict(suite, **headers):
    with suite.client(headers=headers) as client:
        answer = client.post(f"/v1/models/{MODEL}/predict", content=cat())
    assert answer.status_code == 200
    return answer


def test_one_port_tells_the_figures_of_all_services(suite):
    before = scrape(suite.ports.metrics)
    predict(suite)
    predict(suite)
    after = scrape(suite.ports.metrics)

    def more(name, **labels):
        return value(after, name, **labels) - value(before, name, **labels)

    of_model = {"model": MODEL, "version": "1"}
    for histogram, stages in STAGES.items():
        for stage in stages:
            assert more(f"{histogram}_count", **of_model, stage=stage) == 2
            assert more(f"{histogram}_bucket", **of_model, stage=stage, le="+Inf") == 2
    for name in ("nv_inference_request_success", "nv_inference_count"):
        assert more(name, **of_model) == 2
    assert 1 <= more("nv_inference_exec_count", **of_model) <= 2
    for stage in ("request", "compute_infer"):
        assert more(f"nv_inference_{stage}_duration_us", **of_model) > 0
    assert value(after, "nv_inference_pending_request_count", **of_model) == 0
    assert value(after, "aimass_model_version_ready", **of_model) == 1
    assert more("aimass_http_responses_total", code="200") == 2
    assert more("aimass_preprocess_images_total", outcome="OK") == 2


def test_every_process_tells_its_own_figures(suite):
    services = {"gateway"} if suite.mode == "pipeline" else {"gateway", "preprocess", "inference", "trainer"}

    processes = scrape(suite.ports.metrics)["process_resident_memory_bytes"].samples

    assert {sample.labels["service"] for sample in processes} == services
    if suite.mode == "services":
        assert "nv_inference_count" in scrape(suite.ports.inference_metrics)


def test_failed_requests_are_told_by_their_reason(suite):
    before = scrape(suite.ports.metrics)
    with suite.client() as client:
        answer = client.post(f"/v2/models/{MODEL}/infer", json={"inputs": []})
    after = scrape(suite.ports.metrics)

    assert answer.status_code == 400
    name, labels = "nv_inference_request_failure", {"model": MODEL, "reason": "OTHER"}
    assert value(after, name, **labels) - value(before, name, **labels) == 1


@contextmanager
def traced_suite(mode, home, **settings):
    """A suite, and the collector that has all its spans in the end."""
    with running_collector() as collector:
        suite = start_suite(mode, home, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{collector.address}", **settings)
        try:
            suite.wait_until_ready()
            yield suite, collector
            suite.signal(signal.SIGTERM)
            assert suite.wait() == 0  # by then everything is sent
        finally:
            suite.end()


@pytest.mark.parametrize("mode", MODES)
def test_a_request_is_one_trace_across_the_services(mode, tmp_path):
    trace, parent = "7" * 32, "8" * 16
    with traced_suite(mode, tmp_path) as (suite, collector):
        predict(suite, traceparent=f"00-{trace}-{parent}-01")
        predict(suite, traceparent=f"00-{trace}-{parent}-00")  # not to be traced

    spans = [span for span in collector.spans if span.trace_id.hex() == trace]
    (root,) = (span for span in spans if span.parent_span_id.hex() == parent)
    names = {span.span_id: span.name.rpartition("/")[2] for span in spans}
    tree = sorted((names[span.parent_span_id], names[span.span_id]) for span in spans if span is not root)
    assert root.name == "POST /v1/models/{model}/predict"
    assert tree == [
        ("Classify", "compute_infer"),
        ("Classify", "compute_input"),
        ("Classify", "compute_output"),
        ("Classify", "queue"),
        ("Preprocess", "decode"),
        ("predict", "Classify"),
        ("predict", "Preprocess"),
    ]
    by_service = {names[identity]: collector.service_of[identity] for identity in names}
    inference = "aimass-gateway" if mode == "pipeline" else "aimass-inference"
    assert by_service["predict"] == "aimass-gateway"
    assert by_service["Classify"] == by_service["compute_infer"] == inference


@pytest.mark.parametrize("mode", MODES)
def test_each_request_of_a_stream_is_one_trace_across_the_services(mode, tmp_path):
    tensor = np.zeros((1, 32, 32, 3), np.uint8)
    infer = grpc_service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[tensor.tobytes()])
    infer.inputs.add(name="image", datatype="UINT8", shape=tensor.shape)
    images = gateway_pb2.PredictStreamRequest(request=gateway_pb2.PredictRequest(model=MODEL, images=[cat()]))
    with (
        traced_suite(mode, tmp_path, OTEL_TRACES_SAMPLER="always_on") as (suite, collector),
        grpc.insecure_channel(f"127.0.0.1:{suite.ports.grpc}") as channel,
    ):
        assert len(list(GatewayServiceStub(channel).PredictStream(iter([images] * 3)))) == 3
        for answer in GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([infer] * 3)):
            assert not answer.error_message

    for stream in ("aimass.gateway.v1.GatewayService/PredictStream", "inference.GRPCInferenceService/ModelStreamInfer"):
        roots = [span for span in collector.spans if span.name == f"{stream} request"]
        assert len({span.trace_id for span in roots}) == 3
        for root in roots:
            assert not root.parent_span_id
            (runs,) = (
                span for span in collector.spans if (span.name, span.trace_id) == ("compute_infer", root.trace_id)
            )
            assert runs.end_time_unix_nano <= root.end_time_unix_nano


def test_a_collector_that_is_away_disturbs_nothing(tmp_path):
    with running_collector() as collector:
        gone = collector.address
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{gone}", "OTEL_TRACES_SAMPLER": "always_on"}
    suite = start_suite("pipeline", tmp_path, **settings)
    try:
        suite.wait_until_ready()
        predict(suite)
        suite.signal(signal.SIGTERM)
        assert suite.wait() == 0
    finally:
        suite.end()
