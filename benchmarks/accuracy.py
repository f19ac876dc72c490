"""Accuracy of the starter model on the test images, measured through the running suite: PNG in, label out.

All 10,000 images where `aimass data fetch cifar10` was run, else the 1,000 of the slice in the repository; it prints
which of the two.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aimass import Client, Prediction
from benchmarks.suites import running_suite
from services.common.settings import load_settings
from services.trainer.data import cifar10, slices
from services.trainer.data.samples import Samples
from services.trainer.evaluation.figures import wilson_interval
from services.trainer.settings import TrainerSettings

REQUEST_IMAGES = 100


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return uint8 (H, W, 3) *pixels* as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_test_images(folder: Path) -> tuple[str, Samples]:
    """Return what to call the test images, and those: of the full set in *folder*, or else of the slice."""
    if cifar10.is_present(folder):
        return "cifar10, all 10,000 test images", cifar10.read(folder)[1]
    name = "cifar10-slice, 1,000 of the 10,000 test images; for all of them, run `aimass data fetch cifar10`"
    return name, slices.read_slice()[1]


def predicted_labels(client: Client, samples: Samples) -> Iterator[str]:
    """Yield the best label of each sample."""
    for start in range(0, len(samples), REQUEST_IMAGES):
        images = [as_png(pixels) for pixels in samples.images[start : start + REQUEST_IMAGES]]
        for outcome in client.predict_many(images, top=1):
            if not isinstance(outcome, Prediction):
                raise outcome
            yield outcome.label


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("pipeline", "services"), default="pipeline")
    options = parser.parse_args()
    name, samples = read_test_images(load_settings(TrainerSettings).data / "cifar10")
    print(f"data set: {name}")
    with (
        tempfile.TemporaryDirectory() as home,
        running_suite(options.mode, Path(home)) as suite,
        Client(f"127.0.0.1:{suite.grpc_port}") as client,
    ):
        labels = predicted_labels(client, samples)
        correct = sum(cifar10.LABELS[truth] == label for truth, label in zip(samples.labels, labels, strict=True))
    low, high = wilson_interval(correct, len(samples))
    accuracy = correct / len(samples)
    print(f"{correct} of {len(samples)} test images right: {accuracy:.2%} (95 % interval {low:.2%} to {high:.2%})")


if __name__ == "__main__":
    main()
