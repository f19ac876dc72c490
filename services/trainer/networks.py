"""Networks that the trainer knows, and the graph that serves one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.common.errors import InvalidInput


class Network(nn.Module):
    """Normalised float images (B, 3, H, W) to logits (B, classes)."""

    def initialise_from(self, images: Tensor) -> None:
        """Set weights that are computed from normalised training *images* (N, 3, H, W) instead of learnt."""


class Residual(nn.Module):
    """Two convolutions whose result is added to their input; starts as the identity's neighbour."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Convolution(width, width)
        self.second = Convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Convolution(nn.Module):
    """3x3 convolution, pooling where asked, batch norm, ReLU.

    Pooling comes before the norm, which then has a quarter of the work. The norm learns a shift but no scale:
    weight decay on the convolution already fixes the scale, and a positive scale lets the norm be folded into the
    convolution *through* the maximum when the graph is exported.
    """

    def __init__(self, inputs: int, outputs: int, *, pool: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        # The first filters pass their channel through, so that depth costs no signal at the start.
        nn.init.dirac_(self.convolution.weight[:inputs])
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.norm = nn.BatchNorm2d(outputs, momentum=0.4)
        nn.init.ones_(self.norm.weight).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.pool(self.convolution(x))))
