"""The HTTP interface of running suites, in both modes."""

import http.client
import json
import socket

import numpy as np
import pytest

from tests.end_to_end.pictures import animated_gif, cat, cifar, encode, huge_png, large, plain
from tests.end_to_end.suite import HOST, MAX_BODY_BYTES, MAX_IMAGES, ORIGIN

PREDICT = "/v1/models/cifar10/predict"


@pytest.fixture
def client(suite):
    with suite.client() as client:
        yield client


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"code", "reason", "message"}
    return document["error"]


def form(*images):
    return [("image", (f"{number}.png", image)) for number, image in enumerate(images)]


def test_a_raw_body_is_answered_with_labels(client):
    response = client.post(PREDICT, content=cat())

    document = response.json()
    assert response.status_code == 200
    assert document.keys() == {"prediction_id", "model", "version", "predictions", "captured"}
    assert (document["model"], document["version"]) == ("cifar10", 1)
    assert len(document["prediction_id"]) == 32
    assert document["predictions"][0]["label"] == "cat"
    probabilities = [each["probability"] for each in document["predictions"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)


def test_curls_default_content_type_is_taken_for_an_image(client):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}

    response = client.post(PREDICT, content=cat(), headers=headers)

    assert response.json()["predictions"][0]["label"] == "cat"


def test_every_prediction_has_an_id_of_its_own(client):
    ids = {client.post(PREDICT, content=cat()).json()["prediction_id"] for _ in range(3)}

    assert len(ids) == 3


@pytest.mark.parametrize("top", [1, 10, 2**31 - 1])
def test_top_says_how_many_labels_come(client, top):
    response = client.post(PREDICT, content=cat(), params={"top": top})

    predictions = response.json()["predictions"]
    assert len(predictions) == min(top, 10)
    assert top == 1 or sum(each["probability"] for each in predictions) == pytest.approx(1.0, abs=1e-5)


def test_a_form_answers_each_image_in_order_and_a_bad_one_with_an_error_in_its_place(client):
    response = client.post(PREDICT, files=form(cat(), b"no image", encode(cifar()[0]), cat()[:-200], cat()))

    results = response.json()["results"]
    assert response.status_code == 200
    assert ["error" in result for result in results] == [False, True, False, True, False]
    assert results[1]["error"]["reason"] == "NOT_AN_IMAGE"
    assert results[3]["error"]["reason"] == "TRUNCATED_IMAGE"
    assert results[0]["predictions"][0]["label"] == results[4]["predictions"][0]["label"] == "cat"
    assert results[2]["predictions"][0]["label"] != ""


def test_a_form_of_bad_images_only_has_an_error_for_each(client):
    response = client.post(PREDICT, files=form(b"", b"text"))

    assert response.status_code == 200
    assert [each["error"]["reason"] for each in response.json()["results"]] == ["EMPTY_IMAGE", "NOT_AN_IMAGE"]


def test_a_form_with_one_image_is_answered_like_a_raw_body(client):
    response = client.post(PREDICT, files=form(cat()), headers={"Accept": "*/*"})

    assert response.json()["predictions"][0]["label"] == "cat"


def test_a_form_may_hold_more_images_than_a_batch(client):
    response = client.post(PREDICT, files=form(*[encode(image) for image in cifar()[:MAX_IMAGES]]))

    assert [len(each["predictions"]) for each in response.json()["results"]] == [5] * MAX_IMAGES


def test_a_form_with_too_many_images_is_refused(client):
    response = client.post(PREDICT, files=form(*[cat()] * (MAX_IMAGES + 1)))

    assert response.status_code == 400
    assert str(MAX_IMAGES) in error_of(response)["message"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=x", b"garbage"),
        (
            "Multipart/Form-Data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ntext\r\n--x--\r\n',
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\ntext\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b""),
    ],
    ids=["no boundary", "garbage", "no file", "no name", "empty"],
)
def test_a_form_that_cannot_be_used_is_refused(client, content_type, body):
    response = client.post(PREDICT, content=body, headers={"Content-Type": content_type})

    assert response.status_code == 400
    assert "multipart form" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "EMPTY_IMAGE"),
        (b"this is a text file, not a picture", "NOT_AN_IMAGE"),
        (encode(cifar()[0], "JPEG")[:-300], "TRUNCATED_IMAGE"),
        (cat()[:50], "TRUNCATED_IMAGE"),
        (huge_png(), "TOO_MANY_PIXELS"),
    ],
    ids=["empty", "text", "truncated JPEG", "truncated PNG", "30,000 x 30,000 pixels in 1 kB"],
)
def test_a_bad_image_gets_a_clear_error_and_the_suite_goes_on(client, body, reason):
    response = client.post(PREDICT, content=body)

    error = error_of(response)
    assert response.status_code == 400
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", reason)
    assert client.post(PREDICT, content=cat()).status_code == 200


