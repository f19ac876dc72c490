"""The Open Inference Protocol over HTTP, byte by byte: every datatype, every way to get it wrong."""

import asyncio
import gzip
import json
import math
import shutil
import zlib

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference import model_config_pb2
from gateway.compression import chosen_encoding
from gateway.control_json import document_of, index_documents, load_request, log_request, trace_request
from gateway.inference_http import JSON_WEIGHT
from gateway.inference_json import Wanted, format_response, parse_request
from services.common.errors import InvalidInput
from services.common.traffic import routing_share
from tests.end_to_end.slow import Slow
from tests.end_to_end.suite import MAX_BODY_BYTES, MIB, start_suite

HEADER = "Inference-Header-Content-Length"
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
MAX_BODIES_BYTES = 40 * MIB
CANARY_SHARE = 0.5


@pytest.fixture(scope="module")
def echoes(save_graph, tmp_path_factory):
    """A suite with a model for each datatype, `echo_FP32` and so on, that answers with what it is sent.

    A further one, `split`, has two versions between which its traffic is split.
    """
    home = tmp_path_factory.mktemp("home")
    for datatype, kind in ONNX_TYPES.items():
        graph = save_graph(
            [helper.make_node("Identity", ["sent"], ["got"])],
            [helper.make_tensor_value_info("sent", kind, ["batch", 2])],
            [helper.make_tensor_value_info("got", kind, ["batch", 2])],
        )
        folder = home / "models" / f"echo_{datatype}" / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(graph.read_bytes())
    split = home / "models" / "split"
    for version in (1, 2):
        shutil.copytree(home / "models" / "echo_FP32" / "1", split / str(version))
    traffic = {"generation": 1, "stable_version": 1, "canary_version": 2, "canary_share": CANARY_SHARE}
    (split / "traffic.json").write_text(json.dumps(traffic))
    suite = start_suite("pipeline", home, GATEWAY_MAX_BODIES_BYTES=str(MAX_BODIES_BYTES))
    try:
        suite.wait_until_ready()
        yield suite
    finally:
        suite.end()


@pytest.fixture
def client(echoes):
    with echoes.client() as client:
        yield client
    assert echoes.new_errors() == []


def document(datatype, /, **fields):
    return {"inputs": [{"name": "sent", "datatype": datatype, "shape": [2, 2]} | fields]}


def infer(client, datatype, content, **headers):
    content = json.dumps(content) if isinstance(content, dict) else content
    return client.post(f"/v2/models/echo_{datatype}/infer", content=content, headers=headers)


def infer_binary(client, datatype, raw, size=None, **fields):
    size = len(raw) if size is None else size
    text = json.dumps(document(datatype, parameters={"binary_data_size": size}) | fields).encode()
    return infer(client, datatype, text + raw, **{HEADER: str(len(text))})


def data_of(response):
    assert response.status_code == 200, response.text
    return response.json()["outputs"][0]["data"]


def sentence_of(response):
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    return response.json()["error"]


def limits(datatype):
    info = np.iinfo(datatype.lower())
    return [int(info.min), int(info.max), 0, 1]


VALUES = {datatype: limits(datatype) for datatype in ONNX_TYPES if "INT" in datatype} | {
    "BOOL": [True, False, False, True],
    "FP32": [0.1, -0.0, 1e-45, 3.4028234663852886e38],
    "FP64": [0.1, 5e-324, -1.7976931348623157e308, 2],
    "BYTES": ["", "grün", '"\\\n', "猫"],
}


@pytest.mark.parametrize("datatype", VALUES)
def test_values_pass_as_json_flat_or_nested(client, datatype):
    values = VALUES[datatype]

    flat = data_of(infer(client, datatype, document(datatype, data=values)))
    nested = data_of(infer(client, datatype, document(datatype, data=[values[:2], values[2:]])))

    expected = np.float32(values).tolist() if datatype == "FP32" else values
    assert flat == nested == expected
    assert [type(each) for each in flat] == [type(each) if datatype != "FP64" else float for each in expected]


