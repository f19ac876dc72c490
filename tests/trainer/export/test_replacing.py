"""Graphs are on the disk before they take the place of what was there."""

import os
from pathlib import Path

import pytest
import torch

from services.trainer.data.samples import Samples
from services.trainer.export.graph import export_graph
from services.trainer.export.quantization import draw_calibration, quantize_graph
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The numbers and the sizes of the files that were flushed to the disk, when they were."""
    files = []
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        flush(descriptor)
        status = os.fstat(descriptor)
        files.append((status.st_ino, status.st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    return files


def test_a_graph_is_flushed_before_it_is_there(
    flushed: list[tuple[int, int]], slice_samples: tuple[Samples, Samples], tmp_path: Path
) -> None:
    network = build_network("residual", 10, {"widths": [8, 8, 8], "depths": [0, 0, 0]})
    exported, quantized = tmp_path / "model.onnx", tmp_path / "int8.onnx"

    export_graph(Classifier(network, torch.zeros(3), torch.ones(3)), exported, (32, 32, 3), {"run": "r1"})
    quantize_graph(exported, quantized, draw_calibration(slice_samples[0], 16, seed=0))

    assert flushed == [(path.stat().st_ino, path.stat().st_size) for path in (exported, quantized)]
    assert sorted(tmp_path.iterdir()) == [quantized, exported]
