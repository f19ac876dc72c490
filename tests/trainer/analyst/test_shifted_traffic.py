"""The short form of benchmarks/drift.py."""

from pathlib import Path

import numpy as np
import pytest

from aimass.starter import VERSION
from benchmarks.drift import CHANGE, FOUND, Answers, Bank
from services.common.manifest import GRAPH_FILE
from services.trainer.data.samples import Samples
from services.trainer.export.encoder import Encoder
from services.trainer.export.tail import cut_encoder, find_tail

WITHIN = 250
"""Draws."""
PICTURES = 500


@pytest.fixture(scope="module")
def bank(slice_samples: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory) -> Bank:
    path: Path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    cut_encoder(VERSION / GRAPH_FILE, path)
    return Bank(Encoder(path, threads=1), find_tail(VERSION / GRAPH_FILE).head, slice_samples[1][:PICTURES])


def stream(bank: Bank, corruption: str = "") -> Answers:
    """Return pictures as they are, and after `CHANGE` draws spoilt ones."""
    random = np.random.default_rng(0)
    later = bank.spoilt(corruption, 3) if corruption else bank.usual()
    return bank.usual().draw(random, CHANGE).then(later.draw(random, 2 * WITHIN))


@pytest.mark.parametrize("detector", ["answers", "errors"])
def test_blurred_pictures_are_told_of_soon_and_unchanged_ones_never(bank: Bank, detector: str) -> None:
    first = next(FOUND[detector](stream(bank, "gaussian_blur")))

    assert CHANGE < first <= CHANGE + WITHIN
    assert list(FOUND[detector](stream(bank))) == []