@pytest.mark.parametrize("datatype", [each for each in ONNX_TYPES if each != "BYTES"])
def test_values_pass_as_binary_bit_for_bit(client, datatype):
    size = {"BOOL": 1, "FP16": 2, "FP32": 4, "FP64": 8}.get(datatype) or int(datatype.lstrip("UINT")) // 8
    raw = bytes([1, 0, 0, 1]) if datatype == "BOOL" else np.random.default_rng(0).bytes(4 * size)

    response = infer_binary(client, datatype, raw, parameters={"binary_data_output": True})

    length = int(response.headers[HEADER])
    described = json.loads(response.content[:length])["outputs"][0]
    assert response.headers["content-type"] == "application/octet-stream"
    assert described["parameters"] == {"binary_data_size": len(raw)}
    assert response.content[length:] == raw


def packed(*elements):
    return b"".join(len(each).to_bytes(4, "little") + each for each in elements)


def test_strings_pass_as_binary(client):
    raw = packed(b"one", b"", b"\0", "ü".encode())

    response = infer_binary(client, "BYTES", raw, parameters={"binary_data_output": True})

    assert response.content[int(response.headers[HEADER]) :] == raw


def test_strings_that_are_not_utf_8_have_no_json_form():
    response = pb.ModelInferResponse(model_name="m", raw_output_contents=[packed(b"\xff")])
    response.outputs.add(name="got", datatype="BYTES", shape=[1])

    body, json_size = format_response(response, Wanted(binary=True))

    assert body[json_size:] == packed(b"\xff")
    with pytest.raises(InvalidInput, match="output 'got' holds bytes that are not UTF-8; ask infer for binary_data"):
        format_response(response, Wanted())


def test_half_precision_has_no_json_form_in_either_direction(client):
    asked = infer(client, "FP16", document("FP16", data=[1, 2, 3, 4]))
    answered = infer_binary(client, "FP16", bytes(8))
    brain = infer(client, "FP16", document("BF16", data=[1, 2, 3, 4]))

    assert [each.status_code for each in (asked, answered, brain)] == [400] * 3
    assert "is FP16, which JSON cannot say; send it to infer as binary data" in sentence_of(asked)
    assert "output 'got' is FP16, which JSON cannot say; ask infer for binary_data" in sentence_of(answered)
    assert "is BF16, which JSON cannot say" in sentence_of(brain)


def test_values_that_are_no_finite_numbers_pass_as_triton_writes_them(client):
    response = infer(client, "FP32", document("FP32", data=[math.nan, math.inf, -math.inf, 1.5]))

    assert response.content.endswith(b'"data":[NaN,Infinity,-Infinity,1.5]}]}')


@pytest.mark.parametrize("each", [True, False])
def test_an_output_may_be_wanted_otherwise_than_the_rest(client, each):
    content = document("FP32", data=[1, 2, 3, 4]) | {
        "parameters": {"binary_data_output": not each},
        "outputs": [{"name": "got", "parameters": {"binary_data": each}}],
    }

    assert (HEADER in infer(client, "FP32", content).headers) is each


def test_a_large_tensor_passes_as_json(client):
    values = np.random.default_rng(0).normal(size=32 * 2).astype(np.float32)
    padding = " " * MIB

    text = json.dumps(document("FP32", shape=[32, 2], data=values.tolist())) + padding

    assert data_of(infer(client, "FP32", text)) == values.tolist()


@pytest.mark.parametrize(
    ("datatype", "body", "shape", "answer"),
    [
        ("FP32", np.float32([1, 2]).tobytes(), [1, 2], np.float32([1, 2]).tobytes()),
        ("UINT8", bytes(6), [3, 2], bytes(6)),
    ],
)
def test_a_raw_body_is_the_data_of_the_one_input(client, datatype, body, shape, answer):
    response = infer(client, datatype, body, **{HEADER: "0"})

    length = int(response.headers[HEADER])
    assert json.loads(response.content[:length])["outputs"][0]["shape"] == shape
    assert response.content[length:] == answer


