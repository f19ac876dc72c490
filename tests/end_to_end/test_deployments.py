"""One process or four: the answers are the same to the last bit."""

import struct

import pytest

from aimass.gateway.v1 import gateway_pb2 as pb
from tests.end_to_end.pictures import SAMPLES, animated_gif, cifar, encode, large

PICTURES = {
    "PNG": lambda: encode(cifar()[0]),
    "JPEG": lambda: encode(cifar()[1], "JPEG", quality=90),
    "progressive JPEG": lambda: encode(cifar()[2], "JPEG", progressive=True),
    "grey JPEG": lambda: encode(cifar()[3][:, :, 0], "JPEG"),
    "WebP": lambda: encode(cifar()[4], "WEBP", quality=80),
    "lossless WebP": lambda: encode(cifar()[5], "WEBP", lossless=True),
    "GIF": lambda: encode(cifar()[6], "GIF"),
    "animated GIF": lambda: animated_gif(list(cifar()[7:10])),
    "BMP": lambda: encode(cifar()[10], "BMP"),
    "TIFF": lambda: encode(cifar()[11], "TIFF"),
    "AVIF": lambda: encode(cifar()[12], "AVIF"),
    "large JPEG": large,
} | {path.stem: path.read_bytes for path in SAMPLES}


def bits_of(suite, image, model):
    """Return labels with the bits of their probabilities."""
    with suite.stub() as stub:
        (result,) = stub.Predict(pb.PredictRequest(model=model, images=[image], top=10)).results
    return [(each.label, struct.pack("<f", each.probability)) for each in result.prediction.labels]


@pytest.mark.parametrize("model", ["cifar10", "floats"])
@pytest.mark.parametrize("picture", PICTURES)
def test_an_image_sent_alone_gives_bit_identical_probabilities_in_both_modes(suites, picture, model):
    image = PICTURES[picture]()

    one, other = (bits_of(suite, image, model) for suite in suites.values())

    assert len(one) == (10 if model == "cifar10" else 3)
    assert one == other


def test_http_gives_the_probabilities_that_grpc_gives(suite):
    image = PICTURES["JPEG"]()

    with suite.client() as client:
        answer = client.post("/v1/models/cifar10/predict", content=image, params={"top": 10}).json()

    assert [(each["label"], struct.pack("<f", each["probability"])) for each in answer["predictions"]] == bits_of(
        suite, image, "cifar10"
    )


def test_a_refusal_is_the_same_in_both_modes(suites):
    documents = []
    for suite in suites.values():
        with suite.client() as client:
            bad = [client.post(f"/v1/models/cifar10/predict{query}", content=b"text") for query in ("", "?version=3")]
            documents.append([(each.status_code, each.json()) for each in bad])

    assert documents[0] == documents[1]


def test_an_unknown_model_is_refused_the_same_way_in_both_modes(suites):
    documents = []
    for suite in suites.values():
        with suite.client() as client:
            answer = client.post("/v1/models/dogs/predict", content=b"text")
        error = answer.json()["error"]
        # The names that follow are those of the suite, to which another test may have published.
        sentence, _, names = error["message"].partition("; name one that this suite has: ")
        assert "cifar10" in names.split(", ")
        documents.append((answer.status_code, error["code"], error["reason"], sentence))

    assert documents[0] == documents[1]
