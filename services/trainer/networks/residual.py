"""A fast residual network for small images."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from services.trainer.networks.classifier import Network


class ResidualNetwork(Network):
    """A small residual network for 32x32 pixels that learns fast.

    The first convolution is not learnt: it whitens 2x2 patches of the training images, which conditions everything
    behind it. Each stage widens, halves the resolution, then refines with residual blocks.

    Args:
        classes: Number of labels.
        widths: Channels of each of the three stages.
        depths: Residual blocks in each stage; as many as there are widths.
    """

    def __init__(self, classes: int, widths: Sequence[int] = (64, 128, 256), depths: Sequence[int] = (1, 1, 1)) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise ValueError(
                f"widths has {len(widths)} values and depths {len(depths)}; give one of each for every stage"
            )
        self.whiten = nn.Conv2d(3, 24, 2, bias=False)
        self.whiten.weight.requires_grad_(False)
        stages: list[nn.Module] = []
        for inputs, outputs, depth in zip((24, *widths[:-1]), widths, depths, strict=True):
            stages += [Convolution(inputs, outputs, pool=True), *(Residual(outputs) for _ in range(depth))]
        self.stages = nn.Sequential(*stages)
        self.head = ScaledLinear(widths[-1], classes, bias=False)

    def initialise_from(self, images: Tensor) -> None:
        """Set the whitening filters: the principal components of 2x2 patches, each with both signs."""
        filters = whitening_filters(images, side=2)
        self.whiten.weight.data = torch.cat([filters, -filters])

    def fold(self) -> None:
        """Merge every batch norm into its convolution."""
        for module in self.stages.modules():
            if isinstance(module, Convolution):
                module.fold()

    def embed(self, images: Tensor) -> Tensor:
        """Return the largest value of each channel of the last stage, (B, widths[-1])."""
        x = functional.relu(self.whiten(images))  # (B, 24, H - 1, W - 1)
        features: Tensor = self.stages(x).amax(dim=(2, 3))
        return features

    def set_head(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None:
        """Give the last layer other numbers; they are what features are multiplied by."""
        super().set_head(weight * np.float32(ScaledLinear.DIVISOR), bias)


class ScaledLinear(nn.Linear):
    """A fully connected layer with small logits at the start, which keep the first steps at a high rate gentle."""

    DIVISOR = 8
    """Of the weights; a power of two changes none of their digits."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, out_features)."""
        return functional.linear(input, self.weight / self.DIVISOR, self.bias)


class Residual(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Convolution(width, width)
        self.second = Convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of *x*."""
        refined: Tensor = self.second(self.first(x))
        return x + refined


class Convolution(nn.Module):
    """3x3 convolution, pooling where asked, batch norm, ReLU.

    Pooling comes before the norm, which then has a quarter of the work. The norm learns a shift but no scale: a scale
    that is always positive lets export fold the norm into the convolution *through* the maximum.
    """

    def __init__(self, inputs: int, outputs: int, *, pool: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        # The first filters pass their channel through, so that depth costs no signal at the start.
        nn.init.dirac_(self.convolution.weight.data[:inputs])
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        norm = nn.BatchNorm2d(outputs)
        norm.weight.requires_grad_(False)
        self.norm: nn.Module = norm

    def fold(self) -> None:
        """Merge the norm into the convolution; the maximum commutes with a positive scale and a shift."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.convolution = fuse_conv_bn_eval(self.convolution.eval(), self.norm.eval())
            self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W), or half of H and W where it pools."""
        return torch.relu(self.norm(self.pool(self.convolution(x))))


def whitening_filters(images: Tensor, side: int, floor: float = 5e-4) -> Tensor:
    """Return filters (3 * side², 3, side, side) with uncorrelated outputs of unit variance on patches of *images*.

    Args:
        images: Normalised, (N, 3, H, W).
        side: Of a patch, in pixels.
        floor: Added to every variance, so that directions without signal are not blown up.
    """
    patches = functional.unfold(images, side).transpose(1, 2).reshape(-1, images.shape[1] * side * side)
    variances, directions = torch.linalg.eigh(torch.cov(patches.T))
    filters: Tensor = directions.T / torch.sqrt(variances[:, None] + floor)
    return filters.reshape(-1, images.shape[1], side, side)
