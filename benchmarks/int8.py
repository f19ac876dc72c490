"""What int8 gains and loses where it is served: a model and its conversion behind one inference service, over gRPC.

For the folder of each finished conversion (`aimass export RUN --precision int8`), all test images go through both
versions, and rounds of requests to the one and to the other take turns. The callers run in this process, so what they
cost is taken from the same processors and counts most against the faster graph.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import uvloop
from numpy.typing import NDArray

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from benchmarks.accuracy import read_test_images
from benchmarks.callers import rate
from benchmarks.suites import running_inference
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE
from services.common.settings import load_settings
from services.trainer.data.samples import Samples
from services.trainer.evaluation.figures import wilson_interval
from services.trainer.export.comparison import Quality, compare_quality
from services.trainer.export.graph import INPUT
from services.trainer.options import ConversionOptions
from services.trainer.runs.folder import RunFolder
from services.trainer.settings import TrainerSettings

PARENT, CONVERTED = "1", "2"
LOADS = ((1, 64), (32, 3))
"""Images in a request, and callers of whom each waits for its answer."""
EVALUATION_BATCH = 32


@dataclass
class Comparison:
    """What a pair of versions came to."""

    quality: Quality
    rates: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    """Images per second of each round, by images in a request and version."""

    def ratio(self, images: int) -> str:
        """Return how many times as fast the conversion is: the median round, and the half of them in the middle."""
        pairs = zip(self.rates[images, CONVERTED], self.rates[images, PARENT], strict=True)
        low, middle, high = statistics.quantiles((new / old for new, old in pairs), n=4, method="inclusive")
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def publish(converted: RunFolder, repository: Path) -> str:
    """Lay a conversion and its parent into *repository* as versions of one model; return the name."""
    options = converted.request().options
    assert isinstance(options, ConversionOptions)
    parent = RunFolder(converted.path.parent / options.source.removeprefix("run:"))
    for version, folder in ((PARENT, parent), (CONVERTED, converted)):
        place = repository / parent.path.name / version
        place.mkdir(parents=True)
        for name in (GRAPH_FILE, MANIFEST_FILE):
            shutil.copy(folder / name, place)
    return parent.path.name


def make_request(model: str, version: str, images: NDArray[np.uint8]) -> pb.ModelInferRequest:
    """Return a request for *images*, uint8 (B, H, W, 3)."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, raw_input_contents=[images.tobytes()])
    request.inputs.add(name=INPUT, datatype="UINT8", shape=images.shape)
    return request


async def correct(stub: GRPCInferenceServiceStub, model: str, version: str, samples: Samples) -> NDArray[np.bool_]:
    """Return whether the version's best label is right, for each sample."""
    found = []
    for start in range(0, len(samples), EVALUATION_BATCH):
        images = samples.images[start : start + EVALUATION_BATCH]
        response = await stub.ModelInfer(make_request(model, version, images))
        found.append(np.frombuffer(response.raw_output_contents[0], np.float32).reshape(len(images), -1).argmax(axis=1))
    return np.concatenate(found) == samples.labels


async def compare(address: str, model: str, samples: Samples, rounds: int, seconds: float) -> Comparison:
    """Measure both versions of *model* in turns, and once before to warm up."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        before, after = [await correct(stub, model, version, samples) for version in (PARENT, CONVERTED)]
        comparison = Comparison(compare_quality(before, after))
        for turn in range(rounds + 1):
            for images, callers in LOADS:
                for version in sorted((PARENT, CONVERTED), reverse=turn % 2 == 1):
                    request = make_request(model, version, samples.images[:images])
                    found = await rate(stub, request, images, callers, seconds)
                    if turn:
                        comparison.rates.setdefault((images, version), []).append(found)
    return comparison


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conversions", nargs="+", type=Path, metavar="FOLDER", help="of a conversion that is finished")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--threads", type=int, default=0, help="of one run of a graph; 0 means one per processor")
    options = parser.parse_args()
    name, samples = read_test_images(load_settings(TrainerSettings).data / "cifar10")
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, onnxruntime {onnxruntime.__version__}; {name}; "
        f"{options.rounds} rounds of {options.seconds:g} s\n"
    )
    loads = " | ".join(f"{images} image{'s' * (images > 1)}, {callers} callers" for images, callers in LOADS)
    print(f"| model | float32 | int8 | lost, won | {loads} | float32, int8 images/s |")
    print("|---" * (5 + len(LOADS)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        models = [publish(RunFolder(path), Path(folder)) for path in options.conversions]
        with running_inference(Path(folder), options.threads) as address:
            for model in models:
                found = uvloop.run(compare(address, model, samples, options.rounds, options.seconds))
                print(f"| {' | '.join(row(model, found))} |", flush=True)


def row(model: str, found: Comparison) -> list[str]:
    """Return the cells of a pair of versions."""
    quality = found.quality
    accuracies = [_accuracy(count, quality.samples) for count in (quality.parent_correct, quality.candidate_correct)]
    most = LOADS[-1][0]
    rates = [f"{statistics.median(found.rates[most, version]):.0f}" for version in (PARENT, CONVERTED)]
    ratios = [found.ratio(images) for images, _ in LOADS]
    return [model, *accuracies, f"{quality.lost}, {quality.won}", *ratios, ", ".join(rates)]


def _accuracy(count: int, samples: int) -> str:
    low, high = wilson_interval(count, samples)
    return f"{count / samples:.2%} ({low:.2%} to {high:.2%})"


if __name__ == "__main__":
    main()
