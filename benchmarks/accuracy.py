"""Accuracy of the starter model on the test images, measured through the running suite: PNG in, label out.

The full 10,000 images where `aimass data fetch cifar10` was run, else the 1,000 of the slice in the repository.
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
from services.trainer import cifar10, slices
from services.trainer.evaluation import wilson_interval
from services.trainer.samples import Samples
from services.trainer.settings import TrainerSettings

REQUEST_IMAGES = 100


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return uint8 (H, W, 3) *pixels* as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


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
    folder = load_settings(TrainerSettings).data / "cifar10"
    _, samples = cifar10.read(folder) if cifar10.is_present(folder) else slices.read_slice()
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
