import pytest
import torch

from services.trainer.networks.residual import ResidualNetwork


def test_folding_changes_no_logit() -> None:
    torch.manual_seed(0)
    network = ResidualNetwork(10, [8, 16, 16], [1, 0, 1])
    images = torch.randn(8, 3, 32, 32)
    network(images)  # moves the statistics of the norms
    before = network.eval()(images)

    network.fold()

    assert not [name for name, _ in network.named_modules() if name.endswith("norm") and "running_mean" in dir(_)]
    torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-5)


def test_widths_and_depths_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="widths has 2 values and depths 3; give one of each for every stage"):
        ResidualNetwork(10, [8, 8], [0, 0, 0])
