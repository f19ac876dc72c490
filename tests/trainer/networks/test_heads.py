"""A last layer that was fitted elsewhere can be put into a network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aimass.starter import RUN, VERSION
from services.common.errors import InvalidInput, Unsupported
from services.common.manifest import GRAPH_FILE
from services.trainer.data.samples import Samples
from services.trainer.export.encoder import Encoder
from services.trainer.export.graph import check_parity, open_graph
from services.trainer.export.tail import cut_encoder, find_tail, replace_tail
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Network
from services.trainer.networks.weights import load_weights
from services.trainer.runs.folder import WEIGHTS_FILE
from services.trainer.statistics.heads import fit_head

WEIGHT = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
BIAS = np.arange(10, dtype=np.float32)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
RESIDUAL: tuple[str, dict[str, Any]] = ("residual", {"widths": [8, 8, 16], "depths": [0, 0, 0]})
SMALL: tuple[str, dict[str, Any]] = ("alexnet-small", {"head": [16]})


@pytest.mark.parametrize(("network", "bias"), [(RESIDUAL, None), (SMALL, BIAS), (SMALL, None)])
def test_a_network_multiplies_its_features_by_the_weights_it_was_given(network: Any, bias: Any) -> None:
    built = build_network(network[0], 10, network[1]).eval()

    built.set_head(WEIGHT, bias)

    with torch.no_grad():
        features, logits = built.embed(IMAGES).numpy(), built(IMAGES).numpy()
    assert np.allclose(logits, features @ WEIGHT.T + (0 if bias is None else bias), atol=1e-5)


def test_the_last_layer_of_a_network_that_was_not_written_here_is_found() -> None:
    network = build_network("torchvision:resnet18", 10, {}).eval()
    weight = np.random.default_rng(0).normal(size=(10, 512)).astype(np.float32)

    network.set_head(weight, BIAS)

    with torch.no_grad():
        features, logits = network.embed(IMAGES).numpy(), network(IMAGES).numpy()
    assert np.allclose(logits, features @ weight.T + BIAS, rtol=1e-4, atol=1e-4)


def test_the_starter_refitted_answers_as_its_graph_does(slice_samples: tuple[Samples, Samples], tmp_path: Path) -> None:
    graph = VERSION / GRAPH_FILE
    samples = slice_samples[1][:200]
    cut_encoder(graph, tmp_path / "encoder.onnx")
    features = Encoder(tmp_path / "encoder.onnx", threads=1).embed(samples.images)
    shuffled = (samples.labels + 1) % 10  # far from what the starter says
    head = fit_head(features, shuffled, find_tail(graph).head, rounds=50)
    replace_tail(graph, tmp_path / "model.onnx", head, {})
    model, _ = load_weights(RUN / WEIGHTS_FILE)

    model.network.set_head(head.weight, head.bias)

    assert model.temperature == pytest.approx(head.temperature, rel=1e-6)
    images = samples.images[:40]
    parity = check_parity(model, open_graph(tmp_path / "model.onnx", threads=1), images, tolerance=1e-5)
    assert parity.label_mismatches == 0
    with torch.inference_mode():
        logits = model.logits(torch.from_numpy(images)).numpy()
    assert np.allclose(logits, features[:40] @ head.weight.T, atol=1e-3)
    assert (logits.argmax(axis=1) == shuffled[:40]).mean() > 0.5


@pytest.mark.parametrize(
    ("network", "weight", "bias", "sentence"),
    [
        (SMALL, WEIGHT[:1], None, r"weights of shape \(1, 16\) and no bias do not fit a last layer of \(10, 16\) with"),
        (SMALL, WEIGHT, BIAS[:1], r"and a bias of shape \(1,\) do not fit a last layer of \(10, 16\) with a bias"),
        (RESIDUAL, WEIGHT, BIAS, r"a bias of shape \(10,\) do not fit a last layer of \(10, 16\) without a bias; fit"),
    ],
)
def test_what_does_not_fit_is_refused(network: Any, weight: Any, bias: Any, sentence: str) -> None:
    built = build_network(network[0], 10, network[1])

    with pytest.raises(InvalidInput, match=sentence):
        built.set_head(weight, bias)


class Corner(Network):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :10]


@pytest.mark.parametrize("head", [None, nn.Sequential(nn.Linear(16, 10))])
def test_a_network_without_a_last_layer_of_its_own_is_refused(head: nn.Module | None) -> None:
    network = Corner()
    if head is not None:
        network.head = head

    with pytest.raises(Unsupported, match="Corner does not end in a fully connected layer"):
        network.set_head(WEIGHT, None)
