import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from services.trainer.networks.counting import count_multiply_adds
from services.trainer.networks.residual import ResidualNetwork


def test_convolution_costs_its_kernel_at_each_output() -> None:
    convolution = nn.Conv2d(3, 8, 5, stride=2, padding=2)

    size = count_multiply_adds(convolution, torch.zeros(1, 3, 32, 32))

    assert size == 16 * 16 * 8 * 3 * 25


def test_groups_divide_the_cost() -> None:
    convolution = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)

    assert count_multiply_adds(convolution, torch.zeros(1, 8, 4, 4)) == 16 * 72


def test_fully_connected_layer_costs_its_weights() -> None:
    assert count_multiply_adds(nn.Linear(20, 10), torch.zeros(1, 20)) == 200


def test_layer_that_is_used_twice_costs_twice() -> None:
    layer = nn.Linear(4, 4, bias=False)

    assert count_multiply_adds(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 4)) == 32


@pytest.mark.parametrize("batch", [1, 3])
def test_counts_are_for_one_image(batch: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))

    found = count_multiply_adds(network, torch.zeros(batch, 3, 8, 8))

    assert found == 36 * 108 + 288


def test_network_of_ours_costs_half_the_operations_that_torch_counts() -> None:
    """Torch counts a product and the sum it is added to as two."""
    network = ResidualNetwork(10, widths=(16, 24, 32), depths=(0, 0, 1)).eval()
    example = torch.zeros(2, 3, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example)

    found = count_multiply_adds(network, example)

    assert found == counter.get_total_flops() / 2 / len(example)


def test_counting_leaves_the_network_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    network[2].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    count_multiply_adds(network, torch.ones(2, 3, 8, 8))

    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert [layer.training for layer in network] == [True, True, False]
    assert not any(layer._forward_hooks for layer in network.modules())


def test_counting_leaves_no_hooks_where_the_network_fails() -> None:
    network = nn.Sequential(nn.Linear(3, 3), Failing())

    with pytest.raises(RuntimeError, match="as it must"):
        count_multiply_adds(network, torch.zeros(1, 3))

    assert not network[0]._forward_hooks
    assert network.training


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("as it must")
