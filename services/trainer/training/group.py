"""The workers of a run, as the training loop sees them."""

from typing import Protocol

from torch import Tensor, nn


class Group(Protocol):
    """Workers that train one model together and do each of these calls at the same point of the loop."""

    rank: int
    """Which of them this process is, from 0; the first one measures, saves and reports."""
    count: int

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return what is called in place of *network* while training."""

    def average(self, values: Tensor) -> Tensor:
        """Return the mean of *values* over all workers; each gives a tensor of the same shape."""

    def agree(self, value: float) -> float:
        """Return the first worker's *value*."""

    def share(self, model: nn.Module) -> None:
        """Give every worker the first one's weights and buffers."""


class Alone:
    """One worker."""

    rank = 0
    count = 1

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return *network* itself."""
        return network

    def average(self, values: Tensor) -> Tensor:
        """Return *values* themselves."""
        return values

    def agree(self, value: float) -> float:
        """Agree with itself."""
        return value

    def share(self, model: nn.Module) -> None:
        """Have nobody to share with."""