@pytest.mark.parametrize(
    ("datatype", "body", "words"),
    [
        ("FP32", bytes(7), "holds 7 bytes; send 0 for shape [0, 2] of FP32"),
        ("FP32", b"", "batch"),
        ("BYTES", b"one", "shape [0, 2]"),
    ],
)
def test_a_raw_body_of_another_size_is_refused(client, datatype, body, words):
    response = infer(client, datatype, body, **{HEADER: "0"})

    assert response.status_code == 400
    assert words in sentence_of(response)


def test_a_raw_body_cannot_be_several_inputs(suite):
    with suite.client() as client:
        response = client.post("/v2/models/sums/infer", content=bytes(16), headers={HEADER: "0"})

    assert response.status_code == 400
    assert "model 'sums' takes inputs ['a', 'b'], and only a model of one input takes a raw body" in sentence_of(
        response
    )


TEXT = json.dumps(document("FP32", data=[1, 2, 3, 4]))
MALFORMED = {
    "empty": (b"", {}, "the body is empty"),
    "not JSON": (b"image", {}, "the request is not JSON"),
    "JSON cut off": (TEXT[:-3], {}, "the request is not JSON"),
    "no object": (b"[1]", {}, "the request is a list; send a JSON object"),
    "deep": (b"[" * 100_000, {}, "recursion limit exceeded"),
    "long number": (b'{"id": ' + b"9" * 10_000 + b"}", {}, "number out of range"),
    "half a surrogate": (b'{"id": "\\ud800"}', {}, "the request is not JSON"),
    "header no number": (TEXT, {HEADER: "many"}, "is 'many', and the body has"),
    "header negative": (TEXT, {HEADER: "-1"}, "is '-1', and the body has"),
    "header too long": (TEXT, {HEADER: "9999"}, "is '9999', and the body has"),
    "header too short": (TEXT, {HEADER: "20"}, "the request is not JSON"),
    "bytes behind": (TEXT + "abc", {HEADER: str(len(TEXT))}, "goes on for 3 bytes after the last input"),
    "no inputs": (b"{}", {}, "'inputs' is missing; give a list"),
    "inputs no list": (b'{"inputs": 1}', {}, "'inputs' is 1; give a list"),
    "input no object": (b'{"inputs": [7]}', {}, "input 0 is 7; give an object"),
    "no name": (b'{"inputs": [{}]}', {}, "input 0: 'name' is missing; give a string"),
    "id no string": ({"id": 5}, {}, "'id' is 5; give a string"),
    "parameters no object": ({"parameters": []}, {}, "'parameters' is a list; give an object"),
    "parameter null": ({"parameters": {"mine": None}}, {}, "parameter 'mine' is null"),
    "parameter huge": ({"parameters": {"mine": 2**64}}, {}, "parameter 'mine' is 18446744073709551616"),
    "binary output no truth": ({"parameters": {"binary_data_output": 1}}, {}, "'binary_data_output' is 1"),
    "output no object": ({"outputs": ["got"]}, {}, 'output 0 is "got"; give an object'),
    "unknown output": ({"outputs": [{"name": "x"}]}, {}, "wants outputs ['x']"),
}


