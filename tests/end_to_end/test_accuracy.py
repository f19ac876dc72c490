"""The accuracy that the starter model is said to have, through the whole suite: PNG in, label out."""

import pytest

from aimass import Client
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.slices import read_slice
from tests.end_to_end.pictures import encode
from tests.end_to_end.suite import MAX_IMAGES


@pytest.fixture
def suite(suites):
    """The suite of one process; the answers of the other mode are the same to the last bit."""
    return suites["pipeline"]


def test_nine_of_ten_test_images_get_their_label(suite):
    _, test = read_slice()
    images = [encode(pixels) for pixels in test.images]
    parts = [images[start : start + MAX_IMAGES] for start in range(0, len(images), MAX_IMAGES)]

    with Client(suite.address) as client:
        found = [outcome.label for part in parts for outcome in client.predict_many(part, top=1, version=1)]

    right = sum(LABELS[truth] == label for truth, label in zip(test.labels, found, strict=True))
    assert len(found) == 1000
    assert right / len(found) >= 0.90
