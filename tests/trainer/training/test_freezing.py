import pytest
import torch
from torch import Tensor, nn

from services.common.errors import InvalidInput
from services.trainer.data.samples import Samples
from services.trainer.networks.building import build_network
from services.trainer.networks.classifier import Network
from services.trainer.training.freezing import freeze


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return build_network("residual", 10, {"widths": [16, 24, 32], "depths": [0, 0, 1]})


@pytest.fixture
def batch(slice_samples: tuple[Samples, Samples]) -> tuple[Tensor, Tensor]:
    samples = slice_samples[0][:64]
    return (torch.from_numpy(samples.images).permute(0, 3, 1, 2).float() - 120) / 64, torch.from_numpy(samples.labels)


def state(network: Network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("prefixes", [("stages.0",), ("whiten", "stages"), ("stages.3.first.norm",)])
def test_frozen_parts_stay_bit_for_bit_in_training(
    network: Network, batch: tuple[Tensor, Tensor], prefixes: tuple[str, ...]
) -> None:
    before = state(network)
    frozen = freeze(network, prefixes)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1, momentum=0.9, weight_decay=1e-2)

    for _ in range(3):
        network.train()
        frozen.keep()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch[0]), batch[1]).backward()
        optimizer.step()

    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    kept = {name for name in before if any(name.startswith(f"{prefix}.") for prefix in prefixes)}
    assert kept
    assert not kept & changed
    assert "head.weight" in changed
    assert any(name.endswith("running_mean") for name in before.keys() - kept) == any("running" in n for n in changed)


def test_a_name_is_not_the_beginning_of_a_longer_one() -> None:
    network = nn.ModuleDict({"conv1": nn.Linear(2, 2), "conv10": nn.Linear(2, 2)})

    freeze(network, ["conv1"])

    assert not network["conv1"].weight.requires_grad
    assert network["conv10"].weight.requires_grad


def test_without_prefixes_all_goes_on_learning(network: Network) -> None:
    learning = [parameter.requires_grad for parameter in network.parameters()]

    freeze(network, ()).keep()

    assert [parameter.requires_grad for parameter in network.parameters()] == learning
    assert network.training


def test_an_unknown_module_is_answered_with_the_nearest(network: Network) -> None:
    with pytest.raises(InvalidInput, match=r"freeze names 'stage', which is no module of the network; .*stages"):
        freeze(network, ["stage"])


def test_a_network_that_is_frozen_whole_is_refused(network: Network) -> None:
    with pytest.raises(InvalidInput, match="freeze leaves nothing that learns"):
        freeze(network, ["stages", "head"])
