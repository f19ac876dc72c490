"""`Predict` and `ListModels` of running suites, in both modes."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from tests.end_to_end.pictures import animated_gif, cat, cifar, encode, huge_png
from tests.end_to_end.suite import MAX_IMAGES, MAX_MESSAGE_BYTES


@pytest.fixture
def stub(suite):
    with suite.stub() as stub:
        yield stub


def refusal(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value


def reason_of(error):
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info.reason


def test_predict_answers_with_labels_version_and_timings(stub):
    response = stub.Predict(pb.PredictRequest(model="cifar10", images=[cat()]))

    (result,) = response.results
    timings = response.timings
    assert (response.model, response.version) == ("cifar10", 1)
    assert len(result.prediction.labels) == 5
    assert result.prediction.labels[0].label == "cat"
    assert len(result.prediction.prediction_id) == 32
    assert timings.inference.ToNanoseconds() > 0
    assert timings.total.ToNanoseconds() >= timings.preprocess.ToNanoseconds() + timings.inference.ToNanoseconds()


def test_predict_puts_a_bad_images_error_in_its_place(stub):
    images = [encode(cifar()[0]), b"", cat(), huge_png(), animated_gif([cifar()[1], cifar()[2]])]

    results = stub.Predict(pb.PredictRequest(model="cifar10", images=images, top=1)).results

    assert [each.WhichOneof("outcome") for each in results] == ["prediction", "error"] * 2 + ["prediction"]
    assert [each.error.reason for each in results[1::2]] == ["EMPTY_IMAGE", "TOO_MANY_PIXELS"]
    assert results[2].prediction.labels[0].label == "cat"


def test_predict_answers_images_together_as_it_answers_them_alone(stub):
    images = [encode(image) for image in cifar()[:5]]

    together = stub.Predict(pb.PredictRequest(model="cifar10", images=images)).results
    alone = [stub.Predict(pb.PredictRequest(model="cifar10", images=[image])).results[0] for image in images]

    for one, other in zip(together, alone, strict=True):
        assert [each.label for each in one.prediction.labels] == [each.label for each in other.prediction.labels]
        assert [each.probability for each in one.prediction.labels] == pytest.approx(
            [each.probability for each in other.prediction.labels], abs=1e-4
        )


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (pb.PredictRequest(model="cifar10"), "INVALID_ARGUMENT", f"0 images; send 1 to {MAX_IMAGES}"),
        (pb.PredictRequest(model="cifar10", images=[b""] * 41), "INVALID_ARGUMENT", "41 images"),
        (pb.PredictRequest(model="cifar10", images=[b""], top=-1), "INVALID_ARGUMENT", "top is -1"),
        (pb.PredictRequest(model="cifar10", images=[b""], version=-1), "INVALID_ARGUMENT", "version is -1"),
        (pb.PredictRequest(images=[b""]), "NOT_FOUND", "model '' is unknown"),
        (
            pb.PredictRequest(model="dogs", images=[b""]),
            "NOT_FOUND",
            "'dogs' is unknown; name one that this suite has: cifar10",
        ),
        (
            pb.PredictRequest(model="cifar10", images=[b""], version=9),
            "NOT_FOUND",
            "no version 9; name one that it has: 1",
        ),
        (pb.PredictRequest(model="sums", images=[cat()]), "FAILED_PRECONDITION", "takes tensors only"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else None,
)
def test_predict_refuses_a_wrong_request_with_a_sentence(stub, request_, code, words):
    error = refusal(stub.Predict, request_)

    assert error.code().name == code
    assert words in error.details()
    assert reason_of(error)


def test_predict_is_refused_when_its_message_is_over_the_limit(stub):
    request = pb.PredictRequest(model="cifar10", images=[bytes(MAX_MESSAGE_BYTES)])

    error = refusal(stub.Predict, request)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_MESSAGE_BYTES) in error.details()


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 1e-6])
def test_predict_ends_with_deadline_exceeded_when_the_deadline_has_passed(stub, timeout):
    error = refusal(stub.Predict, pb.PredictRequest(model="cifar10", images=[cat()]), timeout=timeout)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_predict_answers_many_callers_at_once(suite):
    async with grpc.aio.insecure_channel(suite.address) as channel:
        stub = GatewayServiceStub(channel)
        calls = [stub.Predict(pb.PredictRequest(model="cifar10", images=[encode(each)])) for each in cifar()[:24]]

        ids = [(await call).results[0].prediction.prediction_id for call in calls]

    assert len(set(ids)) == 24


def test_list_models_describes_all_models(stub):
    models = {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}

    starter = models["cifar10"]
    assert list(models) == sorted(models)
    assert (starter.version, starter.ready, starter.accepts_images) == (1, True, True)
    assert starter.labels[3] == "cat"
    assert starter.ready_versions == [1]
    assert 0.5 < starter.metrics["test_accuracy"] <= 1
    assert not models["sums"].accepts_images
