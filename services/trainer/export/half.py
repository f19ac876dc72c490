"""Exports a classifier that computes in float16."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from services.common.errors import Conflict
from services.trainer.export.graph import export_graph, open_graph, run_graph
from services.trainer.networks.classifier import Classifier, Network

HALF_TOLERANCE = 1e-2
"""Largest difference between two probabilities; float16 has 11 bits, and errors add up over the layers."""

_BATCH = 32


@dataclass(frozen=True)
class HalfParity:
    """How far a float16 graph is from the float32 graph that it was made of.

    Attributes:
        samples: Images compared.
        largest_difference: Between two probabilities.
        label_changes: Images whose most probable label differs; all of them were ties within the tolerance.
    """

    samples: int
    largest_difference: float
    label_changes: int


def export_half(model: Classifier, path: Path, image_shape: tuple[int, int, int], metadata: Mapping[str, str]) -> None:
    """Write *model* to *path* as `export_graph` does, with float16 weights and arithmetic, in half of the size.

    Pixels are normalised, and logits become probabilities, in float32; a local response normalisation stays in it too,
    because its squares would overflow above 255. ONNX Runtime's own converter rounds to float16 between nodes that
    were to stay in float32, so the network itself is converted, and the exporter writes what torch computes.

    It pays on GPUs. On x86 CPUs ONNX Runtime has no float16 kernels for convolutions and computes them in float32: on a
    Xeon, one thread, `residual` and `alexnet-small` were 0.88 to 1.04 times as fast as in float32, medians of 5 rounds.

    Args:
        model: Stays as it is.
        path: Replaced atomically.
        image_shape: (height, width, 3).
        metadata: Goes into the graph's `metadata_props`.
    """
    halved = copy.deepcopy(model)
    halved.network = _HalfNetwork(halved.network)
    export_graph(halved, path, image_shape, metadata)


class _HalfNetwork(Network):
    """Float32 images to float32 logits, and float16 between them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def fold(self) -> None:
        """Fold in float32, where scales and weights are still exact, then halve."""
        self.network.fold()
        self.network.half()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(images.half())
        return logits.float()


def check_half(
    source: Path, half: Path, images: NDArray[np.uint8], *, threads: int = 0, tolerance: float = HALF_TOLERANCE
) -> HalfParity:
    """Compare the two graphs on real *images*, uint8 (n, H, W, 3).

    Raises:
        Conflict: A probability differs by more than *tolerance*, or a label that was no tie within it.
    """
    before, after = (run_graph(open_graph(path, threads), images, _BATCH) for path in (source, half))
    largest = float(np.abs(before - after).max())
    changed = before.argmax(axis=1) != after.argmax(axis=1)
    second, first = np.sort(before[changed], axis=1)[:, -2:].T
    wrong = int((first - second > 2 * tolerance).sum())
    if wrong or not largest <= tolerance:  # "not <=" so that NaN is refused
        raise Conflict(
            f"the float16 graph differs from the float32 graph: {wrong} labels of {len(images)} images, probabilities "
            f"by up to {largest:.2e}; none and {tolerance:.0e} are allowed, so use int8 or float32 for this model",
            reason="PARITY",
        )
    return HalfParity(len(images), largest, int(changed.sum()))
