import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aimass.starter import VERSION
from services.common.errors import InvalidInput
from services.common.manifest import GRAPH_FILE
from services.trainer.data.samples import Samples
from services.trainer.export.encoder import Encoder
from services.trainer.export.graph import open_graph, run_graph
from services.trainer.export.tail import cut_encoder, find_tail
from services.trainer.statistics.heads import head_probabilities

STARTER = VERSION / GRAPH_FILE
COUNT = 130


@pytest.fixture(scope="module")
def images(slice_samples: tuple[Samples, Samples]) -> NDArray[np.uint8]:
    return slice_samples[1].images[:COUNT]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder of the starter model."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    cut_encoder(STARTER, path)
    return path


def test_an_encoder_gives_the_features_that_the_model_decides_on(path: Path, images: NDArray[np.uint8]) -> None:
    encoder = Encoder(path, threads=1)

    features = encoder.embed(images)

    assert features.shape == (COUNT, encoder.width)
    assert features.dtype == np.float32
    found = head_probabilities(find_tail(STARTER).head, features)
    assert np.allclose(found, run_graph(open_graph(STARTER, threads=1), images, 32), atol=1e-5)


def test_the_features_of_an_image_do_not_depend_on_its_neighbours(path: Path, images: NDArray[np.uint8]) -> None:
    encoder = Encoder(path, threads=1)

    together = encoder.embed(images)

    assert np.allclose(encoder.embed(images[COUNT - 1 :]), together[-1:], atol=1e-4)
    assert encoder.embed(images[:0]).shape == (0, encoder.width)


def test_an_encoder_is_known_by_what_cutting_it_off_returned(path: Path) -> None:
    assert Encoder(path, threads=1).digest == cut_encoder(STARTER, path)


def test_a_whole_graph_is_no_encoder() -> None:
    with pytest.raises(InvalidInput, match=r"model.onnx gives probabilities and not features; cut the encoder off"):
        Encoder(STARTER, threads=1)


def test_images_of_another_size_are_refused(path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"shape \(28, 32, 3\) were given to an encoder of \(32, 32, 3\); give"):
        Encoder(path, threads=1).embed(np.zeros((1, 28, 32, 3), np.uint8))


def test_embedding_needs_no_torch() -> None:
    code = (
        "import sys, services.trainer.export.encoder\nsys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
