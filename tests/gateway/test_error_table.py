"""Wrong requests at the public door, walked: what came, what was expected, and what to change."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest

import gateway
from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from tests.end_to_end.pictures import cat, huge_png
from tests.end_to_end.suite import MAX_BODY_BYTES, MAX_IMAGES
from tests.error_texts import not_walked

LENGTH = "Inference-Header-Content-Length"
PREDICT, INFER, GENERATE = "/v1/models/cifar10/predict", "/v2/models/sums/infer", "/v2/models/sums/generate"
FEEDBACK = "/v1/predictions/x/feedback"
CORRECT_YES = b'--x\r\nContent-Disposition: form-data; name="correct"\r\n\r\nyes\r\n--x--\r\n'
BOUNDARY = {"Content-Type": "multipart/form-data; boundary=x"}


@dataclass(frozen=True)
class Door:
    """A suite's public interfaces."""

    http: httpx.Client
    stub: GatewayServiceStub

    def predict(self, model: str = "cifar10", **fields) -> tuple[str, str]:
        """Return the status and the text with which `Predict` is refused."""
        try:
            answer = self.stub.Predict(pb.PredictRequest(**{"model": model, "images": [cat()]} | fields))
        except grpc.RpcError as error:
            return error.code().name, error.details()
        (result,) = answer.results
        return result.error.code, result.error.message

    def post(self, path: str, body: bytes | str | dict = b"", query: str = "", **headers: str) -> tuple[str, str]:
        """Return the status and the text with which a body is refused."""
        content = json.dumps(body) if isinstance(body, dict) else body
        answer = self.http.post(f"{path}{query}", content=content, headers=headers)
        error = answer.json()["error"]
        return str(answer.status_code), error if isinstance(error, str) else error["message"]

    def list_observations(self, query: str) -> tuple[str, str]:
        """Return the status and the text with which a list of observations is refused."""
        answer = self.http.get(f"/v1/models/cifar10/observations?{query}")
        return str(answer.status_code), answer.json()["error"]["message"]

    def infer(self, **fields) -> tuple[str, str]:
        """Return what is said of a request for `sums` whose first input is as *fields* say."""
        first = {"name": "a", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} | fields
        second = {"name": "b", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        return self.post(INFER, {"inputs": [{key: value for key, value in first.items() if value != ()}, second]})


@dataclass(frozen=True)
class Row:
    """A wrong request, and what its answer must say."""

    name: str
    ask: Callable[[Door], tuple[str, str]]
    code: str
    came: str
    expected: str
    change: str


INVALID = "INVALID_ARGUMENT"
TABLE = [
    Row(*each)
    for each in [
        # Predict over gRPC
        ("model", lambda d: d.predict("dogs"), "NOT_FOUND", "'dogs'", "this suite has: ", "name one"),
        ("no version", lambda d: d.predict(version=7), "NOT_FOUND", "no version 7", "has: 1", "name one"),
        ("version", lambda d: d.predict(version=-1), INVALID, "version is -1", "from 1", "or leave it out"),
        ("top", lambda d: d.predict(top=-1), INVALID, "top is -1", "1 or more", "ask for 1 or more"),
        ("no images", lambda d: d.predict(images=[]), INVALID, "0 images", f"1 to {MAX_IMAGES}", "send 1 to"),
        ("images", lambda d: d.predict(images=[b""] * 41), INVALID, "41 images", f"1 to {MAX_IMAGES}", "send 1 to"),
        ("tensors", lambda d: d.predict("sums"), "FAILED_PRECONDITION", "'sums'", "preprocess spec", "send tensors"),
        # An image, in its place of an answer
        ("empty image", lambda d: d.predict(images=[b""]), INVALID, "0 bytes", "an image file", "send an image"),
        ("text", lambda d: d.predict(images=[b"text"]), INVALID, "4 bytes", "begin like an image", "send JPEG"),
        ("PDF", lambda d: d.predict(images=[b"%PDF-1.7"]), INVALID, "PDF", "not supported", "send JPEG"),
        ("cut", lambda d: d.predict(images=[cat()[:50]]), INVALID, "50 bytes", "ends early", "send the whole file"),
        ("huge", lambda d: d.predict(images=[huge_png()]), INVALID, "900,000,000", "64,000,000", "make it smaller"),
        # The same over HTTP
        ("model, HTTP", lambda d: d.post("/v1/models/dogs/predict", cat()), "404", "'dogs'", "has: ", "name one"),
        (
            "top, HTTP",
            lambda d: d.post(PREDICT, cat(), "?top=0"),
            "400",
            "top is '0'",
            "than or equal to 1",
            "should be",
        ),
        ("version, HTTP", lambda d: d.post(PREDICT, cat(), "?version=x"), "400", "'x'", "integer", "should be"),
        (
            "timeout, HTTP",
            lambda d: d.post(PREDICT, cat(), **{"X-Request-Timeout": "soon"}),
            "400",
            "'soon'",
            "seconds",
            "give seconds",
        ),
        (
            "late, HTTP",
            lambda d: d.post(PREDICT, cat(), **{"X-Request-Timeout": "0"}),
            "504",
            "deadline of 0 s",
            "passed",
            "allow more time",
        ),
        ("path", lambda d: d.post("/v3"), "404", "POST /v3", "Not Found", "see /openapi.json"),
        ("method", lambda d: d.post("/v1/models"), "405", "POST /v1/models", "Not Allowed", "see /openapi.json"),
        (
            "body",
            lambda d: d.post(PREDICT, bytes(MAX_BODY_BYTES + 1)),
            "413",
            f"{MAX_BODY_BYTES + 1} bytes",
            f"at most {MAX_BODY_BYTES}",
            "send less",
        ),
        ("form", lambda d: d.post(PREDICT, b"--x--\r\n", **BOUNDARY), "400", "no file", "filename", "add one part"),
        ("cut form", lambda d: d.post(PREDICT, b"--x\r\n", **BOUNDARY), "400", "ends before", "boundary", "send it"),
        (
            "no form",
            lambda d: d.post(PREDICT, b"text", **BOUNDARY),
            "400",
            "the multipart form cannot be read",
            "a part between the form's boundaries",
            f"send 1 to {MAX_IMAGES} images",
        ),
        # Tensors over HTTP
        ("no body", lambda d: d.post(INFER), "400", "empty", "a JSON object with the inputs", "send a JSON"),
        ("no JSON", lambda d: d.post(INFER, b"image"), "400", "the request is not JSON", "expected value", "send"),
        ("a list", lambda d: d.post(INFER, b"[1]"), "400", "a list", "a JSON object", "send a JSON object"),
        ("no inputs", lambda d: d.post(INFER, b"{}"), "400", "'inputs' is missing", "a list", "give a list"),
        ("input", lambda d: d.post(INFER, b'{"inputs": [7]}'), "400", "input 0 is 7", "an object", "give an object"),
        (
            "length",
            lambda d: d.post(INFER, b"{}", **{LENGTH: "many"}),
            "400",
            "'many'",
            "the body has 2 bytes",
            "give the length of its JSON",
        ),
        (
            "raw body",
            lambda d: d.post(INFER, bytes(16), **{LENGTH: "0"}),
            "400",
            "inputs ['a', 'b']",
            "a model of one input",
            "send the request as JSON",
        ),
        ("no data", lambda d: d.infer(data=()), "400", "no data", "one of data", "give one of"),
        (
            "two data",
            lambda d: d.infer(parameters={"binary_data_size": 4}),
            "400",
            "data and binary_data_size",
            "one of data",
            "give one of",
        ),
        (
            "binary size",
            lambda d: d.infer(data=(), parameters={"binary_data_size": 4}),
            "400",
            "binary_data_size 4",
            "0 bytes are left",
            "send as many as are stated",
        ),
        ("count", lambda d: d.infer(data=[1]), "400", "1 values", "shape [1, 4]", "send 4"),
        ("nested", lambda d: d.infer(data=[[1], [2]]), "400", "not nested", "[1, 4]", "nest it so"),
        ("kind", lambda d: d.infer(data=["1", 2, 3, 4]), "400", '"1"', "FP32", "give numbers"),
        ("size", lambda d: d.infer(data=[1e40, 2, 3, 4]), "400", "1e+40", "FP32", "send another datatype"),
        ("dimension", lambda d: d.infer(shape=[-1, 4]), "400", "-1", "from 0", "give integers"),
        ("datatype", lambda d: d.infer(datatype="FP8"), "400", "'FP8'", "FP32", "use one of"),
        (
            "half",
            lambda d: d.infer(datatype="FP16"),
            "400",
            "FP16",
            "JSON cannot say",
            "send it to infer as binary data",
        ),
        ("parameter", lambda d: d.infer(parameters={"x": []}), "400", "is a list", "a 64-bit number", "give a string"),
        (
            "behind",
            lambda d: d.post(INFER, b'{"inputs": []}abc', **{LENGTH: "14"}),
            "400",
            "3 bytes",
            "after the last input",
            "leave them out",
        ),
        (
            "encoding",
            lambda d: d.post(INFER, b"{}", **{"Content-Encoding": "br"}),
            "400",
            "br",
            "gzip, deflate or identity",
            "send gzip",
        ),
        (
            "no gzip",
            lambda d: d.post(INFER, b"{}", **{"Content-Encoding": "gzip"}),
            "400",
            "incorrect header",
            "as gzip",
            "compress it with gzip",
        ),
        (
            "lists in lists",
            lambda d: d.post(GENERATE, {"a": [[1, 2, 3, 4]]}),
            "400",
            "input 'a' is a list of lists",
            "a flat list",
            "send it to infer",
        ),
        (
            "values",
            lambda d: d.post(GENERATE, {"a": [1, 2, 3]}),
            "400",
            "input 'a' holds 3 values",
            "its shape [-1, 4]",
            "send a multiple of 4",
        ),
        # Feedback
        (
            "no verdict",
            lambda d: d.post(FEEDBACK, {}),
            "400",
            "has neither",
            "label nor correct",
            "give one of them",
        ),
        (
            "two verdicts",
            lambda d: d.post(FEEDBACK, {"label": "cat", "correct": False}),
            "400",
            "the feedback has both label and correct;",
            "label and correct",
            "give one of them",
        ),
        (
            "verdict of a form",
            lambda d: d.post(FEEDBACK, CORRECT_YES, **BOUNDARY),
            "400",
            "'correct' of the form is \"yes\"",
            "true or false",
            "give true",
        ),
        (
            "no decision",
            lambda d: d.post("/v1/observations/1/review", {}),
            "400",
            "has none of",
            "label, undecidable, reject and release",
            "give one of them",
        ),
        (
            "two decisions",
            lambda d: d.post("/v1/observations/1/review", {"reject": True, "release": True}),
            "400",
            "the review has both reject and release;",
            "reject and release",
            "give one of them",
        ),
        *(
            (query, lambda d, query=query: d.list_observations(query), "400", came, expected, "give one of")
            for query, came, expected in (
                ("order=best", 'order is "best"', "newest, uncertain, disagreement, drawn"),
                ("state=lost", 'state is "lost"', "captured, pending, accepted, quarantined, proposed, rejected"),
                ("role=both", 'role is "both"', "train, judge"),
            )
        ),
        (
            "goal",
            lambda d: d.post("/v1/models/cifar10/loop/propose", {"version": 1, "goal": "best"}),
            "400",
            'goal is "best"',
            "better, not_worse",
            "give one of",
        ),
        # What an operator may do
        (
            "load parameter",
            lambda d: d.post("/v2/repository/models/sums/load", {"parameters": {"config": []}}),
            "400",
            "is a list",
            "a string, an integer",
            "give a string",
        ),
        (
            "file",
            lambda d: d.post("/v2/repository/models/sums/load", {"parameters": {"file:1/model.onnx": "?"}}),
            "400",
            "file:1/model.onnx",
            "base64",
            "send",
        ),
        (
            "large load parameter",
            lambda d: d.post("/v2/repository/models/sums/load", {"parameters": {"config": 2**63}}),
            "400",
            "9223372036854775808",
            "to 9223372036854775807",
            "give -9223372036854775808",
        ),
        (
            "log number",
            lambda d: d.post("/v2/logging", {"log_verbose_level": -1}),
            "400",
            "-1",
            "to 4294967295",
            "give 0",
        ),
        *(
            (
                name,
                lambda d, fields=fields: d.post(
                    "/v2/cudasharedmemory/region/x/register",
                    {"raw_handle": {"b64": ""}, "device_id": 0, "byte_size": 1} | fields,
                ),
                "400",
                *words,
            )
            for name, fields, *words in (
                ("GPU", {"device_id": -1}, "device_id is -1", "to 2147483647", "give 0"),
                ("handle", {"raw_handle": {"b64": "?"}}, "raw_handle", "base64", "send its bytes in base64"),
            )
        ),
        (
            "trace setting",
            lambda d: d.post("/v2/trace/setting", {"trace_rate": {}}),
            "400",
            "an object",
            "strings",
            "give a string, strings, or null",
        ),
        (
            "log setting",
            lambda d: d.post("/v2/logging", {"log_info": []}),
            "400",
            "a list",
            "true or false",
            "give a string",
        ),
        (
            "region",
            lambda d: d.post("/v2/systemsharedmemory/region/x/register", {"key": "/x", "offset": -1, "byte_size": 1}),
            "400",
            "-1",
            "0 to ",
            "give 0",
        ),
    ]
]

ELSEWHERE = {
    "bodies of other requests": "test_bodies",
    "body goes on after its end": "test_inference_http: bodies that cannot be unpacked",
    "body ends early": "test_inference_http: bodies that cannot be unpacked",
    "this server answers nobody without a key": "test_access",
    "has not told of its keys yet": "test_access",
    "the key that was sent is not valid": "test_access",
    "is spoken between services of the suite": "test_access",
    "so that this needs a key with scope": "test_access",
    "is not ready; try again": "test_process, where inference is away",
    "waits for the trainer, which is away": "test_capture",
    "has the member {…}, which is unknown": "test_feedback",
    "which the size of a raw body does not settle": "test_inference_http: raw bodies",
    "output {…} is {…}, which JSON cannot say": "test_inference_http: half precision",
    "holds bytes that are not UTF-8": "test_inference_http: strings that are not UTF-8",
}
"""Errors that no row walks, by a part of their text, and where they are walked instead."""


@pytest.fixture
def door(suite):
    with suite.client() as http, suite.stub() as stub:
        yield Door(http, stub)


def test_every_wrong_request_is_told_what_came_what_was_expected_and_what_to_change(door):
    found = []
    for row in TABLE:
        code, text = row.ask(door)
        missing = [word for word in (row.came, row.expected, row.change) if word not in text]
        if code != row.code or missing:
            found.append(f"{row.name}: {code}: {text!r}, not {row.code} with {missing}")

    assert not found, "\n".join(["", *found])


def test_every_error_that_the_gateway_raises_is_in_the_table(door):
    answers = [row.ask(door)[1] for row in TABLE]
    left = not_walked(Path(gateway.__file__).parent.glob("*.py"), answers, ELSEWHERE)

    assert left == [], "\n".join(["", *left])
