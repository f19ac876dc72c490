"""Triton's generate extension: members of one JSON object become tensors and parameters, and the answer is one too."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from aimass.open_inference import grpc_service_pb2 as pb
from gateway.generate_json import generate_answer, generate_request
from gateway.inference_http import JSON_WEIGHT
from services.common.errors import InvalidInput
from tests.end_to_end.suite import MAX_BODY_BYTES, MIB, MODES, start_suite

MAX_BODIES_BYTES = 40 * MIB
WAYS = ("generate", "generate_stream")


@pytest.fixture(scope="module", params=MODES)
def texts(request, save_graph, tmp_path_factory):
    """A suite with `echo`, text that comes back, `sums` of two inputs, and `picks`, which refuses an index over 2."""
    home = tmp_path_factory.mktemp("home")

    def install(model, op, inputs, output, *, shape, constants=None):
        kinds = {"text": TensorProto.STRING, "index": TensorProto.INT64}
        names = [*(constants or {}), *inputs]
        graph = save_graph(
            [helper.make_node(op, names, [output])],
            [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape) for name in inputs],
            [helper.make_tensor_value_info(output, kinds.get(inputs[0], TensorProto.FLOAT), shape)]
            if constants is None
            else [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            constants,
        )
        folder = home / "models" / model / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(graph.read_bytes())

    install("echo", "Identity", ["text"], "said", shape=["batch", 1])
    install("sums", "Add", ["a", "b"], "sum", shape=["batch", 2])
    install("picks", "Gather", ["index"], "picked", shape=["batch", 1], constants={"table": np.float32([0.5, 1.5, 2])})
    suite = start_suite(request.param, home, GATEWAY_MAX_BODIES_BYTES=str(MAX_BODIES_BYTES))
    try:
        suite.wait_until_ready()
        yield suite
    finally:
        suite.end()


@pytest.fixture
def client(texts):
    with texts.client() as client:
        yield client
    assert texts.new_errors() == []


def ask(client, model, document, way="generate", **headers):
    content = document if isinstance(document, bytes) else json.dumps(document)
    return client.post(f"/v2/models/{model}/{way}", content=content, headers=headers)


def answered(response):
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), response.text
    return without_generation(response.json())


def without_generation(document):
    """Leave out a parameter that every answer has."""
    return {key: value for key, value in document.items() if key != "traffic_generation"}


def events(response):
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith("\n\n")
    documents = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-1]]
    return [without_generation(each) for each in documents]


def test_one_text_is_answered_with_one_text(client):
    text = 'grün, 猫\n"quoted"'

    assert answered(ask(client, "echo", {"text": text})) == {
        "model_name": "echo",
        "model_version": "1",
        "said": text,
    }


def test_a_list_is_answered_with_a_list(client):
    assert answered(ask(client, "echo", {"text": ["a", "", "c"]}))["said"] == ["a", "", "c"]
    assert answered(ask(client, "echo", {"text": ["a"]}))["said"] == "a"


def test_inputs_stand_side_by_side_or_in_parameters(client):
    beside = answered(ask(client, "sums", {"a": [1, 2], "b": [3.5, 4]}))
    nested = answered(ask(client, "sums", {"a": [1, 2], "parameters": {"b": [3.5, 4]}}))

    assert beside == nested == {"model_name": "sums", "model_version": "1", "sum": [4.5, 6.0]}


def test_numbers_of_several_samples_come_in_one_list(client):
    assert answered(ask(client, "sums", {"a": [1, 2, 3, 4], "b": [1, 1, 1, 1]}))["sum"] == [2.0, 3.0, 4.0, 5.0]


def test_the_id_comes_back_and_a_version_may_be_named(client):
    answer = client.post("/v2/models/picks/versions/1/generate", json={"id": "42", "index": 1})

    assert answered(answer) == {"id": "42", "model_name": "picks", "model_version": "1", "picked": 1.5}


@pytest.mark.parametrize(
    "document", [{"text": "a", "aimass_timings": True}, {"text": "a", "parameters": {"aimass_timings": True}}]
)
def test_other_members_are_parameters_and_so_are_those_of_the_answer(client, document):
    answer = answered(ask(client, "echo", document | {"temperature": 0.5, "stream": False}))

    assert answer["batch_size"] == 1
    assert answer["said"] == "a"


def test_a_stream_is_one_event(client):
    response = ask(client, "echo", {"text": "a\nb", "id": "7"}, "generate_stream")

    assert response.status_code == 200
    assert events(response) == [{"id": "7", "model_name": "echo", "model_version": "1", "said": "a\nb"}]


def test_what_the_model_refuses_at_work_is_an_event_of_the_stream(client):
    streamed = ask(client, "picks", {"index": 3}, "generate_stream")
    plain = ask(client, "picks", {"index": 3})

    assert (streamed.status_code, plain.status_code) == (400, 400)
    (event,) = events(streamed)
    assert event == plain.json()
    assert "the graph refuses these inputs" in event["error"]


REFUSED = {
    "no JSON": ("echo", b"text", 400, "the request is not JSON"),
    "no object": ("echo", b"[]", 400, "the request is a list; send a JSON object"),
    "nothing": ("echo", b"", 400, "the request has inputs []; send exactly ['text']"),
    "missing": ("sums", {"a": [1, 2]}, 400, "the request has inputs ['a']; send exactly ['a', 'b']"),
    "twice": ("echo", {"text": "a", "parameters": {"text": "b"}}, 400, "['text', 'text']; send exactly ['text']"),
    "number for text": ("echo", {"text": 5}, 400, "input 'text' is BYTES and holds 5; give strings"),
    "null": ("echo", {"text": None}, 400, "input 'text' is BYTES and holds null; give strings"),
    "text for number": ("picks", {"index": "1"}, 400, "input 'index' is INT64 and holds \"1\"; give integers"),
    "object": ("echo", {"text": {"user": "hi"}}, 400, "input 'text' is BYTES and holds an object; give strings"),
    "nested": ("sums", {"a": [[1, 2]], "b": [1, 2]}, 400, "input 'a' is a list of lists; give one value or a flat"),
    "count": ("sums", {"a": [1, 2, 3], "b": [1, 2]}, 400, "'a' holds 3 values; send a multiple of 2 for its shape [-1"),
    "batches": ("sums", {"a": [1, 2, 3, 4], "b": [1, 2]}, 400, "send the same number of samples in each"),
    "parameter": ("echo", {"text": "a", "mine": {"b": 1}}, 400, "parameter 'mine' is an object; give a string"),
    "parameters": ("echo", {"text": "a", "parameters": 1}, 400, "'parameters' is 1; give an object"),
    "id": ("echo", {"text": "a", "id": 1}, 400, "'id' is 1; give a string"),
    "model": ("nothing", {"text": "a"}, 404, "model 'nothing' is unknown"),
    "version": ("echo/versions/9", {"text": "a"}, 404, "has no version 9"),
    "no version": ("echo/versions/x", {"text": "a"}, 400, "'x' is not a version"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("model", "document", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_before_the_model_runs_is_no_event(client, model, document, code, words, way):
    response = ask(client, model, document, way)

    assert (response.status_code, response.headers["content-type"]) == (code, "application/json")
    assert words in response.json()["error"]


@pytest.mark.parametrize("way", WAYS)
def test_bodies_are_limited_as_elsewhere(client, way):
    too_large = ask(client, "echo", bytes(MAX_BODY_BYTES + 1), way)
    too_much = ask(client, "echo", b'{"text": "a"}'.ljust(MAX_BODIES_BYTES // JSON_WEIGHT), way)

    assert (too_large.status_code, too_much.status_code) == (413, 429)


@pytest.mark.parametrize("way", WAYS)
def test_bodies_may_be_compressed_in_both_directions(client, way):
    text = "word " * 1000
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}

    response = ask(client, "echo", gzip.compress(json.dumps({"text": text}).encode()), way, **headers)

    assert response.headers["content-encoding"] == "gzip"
    answer = response.json() if way == "generate" else events(response)[0]
    assert answer["said"] == text


def metadata(**shapes):
    inputs = [{"name": name, "datatype": "FP32", "shape": shape} for name, shape in shapes.items()]
    return pb.ModelMetadataResponse(inputs=inputs)


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        ([-1], 1, [1]),
        ([-1], [1, 2, 3], [3]),
        ([-1, 1], 1, [1, 1]),
        ([-1, -1], [1, 2, 3], [1, 3]),
        ([-1, 2, 2], [0] * 8, [2, 2, 2]),
        ([2, 2], [0] * 4, [2, 2]),
        ([], 1, []),
        ([1], 1, [1]),
        ([-1], [], [0]),
        ([-1, 0], [], [1, 0]),
    ],
)
def test_the_shape_follows_from_the_number_of_values(shape, value, expected):
    request = generate_request("m", "", json.dumps({"x": value}).encode(), metadata(x=shape))

    assert list(request.inputs[0].shape) == expected
    assert len(request.raw_input_contents[0]) == 4 * np.prod(expected, dtype=int)


@pytest.mark.parametrize(
    ("shape", "value", "words"),
    [
        ([2], 1, "input 'x' holds 1 values; send 2 for its shape [2]"),
        ([-1, 0], [1], "input 'x' holds 1 values; send a multiple of 0 for its shape [-1, 0]"),
        ([-1, 3], [1, 2], "input 'x' holds 2 values; send a multiple of 3 for its shape [-1, 3]"),
    ],
)
def test_values_that_do_not_fill_the_shape_are_refused(shape, value, words):
    with pytest.raises(InvalidInput) as caught:
        generate_request("m", "", json.dumps({"x": value}).encode(), metadata(x=shape))

    assert caught.value.message == words


def test_an_input_may_be_named_as_a_member_is_that_means_something():
    body = b'{"id": "7", "parameters": {"parameters": 2}}'
    described = metadata(parameters=[-1])
    described.inputs.add(name="id", datatype="BYTES", shape=[-1])

    request = generate_request("m", "", body, described)

    assert request.id == "7"
    assert [each.name for each in request.inputs] == ["id", "parameters"]


def test_an_output_may_be_named_as_a_member_is_that_means_something():
    response = pb.ModelInferResponse(model_name="m", model_version="1", raw_output_contents=[bytes(4)])
    response.outputs.add(name="model_name", datatype="FP32", shape=[1])

    assert json.loads(generate_answer(response)) == {"model_name": "m", "model_version": "1"}


@given(
    st.dictionaries(
        st.sampled_from(["x", "y", "id", "parameters", "mine"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda each: st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(["x", "mine"]), each, max_size=2),
            max_leaves=6,
        ),
    )
)
def test_whatever_json_comes_is_a_request_or_refused_in_a_sentence(document):
    body = json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass")
    refused = ""
    try:
        generate_request("m", "", body, metadata(x=[-1], y=[-1, 2]))
    except InvalidInput as error:
        refused = error.message
    assert not refused or 10 < len(refused) < 2000
