import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from services.common.errors import InvalidInput, Unsupported
from services.trainer.data.samples import Samples
from services.trainer.export.graph import check_parity, export_graph, open_graph
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Classifier
from services.trainer.networks.counting import count_multiply_adds
from services.trainer.networks.restructuring import restructure
from services.trainer.options import Pruning
from services.trainer.training.pruning import prune_network

RESIDUAL = ("residual", {"widths": [32, 64, 96], "depths": [0, 0, 1]})
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    RESIDUAL,
    ("alexnet-small", {"head": [256]}),
    ("alexnet-small", {"head": [256], "norm": "batch"}),
    ("torchvision:resnet18", {}),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def example(slice_samples: tuple[Samples, Samples]) -> Tensor:
    return (torch.from_numpy(slice_samples[0].images[:200].copy()).permute(0, 3, 1, 2).float() - 120) / 64


def build(name: str, options: dict[str, Any], example: Tensor) -> Any:
    torch.manual_seed(0)
    network = build_network(name, 10, options)
    network.initialise_from(example)
    return network


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=lambda each: str(each))
def test_pruning_removes_channels_until_the_multiplications_are_few_enough(
    name: str, options: dict[str, Any], example: Tensor
) -> None:
    network = build(name, options, example)
    before = count_multiply_adds(network, example[:1])
    weights = sum(parameter.numel() for parameter in network.parameters())

    prune_network(network, example, Pruning(speedup=2.0))

    assert before / 3 < count_multiply_adds(network, example[:1]) <= before / 2
    assert sum(parameter.numel() for parameter in network.parameters()) < 0.7 * weights
    assert network(example[:3]).shape == (3, 10)
    assert all(module.out_channels % 8 == 0 for module in network.modules() if isinstance(module, nn.Conv2d))


def test_rounds_share_the_removal(example: Tensor) -> None:
    network = build(*RESIDUAL, example)
    before = count_multiply_adds(network, example[:1])

    prune_network(network, example, Pruning(speedup=3.0, steps=3))

    assert before / 5 < count_multiply_adds(network, example[:1]) <= before / 3


def test_the_channels_with_the_smallest_weights_go(example: Tensor) -> None:
    network = build(*RESIDUAL, example)
    convolution = network.stages[3].first.convolution  # within a block, so that nothing else decides
    with torch.no_grad():
        convolution.weight[::2] *= 1e-3
        network.stages[3].second.convolution.weight[:, ::2] *= 1e-3
        network.stages[3].first.norm.bias[:] = 0
    large = convolution.weight.flatten(1).norm(dim=1)[1::2].min() / 10

    prune_network(network, example, Pruning(speedup=2.0))

    assert int((network.stages[3].first.convolution.weight.flatten(1).norm(dim=1) > large).sum()) == 48


def test_whitening_and_the_number_of_logits_stay(example: Tensor) -> None:
    network = build(*RESIDUAL, example)
    whitening = network.whiten.weight.clone()

    prune_network(network, example, Pruning(speedup=4.0))

    assert torch.equal(network.whiten.weight, whitening)
    assert not network.whiten.weight.requires_grad
    assert network.head.out_features == 10


@pytest.mark.parametrize(("name", "options"), NETWORKS[:2], ids=lambda each: str(each))
def test_a_pruned_network_learns_folds_and_is_exported(
    name: str, options: dict[str, Any], example: Tensor, slice_samples: tuple[Samples, Samples], tmp_path: Path
) -> None:
    network = build(name, options, example)
    prune_network(network, example, Pruning(speedup=2.0))
    model = Classifier(network, torch.full((3,), 120.0), torch.full((3,), 64.0))
    images, labels = (
        torch.from_numpy(slice_samples[0].images[:32].copy()),
        torch.from_numpy(slice_samples[0].labels[:32]),
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model.train().logits(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    export_graph(model.eval(), tmp_path / "model.onnx", (32, 32, 3), {})

    assert losses[-1] < losses[0]
    session = open_graph(tmp_path / "model.onnx", threads=1)
    assert check_parity(model, session, slice_samples[1].images[:40]).label_mismatches == 0


def test_a_pruned_network_is_rebuilt_from_its_weights(example: Tensor) -> None:
    network = build(*RESIDUAL, example)
    prune_network(network, example, Pruning(speedup=2.0))
    again = build(*RESIDUAL, example)

    restructure(again, network.state_dict())
    again.load_state_dict(network.state_dict())

    assert torch.equal(again.eval()(example), network.eval()(example))


def test_the_multiplications_of_layers_are_counted() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(32, 5))

    assert count_multiply_adds(network, torch.zeros(1, 3, 9, 9)) == 8 * 16 * 27 + 8 * 4 * 18 + 32 * 5


def test_more_than_there_is_cannot_be_removed(example: Tensor) -> None:
    network = build(*RESIDUAL, example)
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]

    with pytest.raises(InvalidInput, match=r"pruning\.speedup 50 needs more than 90% of the channels"):
        prune_network(network, example, Pruning(speedup=50))

    assert [tuple(parameter.shape) for parameter in network.parameters()] == shapes


def test_a_missing_package_is_named_with_its_remedy(example: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)

    with pytest.raises(Unsupported, match=r"torch-pruning; pip install 'aimass\[pruning\]'"):
        prune_network(build(*RESIDUAL, example), example, Pruning(speedup=2))


def test_pruning_is_the_same_each_time(example: Tensor) -> None:
    network = build(*RESIDUAL, example)
    other = copy.deepcopy(network)

    for each in (network, other):
        prune_network(each, example, Pruning(speedup=2.0))

    pairs = zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(np.array_equal(first, second) for first, second in pairs)
