"""Networks that the trainer knows, and the classifier that is trained, evaluated and served around one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from services.common.errors import InvalidInput


class Network(nn.Module):
    """Normalised float images (B, 3, H, W) to logits (B, classes)."""

    def initialise_from(self, images: Tensor) -> None:
        """Set weights that are computed from normalised training *images* (N, 3, H, W) instead of learnt."""

    def fold(self) -> None:
        """Merge what only training needs into the weights; in evaluation mode the results stay the same."""


class Classifier(nn.Module):
    """A network with the arithmetic before and after it: uint8 pixels to probabilities.

    This whole module is exported, so training and serving cannot differ.

    Args:
        network: What is trained.
        mean: Per channel, in units of 0 to 255.
        std: Per channel, in the same units.

    Attributes:
        temperature: Logits are divided by it; fitted after training, so that a confidence of 80 % is right in 80 %.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.temperature = 1.0
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def normalise(self, image: Tensor) -> Tensor:
        """Return uint8 NHWC pixels as float NCHW with zero mean and unit variance."""
        return ((image.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def forward(self, image: Tensor) -> Tensor:
        """Return the probabilities (B, classes) of uint8 images (B, H, W, 3)."""
        return functional.softmax(self.network(self.normalise(image)) / self.temperature, dim=1)


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
        self.whiten = nn.Conv2d(3, 24, 2, bias=False)
        self.whiten.weight.requires_grad_(False)
        stages: list[nn.Module] = []
        for inputs, outputs, depth in zip((24, *widths[:-1]), widths, depths, strict=True):
            stages += [Convolution(inputs, outputs, pool=True), *(Residual(outputs) for _ in range(depth))]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def initialise_from(self, images: Tensor) -> None:
        """Set the whitening filters: the principal components of 2x2 patches, each with both signs."""
        filters = whitening_filters(images, side=2)
        self.whiten.weight.data = torch.cat([filters, -filters])

    def fold(self) -> None:
        """Merge every batch norm into its convolution."""
        for module in self.stages.modules():
            if isinstance(module, Convolution):
                module.fold()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = functional.relu(self.whiten(x))  # (B, 24, 31, 31)
        x = self.stages(x).amax(dim=(2, 3))  # (B, widths[-1])
        # Small logits at the start keep the first steps gentle at a high learning rate.
        return functional.linear(x, self.head.weight / 8)


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


NETWORKS: dict[str, Callable[..., Network]] = {
    "residual": ResidualNetwork,
}


def build_network(name: str, classes: int, options: Mapping[str, Any]) -> Network:
    """Construct the network called *name* with random weights.

    Raises:
        InvalidInput: There is no such network, or it does not take these options.
    """
    if name not in NETWORKS:
        raise InvalidInput(f"network {name!r} is unknown; use one of {', '.join(NETWORKS)}", field="network")
    try:
        return NETWORKS[name](classes, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"network {name!r} refuses {dict(options)}: {error}", field="network_options") from error
