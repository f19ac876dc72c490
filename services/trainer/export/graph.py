"""From a trained classifier to the ONNX graph that is served, with the proof that both compute the same."""

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from services.common.errors import Conflict, Unsupported
from services.common.manifest import Golden, GoldenTensor
from services.trainer.data.samples import Samples
from services.trainer.runs.folder import replacing

if TYPE_CHECKING:  # torch takes seconds to import, and who only asks graphs does without
    from services.trainer.networks.classifier import Classifier

INPUT = "image"
"""UINT8 [batch, height, width, 3]: pixels as they come out of preprocessing."""
OUTPUT = "probabilities"
"""FP32 [batch, classes]: softmax is inside the graph."""

MOST_BYTES = 2_000_000_000
"""Of weights; a protobuf message ends at 2 GiB."""
PARITY_BATCHES = (1, 2, 7, 32)
PARITY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Parity:
    """How far a graph is from the classifier it was made of.

    Attributes:
        samples: Images compared, at each of the batch sizes.
        largest_difference: Between two probabilities.
        label_mismatches: Images whose most probable label differs, over all batch sizes.
    """

    samples: int
    largest_difference: float
    label_mismatches: int


def export_graph(
    model: "Classifier", path: Path, image_shape: tuple[int, int, int], metadata: Mapping[str, str]
) -> None:
    """Write *model* to *path* as one self-contained ONNX file with a free batch dimension.

    Args:
        model: Stays as it is; a copy is folded and exported.
        path: Replaced atomically.
        image_shape: (height, width, 3).
        metadata: Goes into the graph's `metadata_props`.

    Raises:
        Unsupported: The weights are more than one file of the format holds.
    """
    import torch

    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > MOST_BYTES:
        raise Unsupported(
            f"the network has {size / 1e9:.1f} GB of weights and an ONNX file holds {MOST_BYTES / 1e9:.1f}; "
            "train a smaller network"
        )
    folded = copy.deepcopy(model).eval()
    folded.network.fold()
    example = torch.zeros((2, *image_shape), dtype=torch.uint8)  # not 1: a batch of one would be taken as constant
    with torch.inference_mode():
        folded(example)  # modules that keep constants have made them before the tracer looks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter; parity is checked below
        program = torch.onnx.export(
            folded,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    proto.producer_name = "aimass"
    onnx.helper.set_model_props(proto, dict(metadata))
    _strip_notes(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    with replacing(path) as file:
        onnx.save_model(proto, file)


def _strip_notes(graph: onnx.GraphProto) -> None:
    """Remove what the exporter notes of the source; it holds stack traces with paths of this machine."""
    parts: list[Any] = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def open_graph(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open the graph at *path* on the CPU; *threads* 0 is one per core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_graph(session: onnxruntime.InferenceSession, images: NDArray[np.uint8], batch_size: int) -> NDArray[np.float32]:
    """Return the probabilities (n, classes) of *images* (n, H, W, 3), computed *batch_size* at a time."""
    starts = range(0, len(images), batch_size)
    return np.concatenate([session.run([OUTPUT], {INPUT: images[at : at + batch_size]})[0] for at in starts])


def check_parity(
    model: "Classifier",
    session: onnxruntime.InferenceSession,
    images: NDArray[np.uint8],
    tolerance: float = PARITY_TOLERANCE,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> Parity:
    """Compare the graph with *model* in float32 on real *images*, at each of `PARITY_BATCHES`.

    All images at all sizes: 2,000 images of the AlexNet with 227 pixels take two to three minutes on two cores, half
    of them at batch 1 and 2, where its 233 MB of weights are read for one or two images.

    Args:
        model: What the graph was made of.
        session: The graph.
        images: Uint8 (n, H, W, 3).
        tolerance: Largest difference between two probabilities.
        on_progress: Told the fraction done, from 0 to 1.

    Raises:
        Conflict: A label differs, or a probability differs by more than *tolerance*; the message has the figures.
    """
    import torch

    with torch.inference_mode():
        model.eval()
        expected = np.concatenate([model(batch).numpy() for batch in torch.split(torch.from_numpy(images), 32)])
    largest, mismatches = 0.0, 0
    for done, size in enumerate(PARITY_BATCHES, start=1):
        on_progress(done / (len(PARITY_BATCHES) + 1))
        found = run_graph(session, images, size)
        largest = max(largest, float(np.abs(found - expected).max()))
        mismatches += int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
    on_progress(1.0)
    parity = Parity(len(images), largest, mismatches)
    if mismatches or not largest <= tolerance:  # "not <=" so that NaN is refused
        raise Conflict(
            f"the exported graph differs from the trained network: {mismatches} labels of {len(images)} images at "
            f"batch sizes {', '.join(map(str, PARITY_BATCHES))}, probabilities by up to {largest:.2e}; "
            f"none and {tolerance:.0e} are allowed",
            reason="PARITY",
        )
    return parity


def make_golden(session: onnxruntime.InferenceSession, samples: Samples) -> Golden:
    """Return *samples* and the graph's answers to them, which a server checks before it serves the graph."""
    probabilities = run_graph(session, samples.images, len(samples))
    return Golden(
        inputs=(GoldenTensor.from_array(INPUT, "UINT8", samples.images),),
        outputs=(GoldenTensor.from_array(OUTPUT, "FP32", probabilities),),
    )


def graph_metadata(labels: tuple[str, ...], dataset: str) -> dict[str, str]:
    """Return what a graph says of itself, should its manifest be lost.

    Not which run has made it: runs that have learnt the same give the same bytes, by which it can be shown that one
    has learnt nothing of what was deleted.
    """
    return {"labels": json.dumps(labels), "dataset": dataset}