@pytest.mark.parametrize(("content", "headers", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_refused_in_a_sentence_and_the_suite_goes_on(client, content, headers, words):
    if isinstance(content, dict):
        content = document("FP32", data=[1, 2, 3, 4]) | content

    response = infer(client, "FP32", content, **headers)

    assert response.status_code == 400
    assert words in sentence_of(response)
    assert data_of(infer(client, "FP32", TEXT)) == [1, 2, 3, 4]


BAD_TENSORS = {
    "too few": ("FP32", {"data": [1, 2, 3]}, "holds 3 values; send 4 for shape [2, 2]"),
    "too many": ("FP32", {"data": [1, 2, 3, 4, 5]}, "holds 5 values; send 4 for shape [2, 2]"),
    "ragged": ("FP32", {"data": [[1, 2], [3]]}, "is not nested as its shape [2, 2] is"),
    "transposed": ("FP32", {"data": [[1, 2, 3, 4]]}, "is not nested as its shape [2, 2] is"),
    "too deep": ("FP32", {"data": [[[1], [2]], [[3], [4]]]}, "holds a list; give numbers"),
    "half nested": ("FP32", {"data": [1, [2], 3, 4]}, "holds a list; give numbers"),
    "data no list": ("FP32", {"data": 5}, "'data' is 5; give a list"),
    "no data": ("FP32", {}, "has no data; give one of data"),
    "two ways": ("FP32", {"data": [], "parameters": {"binary_data_size": 4}}, "has data and binary_data_size"),
    "text": ("FP32", {"data": [1, "2", 3, 4]}, 'is FP32 and holds "2"; give numbers'),
    "null": ("INT32", {"data": [1, None, 3, 4]}, "holds null; give integers"),
    "truth as number": ("INT32", {"data": [1, True, 3, 4]}, "holds true; give integers"),
    "number as truth": ("BOOL", {"data": [1, 0, 0, 1]}, "holds 1; give true or false"),
    "number as string": ("BYTES", {"data": ["a", 1, "b", "c"]}, "holds 1; give strings"),
    "fraction": ("INT32", {"data": [1, 2.5, 3, 4]}, "holds 2.5; give integers"),
    "NaN for an integer": ("INT32", {"data": [1, math.nan, 3, 4]}, "holds NaN; give integers"),
    "beyond UINT8": ("UINT8", {"data": [0, 256, 3, 4]}, "holds 256, which does not fit UINT8"),
    "below UINT64": ("UINT64", {"data": [5, -1, 0, 0]}, "holds -1, which does not fit UINT64"),
    "beyond INT64": ("INT64", {"data": [0, 2**63, 3, 4]}, "holds 9223372036854775808, which does not fit INT64"),
    "beyond FP32": ("FP32", {"data": [0, 3.5e38, 3, 4]}, "holds 3.5e+38, which does not fit FP32"),
    "integer beyond FP64, and NaN": ("FP64", {"data": [0, -(10**400), math.nan, 4]}, "which does not fit FP64"),
    "integer beyond FP64": ("FP64", {"data": [0, 10**400, 3, 4]}, "which does not fit FP64"),
    "negative dimension": ("FP32", {"shape": [-2, 2], "data": [1]}, "has a dimension of -2"),
    "dimension no integer": ("FP32", {"shape": [2.0, 2], "data": [1]}, "has a dimension of 2.0"),
    "huge dimension": ("FP32", {"shape": [2**63, 2], "data": [1]}, "has a dimension of 9223372036854775808"),
    "huge product": ("FP32", {"shape": [2**62, 2**62], "data": [1]}, "holds 1 values; send 2126"),
    "shape missing": ("FP32", {"shape": None, "data": [1]}, "'shape' is null; give a list"),
    "unknown datatype": ("FP32", {"datatype": "FP8", "data": [1]}, "datatype 'FP8' is unknown"),
    "another datatype": ("FP32", {"datatype": "FP64", "data": [1, 2, 3, 4]}, "send FP32, which this model takes"),
    "another rank": ("FP32", {"shape": [4], "data": [1, 2, 3, 4]}, "send [-1, 2]"),
    "unknown input": ("FP32", {"name": "x", "data": [1, 2, 3, 4]}, "send exactly ['sent']"),
    "size no integer": ("FP32", {"parameters": {"binary_data_size": "8"}}, "'binary_data_size' is \"8\""),
    "size negative": ("FP32", {"parameters": {"binary_data_size": -4}}, "has binary_data_size -4"),
    "truncated binary": ("FP32", {"parameters": {"binary_data_size": 16}}, "16, but 0 bytes are left in the body"),
}


@pytest.mark.parametrize(("datatype", "fields", "words"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_bad_tensor_is_refused_in_a_sentence_and_the_suite_goes_on(client, datatype, fields, words):
    response = infer(client, datatype, document(datatype, **fields))

    assert response.status_code == 400
    assert words in sentence_of(response)
    assert data_of(infer(client, "FP32", TEXT)) == [1, 2, 3, 4]


def test_a_number_that_no_float_holds_is_refused(client):
    response = infer(client, "FP64", json.dumps(document("FP64", data=[0, 1, 2, 3])).replace("3]", "1e400]"))

    assert response.status_code == 400
    assert "does not fit FP64" in sentence_of(response)


@pytest.mark.parametrize(
    ("raw", "size", "words"),
    [
        (bytes(15), 16, "has binary_data_size 16, but 15 bytes are left"),
        (bytes(12), 12, "holds 12 bytes; send 16 for shape [2, 2] of FP32"),
        (bytes(17), 16, "goes on for 1 bytes after the last input"),
    ],
)
def test_binary_data_of_another_size_is_refused(client, raw, size, words):
    response = infer_binary(client, "FP32", raw, size)

    assert response.status_code == 400
    assert words in sentence_of(response)


def squeezed(encoding, data):
    return gzip.compress(data, mtime=0) if encoding == "gzip" else zlib.compress(data)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(client, encoding):
    bomb = squeezed(encoding, bytes(100 * MAX_BODY_BYTES))

    response = infer(client, "FP32", bomb, **{"Content-Encoding": encoding})

    assert len(bomb) < MAX_BODY_BYTES
    assert response.status_code == 413
    assert f"unpacked where it is compressed; at most {MAX_BODY_BYTES} are accepted" in sentence_of(response)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [2**10, 2**20 - 1, 2**20, 4 * 2**20 + 3])
def test_a_compressed_body_is_unpacked_whole(client, encoding, size):
    response = infer(client, "FP32", squeezed(encoding, TEXT.encode().ljust(size)), **{"Content-Encoding": encoding})

    assert data_of(response) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("body", "encoding", "words"),
    [
        (TEXT.encode(), "gzip", "cannot be unpacked as gzip"),
        (zlib.compress(TEXT.encode())[:-6], "deflate", "the deflate body ends early"),
        (gzip.compress(TEXT.encode(), mtime=0) + b"more", "gzip", "the gzip body goes on after its end"),
        (zlib.compress(TEXT.encode()), "gzip", "cannot be unpacked as gzip"),
        (TEXT.encode(), "br", "content-encoding is 'br'; send gzip, deflate or identity"),
        (b"", "gzip", "the gzip body ends early"),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_refused(client, body, encoding, words):
    response = infer(client, "FP32", body, **{"Content-Encoding": encoding})

    assert response.status_code == 400
    assert words in sentence_of(response)


@pytest.mark.parametrize("chunked", [False, True], ids=["stated length", "chunked"])
def test_a_body_over_the_limit_is_refused_with_413(client, chunked):
    body = bytes(MAX_BODY_BYTES + 1)

    response = infer(client, "FP32", iter([body[:100], body[100:]]) if chunked else body)

    assert response.status_code == 413
    assert str(MAX_BODY_BYTES) in sentence_of(response)


def test_json_that_would_take_more_memory_than_there_is_room_for_is_refused(client):
    response = infer(client, "FP32", TEXT.ljust(MAX_BODIES_BYTES // JSON_WEIGHT))

    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert "GATEWAY_MAX_BODIES_BYTES" in sentence_of(response)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate, gzip", "deflate"),
        ("deflate;q=0.5, gzip;q=0.8, br", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.1, identity;q=0.9", None),
        ("gzip;q=often, *", None),
    ],
)
def test_the_encoding_that_the_client_likes_best_is_chosen(accepted, chosen):
    assert chosen_encoding(accepted) == chosen


def test_a_timeout_that_has_passed_ends_with_504(client):
    response = infer(client, "FP32", TEXT, **{"X-Request-Timeout": "0"})

    assert response.status_code == 504
    assert "deadline" in sentence_of(response)


def test_a_timeout_that_is_no_number_is_refused(client):
    response = infer(client, "FP32", TEXT, **{"X-Request-Timeout": "soon"})

    assert response.status_code == 400
    assert "x-request-timeout is 'soon'" in sentence_of(response)


def version_of(key):
    return "2" if routing_share("split", key) < CANARY_SHARE else "1"


KEYS = [f"user {number}" for number in range(20)]


@pytest.mark.parametrize("raw", [False, True], ids=["JSON", "raw body"])
def test_the_routing_key_of_the_header_chooses_the_version(client, raw):
    content, headers = (bytes(8), {HEADER: "0"}) if raw else (TEXT, {})
    answers = [
        client.post("/v2/models/split/infer", content=content, headers=headers | {"X-Routing-Key": key}) for key in KEYS
    ]

    sizes = [int(each.headers.get(HEADER, len(each.content))) for each in answers]
    versions = [json.loads(each.content[:size])["model_version"] for each, size in zip(answers, sizes, strict=True)]
    assert versions == [version_of(key) for key in KEYS]
    assert set(versions) == {"1", "2"}


def test_the_routing_key_of_the_request_stands_before_that_of_the_header(client):
    one, other = (next(key for key in KEYS if version_of(key) == version) for version in ("1", "2"))
    content = document("FP32", data=[1, 2, 3, 4]) | {"parameters": {"routing_key": one}}

    response = client.post("/v2/models/split/infer", json=content, headers={"X-Routing-Key": other})

    assert response.json()["model_version"] == "1"


def test_an_answer_says_where_the_time_went_if_asked_to(client):
    content = document("FP32", data=[1, 2, 3, 4]) | {"parameters": {"aimass_timings": True}}

    figures = infer(client, "FP32", content).json()["parameters"]

    assert (figures["batch_size"], figures["batch_requests"]) == (2, 1)
    assert figures["compute_infer_ns"] > 0
    assert figures.keys() >= {"queue_ns", "compute_input_ns", "compute_output_ns"}
    assert infer(client, "FP32", TEXT).json().get("parameters", {}).keys() <= {"traffic_generation"}


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}], ids=str)
def test_a_foreign_page_is_refused(client, headers):
    response = infer(client, "FP32", TEXT, **headers)

    assert response.status_code == 403
    assert "is not" in sentence_of(response)


def test_an_answer_carries_the_callers_request_id(client):
    answers = [infer(client, "FP32", content, **{"X-Request-Id": "mine"}) for content in (TEXT, b"")]

    assert [each.headers["x-request-id"] for each in answers] == ["mine", "mine"]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/nothing/ready", 404),
        ("GET", "/v2/models/echo_FP32/versions/9/config", 404),
        ("GET", "/v2/models/echo_FP32/versions/x/stats", 400),
        ("GET", "/v2/models/echo_FP32/infer", 405),
        ("POST", "/v2", 405),
    ],
)
def test_every_failure_under_v2_is_the_protocols_document(client, method, path, code):
    response = client.request(method, path)

    assert response.status_code == code
    assert len(sentence_of(response)) > 10