def test_the_error_of_too_many_pixels_names_the_value_and_the_limit(client):
    body = huge_png()

    message = error_of(client.post(PREDICT, content=body))["message"]

    assert len(body) < 1200
    assert "900,000,000" in message
    assert "64,000,000" in message


def test_an_animation_is_answered_from_its_first_frame(client):
    frames = list(cifar()[:3])

    moving, still = (
        client.post(PREDICT, content=content, params={"top": 10}).json()["predictions"]
        for content in (animated_gif(frames), encode(frames[0], "GIF"))
    )

    assert moving == still


def test_a_large_picture_is_answered(client):
    assert client.post(PREDICT, content=large()).status_code == 200


def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(client):
    response = client.post("/v1/models/nothing/predict", content=cat())

    error = error_of(response)
    assert response.status_code == 404
    assert error["reason"] == "MODEL_NOT_FOUND"
    assert "cifar10" in error["message"]


def test_an_unknown_version_is_not_found_and_the_known_ones_are_named(client):
    response = client.post(PREDICT, content=cat(), params={"version": 7})

    assert response.status_code == 404
    assert error_of(response)["message"] == "model 'cifar10' has no version 7; name one that it has: 1"


def test_a_known_version_is_honoured(client):
    assert client.post(PREDICT, content=cat(), params={"version": 1}).json()["version"] == 1


def test_a_model_that_takes_tensors_only_is_a_conflict(client):
    response = client.post("/v1/models/sums/predict", content=cat())

    assert response.status_code == 409
    assert error_of(response)["reason"] == "NO_PREPROCESS_SPEC"


@pytest.mark.parametrize(
    "query",
    ["top=0", "top=-1", "top=many", "top=99999999999", "version=0", "version=x", "version=100000000000000000000"],
)
def test_a_malformed_query_is_refused_and_its_value_named(client, query):
    response = client.post(f"{PREDICT}?{query}", content=cat())

    name, _, value = query.partition("=")
    assert response.status_code == 400
    assert f"query.{name}" in error_of(response)["message"]
    assert value in error_of(response)["message"]


@pytest.mark.parametrize("chunked", [False, True], ids=["stated length", "chunked"])
def test_a_body_over_the_limit_is_refused_with_413(client, chunked):
    body = bytes(MAX_BODY_BYTES + 1)

    response = client.post(PREDICT, content=iter([body[:100], body[100:]]) if chunked else body)

    assert response.status_code == 413
    assert error_of(response)["code"] == "RESOURCE_EXHAUSTED"
    assert str(MAX_BODY_BYTES) in error_of(response)["message"]


@pytest.mark.parametrize("value", ["0", "-1", "0.000001"])
def test_a_timeout_that_has_passed_ends_with_504(client, value):
    response = client.post(PREDICT, content=cat(), headers={"X-Request-Timeout": value})

    assert response.status_code == 504
    assert error_of(response)["code"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("value", ["soon", "", "nan", "5s"])
def test_a_timeout_that_is_no_number_is_refused(client, value):
    response = client.post(PREDICT, content=cat(), headers={"X-Request-Timeout": value})

    assert response.status_code == 400
    assert "x-request-timeout" in error_of(response)["message"]


def test_a_timeout_that_suffices_is_accepted(client):
    assert client.post(PREDICT, content=cat(), headers={"X-Request-Timeout": "20.5"}).status_code == 200


def test_an_answer_splits_its_time_into_stages(client):
    timing = client.post(PREDICT, content=cat()).headers["server-timing"]

    stages = dict(stage.split(";dur=") for stage in timing.split(", "))
    milliseconds = {name: float(value) for name, value in stages.items()}
    assert list(milliseconds) == ["preprocess", "queue", "inference", "total"]
    assert milliseconds["inference"] > 0
    assert milliseconds["total"] >= sum(milliseconds.values()) - milliseconds["total"]


def test_the_callers_request_id_comes_back(client):
    response = client.post(PREDICT, content=cat(), headers={"X-Request-Id": "order-66"})

    assert response.headers["x-request-id"] == "order-66"


def test_an_error_has_the_request_id_too(client):
    response = client.post(PREDICT, content=b"", headers={"X-Request-Id": "order-67"})
    unknown = client.post("/v1/models/nothing/predict", content=cat(), headers={"X-Request-Id": "order-68"})

    assert response.headers["x-request-id"] == "order-67"
    assert unknown.headers["x-request-id"] == "order-68"


def test_a_request_without_an_id_gets_one(client):
    ids = {client.post(PREDICT, content=cat()).headers["x-request-id"] for _ in range(2)}

    assert [len(identity) for identity in ids] == [32, 32]


@pytest.mark.parametrize(
    ("given", "kept"),
    [(b"caf\xc3\xa9", "caf"), (b"a\tb", "ab"), (b"a b", "ab"), (b"x" * 500, "x" * 64)],
    ids=["not ASCII", "tab", "space", "long"],
)
def test_of_an_odd_request_id_only_harmless_characters_are_kept(client, given, kept):
    response = client.post(PREDICT, content=cat(), headers={b"X-Request-Id": given})

    assert response.status_code == 200
    assert response.headers["x-request-id"] == kept


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "[bad"},
        {"Host": "127.0.0.1.evil.example"},
    ],
    ids=str,
)
def test_a_foreign_page_is_refused(client, headers):
    response = client.post(PREDICT, content=cat(), headers=headers)

    error = error_of(response)
    assert response.status_code == 403
    assert (error["code"], error["reason"]) == ("PERMISSION_DENIED", "FOREIGN_ORIGIN")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LOCALHOST:8000"},
        {"Host": "[::1]:8000"},
        {"Host": "192.168.1.5:8000"},
        {"Host": HOST},
        {"Host": "localhost:8000", "Origin": "http://localhost:8000"},
        {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"},
        {"Origin": ORIGIN},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
    ],
    ids=str,
)
def test_our_own_page_and_known_names_pass(client, headers):
    assert client.post(PREDICT, content=cat(), headers=headers).status_code == 200


