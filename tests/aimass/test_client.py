"""The Python client against a running suite."""

import subprocess
import sys

import pytest

import aimass
from aimass import AsyncClient, Client, Label, Model, Prediction, PredictionError
from tests.end_to_end.pictures import SAMPLES, cat, cifar, encode
from tests.end_to_end.suite import Ports


@pytest.fixture
def client(suite):
    with Client(suite.address) as client:
        yield client


@pytest.fixture
async def async_client(suite):
    async with AsyncClient(suite.address) as client:
        yield client


def check_cat(prediction):
    assert isinstance(prediction, Prediction)
    assert prediction.label == "cat"
    assert prediction.labels[0] == Label("cat", prediction.probability)
    assert (prediction.model, prediction.version) == ("cifar10", 1)
    assert 0 < prediction.timings.inference < prediction.timings.total


def test_predict_takes_bytes_a_path_or_its_name(client):
    path = next(path for path in SAMPLES if path.name.startswith("cat"))

    for image in (cat(), path, str(path)):
        check_cat(client.predict(image))


async def test_the_async_client_predicts_alike(async_client):
    check_cat(await async_client.predict(cat()))


def test_predict_many_keeps_order_and_returns_errors_in_their_places(client):
    outcomes = client.predict_many([cat(), b"text", encode(cifar()[0])], top=1)

    good, bad, other = outcomes
    assert [type(outcome) for outcome in outcomes] == [Prediction, PredictionError, Prediction]
    assert good.label == "cat"
    assert len(other.labels) == 1
    assert (bad.code, bad.reason) == ("INVALID_ARGUMENT", "NOT_AN_IMAGE")
    assert bad.message == str(bad)


async def test_the_async_client_predicts_many_alike(async_client):
    outcomes = await async_client.predict_many([cat(), b""])

    assert [type(outcome) for outcome in outcomes] == [Prediction, PredictionError]


def test_predict_raises_the_error_of_a_bad_image(client):
    with pytest.raises(PredictionError, match="0 bytes") as caught:
        client.predict(b"")

    assert caught.value.reason == "EMPTY_IMAGE"


def test_predict_raises_the_error_of_a_bad_request(client):
    with pytest.raises(PredictionError, match="'dogs' is unknown") as caught:
        client.predict(cat(), "dogs")

    assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")


async def test_the_async_client_raises_alike(async_client):
    with pytest.raises(PredictionError, match="no version 9"):
        await async_client.predict(cat(), version=9)


def test_predict_gives_up_after_its_timeout(client):
    with pytest.raises(PredictionError) as caught:
        client.predict(cat(), timeout=1e-6)

    assert caught.value.code == caught.value.reason == "DEADLINE_EXCEEDED"


def test_a_file_that_does_not_exist_is_an_error_of_the_file(client):
    with pytest.raises(FileNotFoundError):
        client.predict("nothing.png")


def test_models_are_typed(client):
    models = {model.name: model for model in client.models()}

    starter = models["cifar10"]
    assert isinstance(starter, Model)
    assert (starter.version, starter.ready, starter.accepts_images) == (1, True, True)
    assert starter.labels[3] == "cat"
    assert starter.ready_versions == (1,)
    assert starter.metrics["test_accuracy"] > 0.5


async def test_the_async_client_lists_the_same_models(client, async_client):
    assert await async_client.models() == client.models()


@pytest.mark.parametrize("call", [lambda client: client.models(), lambda client: client.predict(cat())])
def test_a_suite_that_is_away_is_an_error_that_says_what_to_do(call):
    with (
        Client(f"127.0.0.1:{Ports.free().grpc}") as client,
        pytest.raises(PredictionError, match="aimass up") as caught,
    ):
        call(client)

    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "UNAVAILABLE")


async def test_the_async_client_says_alike_that_a_suite_is_away():
    async with AsyncClient(f"127.0.0.1:{Ports.free().grpc}") as client:
        with pytest.raises(PredictionError, match="aimass up"):
            await client.models()


def modules_after(statement):
    """Return the names of all modules that a new process has imported after *statement*."""
    command = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", command], text=True).split())


def test_the_package_imports_nothing_by_itself():
    ours = {"aimass", "services", "gateway"}

    modules = modules_after("import aimass")

    assert {name for name in modules if name.split(".")[0] in ours} == {"aimass"}
    assert "grpc" not in modules


def test_the_client_imports_nothing_of_the_services():
    heavy = {"torch", "onnxruntime", "numpy", "PIL", "pydantic", "fastapi", "services", "gateway"}

    modules = modules_after("from aimass import Client")

    assert heavy.isdisjoint(name.split(".")[0] for name in modules)
    assert not [name for name in modules if name.startswith(("aimass.open_inference", "aimass.inference"))]


def test_the_command_line_imports_no_engine_before_it_is_needed():
    modules = modules_after("import aimass.cli")

    assert {"torch", "onnxruntime", "services", "gateway"}.isdisjoint(modules)


def test_the_package_offers_what_it_names_and_nothing_else():
    assert sorted(aimass.__all__) == aimass.__all__
    assert all(getattr(aimass, name).__module__ == "aimass.client" for name in aimass.__all__)
    with pytest.raises(AttributeError, match="Cleint"):
        _ = aimass.Cleint


def test_a_proxy_in_the_environment_does_not_stand_between_the_client_and_this_machine(suite, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    with Client(suite.address) as client:
        check_cat(client.predict(cat()))