MODEL_PATHS = [f"/v2/models/echo_FP32{version}" for version in ("", "/versions/1")]
PATHS = [
    ("GET", "/v2", 200),
    ("GET", "/v2/health/live", 200),
    ("GET", "/v2/health/ready", 200),
    ("GET", "/v2/models/stats", 200),
    *(("GET", path + part, 200) for path in MODEL_PATHS for part in ("", "/ready", "/config", "/stats")),
    *(("POST", path + "/infer", 200) for path in MODEL_PATHS),
    *(("POST", path + part, 400) for path in MODEL_PATHS for part in ("/generate", "/generate_stream")),
    ("POST", "/v2/repository/index", 200),
    ("POST", "/v2/repository/models/nothing/load", 404),
    ("POST", "/v2/repository/models/nothing/unload", 404),
    *(("GET", f"/v2/{kind}sharedmemory/status", 200) for kind in ("system", "cuda")),
    *(("GET", f"/v2/{kind}sharedmemory/region/nothing/status", 404) for kind in ("system", "cuda")),
    *(("POST", f"/v2/{kind}sharedmemory/unregister", 200) for kind in ("system", "cuda")),
    *(("POST", f"/v2/{kind}sharedmemory/region/nothing/unregister", 200) for kind in ("system", "cuda")),
    ("POST", "/v2/cudasharedmemory/region/new/register", 501),
    *((method, path, 200) for method in ("GET", "POST") for path in ("/v2/trace/setting", "/v2/logging")),
    ("GET", "/v2/models/echo_FP32/trace/setting", 200),
    ("GET", "/v2/models/nothing/trace/setting", 404),
]
REGION = {"raw_handle": {"b64": "AAEC"}, "device_id": 0, "byte_size": 4}