def test_a_link_on_another_site_may_lead_to_the_page(client):
    response = client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})

    assert response.status_code == 200


def test_the_page_may_post_to_its_own_origin(suite, client):
    response = client.post(PREDICT, content=cat(), headers={"Origin": suite.url})

    assert response.status_code == 200


def test_models_are_listed_with_labels_and_metrics(client):
    models = {each["name"]: each for each in client.get("/v1/models").json()["models"]}

    starter = models["cifar10"]
    assert list(models) == sorted(models)
    assert (starter["version"], starter["state"], starter["accepts_images"]) == (1, "READY", True)
    assert len(starter["labels"]) == 10
    assert starter["versions"] == [1]
    assert starter["metrics"]["test_accuracy"] > 0.5
    assert models["sums"]["accepts_images"] is False


def test_health_says_live_and_ready(client):
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200


def test_openapi_describes_every_operation(client):
    document = client.get("/openapi.json").json()

    operations = [operation for path in document["paths"].values() for operation in path.values()]
    references = set(json.dumps(document).split('"$ref": "')[1:])
    schemas = document["components"]["schemas"]
    assert document["openapi"].startswith("3.")
    assert set(document["paths"]) == {
        "/v1/contributors/{contributor}",
        "/v1/deletions/{deletion_id}",
        "/v1/models",
        "/v1/models/{model}/analysis",
        "/v1/models/{model}/loop",
        "/v1/models/{model}/loop/events",
        "/v1/models/{model}/loop/promote",
        "/v1/models/{model}/loop/propose",
        "/v1/models/{model}/loop/reject",
        "/v1/models/{model}/loop/rollback",
        "/v1/models/{model}/loop/trigger",
        "/v1/models/{model}/observations",
        "/v1/models/{model}/predict",
        "/v1/observations/{number}",
        "/v1/observations/{number}/image",
        "/v1/observations/{number}/review",
        "/v1/predictions/{prediction_id}/feedback",
        "/v1/predictions/{prediction_id}/trace",
        "/v2/health/live",
        "/v2/health/ready",
    }
    assert all(operation["description"] and operation["responses"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert {each.split('"')[0].removeprefix("#/components/schemas/") for each in references} <= set(schemas)


def test_openapi_names_both_kinds_of_body_and_the_error(client):
    operation = client.get("/openapi.json").json()["paths"]["/v1/models/{model}/predict"]["post"]

    assert set(operation["requestBody"]["content"]) == {"application/octet-stream", "multipart/form-data"}
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "model",
        "top",
        "version",
        "x-request-timeout",
        "x-routing-key",
    }
    assert "default" in operation["responses"]


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/page/index.html", "text/html"),
        ("/page/page.js", "text/javascript"),
        ("/page/page.css", "text/css"),
        ("/page/icon.svg", "image/svg+xml"),
        ("/page/samples.json", "application/json"),
        ("/page/samples/cat-1.png", "image/png"),
    ],
)
def test_the_page_and_its_files_come_typed_and_guarded(client, path, content_type):
    response = client.get(path)

    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == content_type
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"


