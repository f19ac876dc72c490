"""How long a caller says that it waits, on every kind of route."""

import json

import pytest

from tests.end_to_end.pictures import cat

TENSORS = [{"name": name, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} for name in "ab"]
ROUTES = {
    "predict": ("POST", "/v1/models/cifar10/predict", cat()),
    "infer": ("POST", "/v2/models/sums/infer", json.dumps({"inputs": TENSORS})),
    "generate": ("POST", "/v2/models/sums/generate", json.dumps({"a": [1, 2, 3, 4], "b": [1, 2, 3, 4]})),
    "stream": ("POST", "/v2/models/sums/generate_stream", json.dumps({"a": [1, 2, 3, 4], "b": [1, 2, 3, 4]})),
    "metadata": ("GET", "/v2/models/sums", b""),
    "index": ("POST", "/v2/repository/index", b""),
    "load": ("POST", "/v2/repository/models/sums/load", b""),
    "regions": ("POST", "/v2/systemsharedmemory/region/nothing/unregister", b""),
}


def answer(suite, route, timeout):
    method, path, content = ROUTES[route]
    with suite.client() as client:
        return client.request(method, path, content=content, headers={"X-Request-Timeout": timeout})


@pytest.mark.parametrize("timeout", ["inf", "1e308", "1e18", "1e12"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_timeout_without_an_end_is_none(suite, route, timeout):
    assert answer(suite, route, timeout).status_code == 200


@pytest.mark.parametrize("timeout", ["0", "-1", "-1e308", "-inf"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_timeout_that_is_over_ends_with_504_and_our_sentence(suite, route, timeout):
    refused = answer(suite, route, timeout)

    assert refused.status_code == 504
    assert "the deadline of 0 s passed" in refused.text


@pytest.mark.parametrize("route", ROUTES)
def test_a_timeout_that_is_no_number_is_refused(suite, route):
    refused = answer(suite, route, "nan")

    assert refused.status_code == 400
    assert "x-request-timeout is 'nan'; give seconds" in refused.text