@pytest.mark.parametrize(("method", "path", "code"), PATHS)
def test_every_path_that_stock_clients_use_is_there(client, method, path, code):
    content = TEXT if path.endswith("/infer") else json.dumps(REGION if path.endswith("/register") else {})

    response = client.request(method, path, content=content if method == "POST" else None)

    assert response.status_code == code
    if code != 200:
        assert len(sentence_of(response)) > 10


def test_other_paths_keep_our_own_document(client):
    assert client.get("/v1/nothing").json()["error"].keys() == {"code", "reason", "message"}


async def test_a_request_whose_client_hung_up_is_not_run(suite):
    pixels = {"name": "image", "datatype": "UINT8", "shape": [8, 4, 4, 3], "data": [0] * 8 * 48}
    async with (
        grpc.aio.insecure_channel(suite.address) as channel,
        httpx.AsyncClient(base_url=suite.url, trust_env=False, timeout=30) as http,
    ):
        slow = Slow(channel)
        before = await slow.samples()
        white = await slow.occupy()
        asking = asyncio.create_task(http.post("/v2/models/slow/infer", json={"inputs": [pixels]}))
        assert await slow.is_busy()  # which it is queued behind now
        asking.cancel()
        asked = await slow.finish(white)

        assert await slow.samples() - before - asked == 0
    with pytest.raises(asyncio.CancelledError):
        await asking


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(list(ONNX_TYPES)),
    lambda each: (
        st.lists(each, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "shape", "data", "datatype", "parameters"]), each, max_size=5)
    ),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(
    {"name": st.text() | JSON, "datatype": st.sampled_from(list(ONNX_TYPES)) | JSON},
    optional={"shape": st.lists(st.integers(-1, 3), max_size=3) | JSON, "data": st.lists(JSON, max_size=4) | JSON}
    | {"parameters": st.dictionaries(st.sampled_from(["binary_data_size", "mine"]), st.integers(-1, 9) | JSON)},
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(FIELDS | JSON, max_size=3) | JSON},
        optional={"outputs": st.lists(FIELDS | JSON, max_size=3), "parameters": JSON, "id": JSON},
    ),
    st.binary(max_size=8),
)
def test_whatever_json_comes_is_a_request_or_refused_in_a_sentence(content, tail):
    text = json.dumps(content, ensure_ascii=False).encode(errors="surrogatepass")
    refused = ""
    try:
        parse_request("m", "", text + tail, len(text))
    except InvalidInput as error:
        refused = error.message
    assert not refused or 10 < len(refused) < 2000