def test_the_page_answers_head(client):
    response = client.head("/")

    assert response.status_code == 200
    assert response.content == b""


def test_the_page_is_not_sent_again_when_the_browser_has_it(client):
    known = client.get("/page/page.js").headers["etag"]

    assert client.get("/page/page.js", headers={"If-None-Match": known}).status_code == 304


@pytest.mark.parametrize("path", ["/nothing", "/page/nothing.js", "/page/../settings.py", "/page/%2e%2e/settings.py"])
def test_an_unknown_path_is_not_found_in_our_form(client, path):
    response = client.get(path)

    assert response.status_code == 404
    assert error_of(response)["code"] == "NOT_FOUND"


def test_a_wrong_method_is_refused_in_our_form(client):
    response = client.get(PREDICT)

    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "GET" in error_of(response)["message"]


def test_a_float_model_gets_normalised_pixels(client):
    response = client.post("/v1/models/floats/predict", content=plain((255, 0, 0)))

    # Means of the channels are 0.5, -0.5 and -0.5, so the softmax is known.
    best = response.json()["predictions"][0]
    assert best["label"] == "red"
    assert best["probability"] == pytest.approx(np.e / (np.e + 2), rel=1e-5)


def test_a_client_that_hangs_up_while_it_sends_does_no_harm(suite, client):
    connection = http.client.HTTPConnection("127.0.0.1", suite.ports.http)
    connection.putrequest("POST", PREDICT)
    connection.putheader("Content-Length", "1000000")
    connection.endheaders(cat())
    connection.close()

    assert client.post(PREDICT, content=cat()).status_code == 200


@pytest.mark.parametrize(
    ("query", "headers", "size", "code"),
    [
        ("?top=0", {}, MAX_BODY_BYTES, 400),
        ("", {"Origin": "https://foreign.example"}, MAX_BODY_BYTES, 403),
        ("", {}, 4 * MAX_BODY_BYTES, 413),
    ],
)
def test_a_refusal_reaches_a_client_that_sends_its_whole_body_first(suite, query, headers, size, code):
    connection = http.client.HTTPConnection("127.0.0.1", suite.ports.http)
    connection.request("POST", PREDICT + query, body=bytes(size), headers=headers | {"Connection": "close"})

    assert connection.getresponse().status == code
    connection.close()


def test_a_client_that_waits_to_be_asked_for_its_body_gets_a_refusal_without_it(suite):
    with socket.create_connection(("127.0.0.1", suite.ports.http)) as connection:
        connection.sendall(
            f"POST {PREDICT}?top=0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY_BYTES}\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_form_that_was_cut_off_is_refused_whole(client):
    part = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n' + cat() + b"\r\n"

    response = client.post(
        PREDICT, content=part + part[:-50], headers={"Content-Type": "multipart/form-data; boundary=b"}
    )

    assert response.status_code == 400
    assert "ends before its closing boundary" in error_of(response)["message"]


@pytest.mark.parametrize("path", [PREDICT, "/v1/models/cifar10/loop/trigger", "/v1/observations/4/review"])
def test_an_upload_that_takes_longer_than_the_deadline_ends_with_504(suite, path):
    connection = http.client.HTTPConnection("127.0.0.1", suite.ports.http)
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", "1000000")
    connection.putheader("X-Request-Timeout", "0.2")
    connection.endheaders(cat())
    response = connection.getresponse()

    assert response.status == 504
    assert json.load(response)["error"]["code"] == "DEADLINE_EXCEEDED"
    connection.close()


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/models/cifar10/predict"), ("DELETE", "/v1/observations/4")])
def test_an_allowed_foreign_page_can_call_and_read_the_answer(client, method, path):
    asked = client.options(
        path,
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "content-type",
        },
    )
    listed = client.get("/v1/models", headers={"Origin": ORIGIN})

    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == ORIGIN
    assert listed.headers["access-control-allow-origin"] == ORIGIN
    exposed = listed.headers["access-control-expose-headers"]
    assert exposed == "Server-Timing, Retry-After, Inference-Header-Content-Length, x-request-id"


def test_every_answer_carries_a_request_id(client):
    answers = [client.get(path, headers={"x-request-id": "mine"}) for path in ("/v1/models", "/nowhere", "/")]

    assert [answer.headers["x-request-id"] for answer in answers] == ["mine"] * 3
    assert len(client.get("/v1/models").headers["x-request-id"]) == 32