def test_a_document_has_numbers_and_the_fields_own_names():
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=8)
    config.input.add(name="x", data_type=model_config_pb2.TYPE_FP32, dims=[-1, 2**40])
    config.dynamic_batching.preferred_batch_size.append(4)
    config.parameters["threads"].string_value = "2"

    document = document_of(config)

    assert document["max_batch_size"] == 8
    assert document["input"][0]["dims"] == [-1, 2**40]
    assert document["input"][0]["data_type"] == "TYPE_FP32"
    assert document["dynamic_batching"]["preferred_batch_size"] == [4]
    assert document["parameters"] == {"threads": {"string_value": "2"}}
    assert not document.keys() & {"sequence_batching", "ensemble_scheduling", "model_warmup_"}


def test_statistics_are_written_whole():
    document = document_of(pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(name="m")]), whole=True)

    (counters,) = document["model_stats"]
    assert counters["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert counters["batch_stats"] == []


def test_an_index_leaves_out_what_is_unknown():
    models = [{"name": "m", "version": "1", "state": "READY"}, {"name": "n"}]

    assert index_documents(pb.RepositoryIndexResponse(models=models)) == models


def test_a_load_request_carries_configuration_and_files():
    document = {"parameters": {"config": "{}", "file:1/model.onnx": "AAEC", "deep": True, "many": 3}}

    request = load_request("m", document)

    assert request.model_name == "m"
    assert request.parameters["config"].string_param == "{}"
    assert request.parameters["file:1/model.onnx"].bytes_param == b"\0\1\2"
    assert request.parameters["deep"].bool_param
    assert request.parameters["many"].int64_param == 3


def test_null_takes_a_trace_setting_back_and_leaves_a_log_setting_alone():
    trace = trace_request("m", {"trace_level": ["TIMESTAMPS"], "trace_rate": "5", "trace_file": None})
    log = log_request({"log_file": None, "log_info": True, "log_verbose_level": 1, "log_format": "default"})

    assert {key: list(each.value) for key, each in trace.settings.items()} == {
        "trace_level": ["TIMESTAMPS"],
        "trace_rate": ["5"],
        "trace_file": [],
    }
    assert set(log.settings) == {"log_info", "log_verbose_level", "log_format"}


@pytest.mark.parametrize(
    ("read", "document", "words"),
    [
        (lambda each: load_request("m", each), {"parameters": {"file:1/a": "?"}}, "'file:1/a' is not base64"),
        (lambda each: load_request("m", each), {"parameters": {"a": None}}, "parameter 'a' is null"),
        (lambda each: trace_request("", each), {"trace_rate": {}}, "trace setting 'trace_rate' is an object"),
        (log_request, {"log_info": 1.5}, "log setting 'log_info' is 1.5"),
        (log_request, {"log_verbose_level": -1}, "is -1; give 0 to 4294967295"),
    ],
)
def test_a_malformed_change_is_refused_in_a_sentence(read, document, words):
    with pytest.raises(InvalidInput, match=r"^[^\n]*$") as caught:
        read(document)

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v2/systemsharedmemory/region/r/register", {"byte_size": 4}, "'key' is missing"),
        ("/v2/systemsharedmemory/region/r/register", {"key": "k", "byte_size": -1}, "byte_size is -1"),
        ("/v2/cudasharedmemory/region/r/register", {"raw_handle": {"b64": "?"}}, "raw_handle is not base64"),
        ("/v2/repository/index", {"ready": 1}, "'ready' is 1; give true or false"),
        ("/v2/logging", {"log_info": []}, "log setting 'log_info' is a list"),
    ],
)
def test_a_malformed_control_request_is_refused(client, path, body, words):
    response = client.post(path, json=body)

    assert response.status_code == 400
    assert words in sentence_of(response)
