"""AlexNet, as in the paper and for small images."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from services.trainer.networks.classifier import Network
from services.trainer.networks.normalization import LocalResponseNorm
from services.trainer.networks.upsampling import UpSampling

CHANNELS = (96, 256, 384, 384, 256)
"""Of the five convolutions."""

Norm = Literal["lrn", "batch", "none"]


class AlexNet(Network):
    """Five convolutions and three fully connected layers (Krizhevsky, Sutskever, Hinton 2012).

    Convolutions of 96 (11x11, stride 4, no padding), 256 (5x5), 384, 384 and 256 (3x3) channels; local response
    normalisation after the first two; 3x3 pools with stride 2 after both norms and after the last convolution;
    4096-4096-classes with dropout. It has 58,322,314 weights for 10 classes and 62,378,344 for 1,000.

    The pixels are 227x227 because the classifier needs 6x6 features: 227 -> 55 -> 27 -> 13 -> 6. At the paper's 224
    without padding it would be 54 -> 26 -> 12 -> 5. Smaller images are up-sampled inside the network, so that 32x32
    pixels are sent as 3 kB. The paper parts convolutions into two groups, one for each of its graphics cards; here
    every filter sees all channels.

    Weights begin as `initialise` says, not as in the paper.

    Args:
        classes: Number of labels.
        input_side: Pixels that the first convolution sees; 227, or up to 258 where 6x6 features remain.
        dropout: Share of the inputs of both hidden layers that is blanked in training.
    """

    def __init__(self, classes: int, input_side: int = 227, dropout: float = 0.5) -> None:
        super().__init__()
        side = pooled(pooled(pooled((input_side - 11) // 4 + 1)))
        if side != 6:
            raise ValueError(
                f"input_side {input_side} leaves {side}x{side} features and the classifier needs 6x6; use 227"
            )
        self.up_sampling = UpSampling(input_side)
        self.features = convolutions(nn.Conv2d(3, CHANNELS[0], 11, stride=4), "lrn")
        self.hidden = hidden_layers(CHANNELS[-1] * side * side, (4096, 4096), dropout)
        self.head = nn.Linear(4096, classes)
        initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return the second hidden layer, (B, 4096)."""
        features: Tensor = self.hidden(self.features(self.up_sampling(images)))
        return features


class SmallAlexNet(Network):
    """AlexNet's channels for small images: a variant that is not in the paper.

    The first convolution is 5x5 with stride 1, so that 32 pixels suffice: 32 -> 15 -> 7 -> 3. For 10 classes it has
    29,983,114 weights, most of them in the hidden layers, which *head* makes smaller.

    Args:
        classes: Number of labels.
        input_side: Pixels that the first convolution sees; smaller images are up-sampled inside the network.
        head: Widths of the hidden layers.
        norm: `lrn` after the first two convolutions as in AlexNet, `batch` norm in all five, or `none`.
        dropout: Share of the inputs of each hidden layer that is blanked in training.
    """

    def __init__(
        self,
        classes: int,
        input_side: int = 32,
        head: Sequence[int] = (4096, 4096),
        norm: Norm = "lrn",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        side = pooled(pooled(pooled(input_side)))
        if side < 1:
            raise ValueError(f"input_side {input_side} leaves nothing after three pools; use 15 or more")
        if norm not in ("lrn", "batch", "none"):
            raise ValueError(f"norm {norm!r} is unknown; use lrn, batch or none")
        self.up_sampling = UpSampling(input_side)
        self.features = convolutions(nn.Conv2d(3, CHANNELS[0], 5, padding=2, bias=norm != "batch"), norm)
        self.hidden = hidden_layers(CHANNELS[-1] * side * side, head, dropout)
        self.head = nn.Linear((CHANNELS[-1] * side * side, *head)[-1], classes)
        initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        """Return the last hidden layer, (B, head[-1])."""
        features: Tensor = self.hidden(self.features(self.up_sampling(images)))
        return features


def convolutions(first: nn.Conv2d, norm: Norm) -> nn.Sequential:
    """Return *first* and the four convolutions behind it, with their norms and pools."""
    c1, c2, c3, c4, c5 = CHANNELS
    bias = norm != "batch"  # a batch norm has a shift of its own
    return nn.Sequential(
        *_activated(first, norm, lrn=True),
        nn.MaxPool2d(3, stride=2),
        *_activated(nn.Conv2d(c1, c2, 5, padding=2, bias=bias), norm, lrn=True),
        nn.MaxPool2d(3, stride=2),
        *_activated(nn.Conv2d(c2, c3, 3, padding=1, bias=bias), norm),
        *_activated(nn.Conv2d(c3, c4, 3, padding=1, bias=bias), norm),
        *_activated(nn.Conv2d(c4, c5, 3, padding=1, bias=bias), norm),
        nn.MaxPool2d(3, stride=2),
    )


def _activated(convolution: nn.Conv2d, norm: Norm, *, lrn: bool = False) -> list[nn.Module]:
    if norm == "batch":
        return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
    return [convolution, nn.ReLU(), *([LocalResponseNorm()] if lrn and norm == "lrn" else [])]


def hidden_layers(inputs: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Return (B, C, H, W) flattened to (B, inputs), then fully connected layers with dropout before and ReLU after."""
    layers: list[nn.Module] = [nn.Flatten()]
    for entering, leaving in zip((inputs, *widths), widths, strict=False):
        layers += [nn.Dropout(dropout), nn.Linear(entering, leaving), nn.ReLU()]
    return nn.Sequential(*layers)


def pooled(side: int) -> int:
    """Return the side of (side, side) features after a 3x3 pool with stride 2."""
    return (side - 3) // 2 + 1


def initialise(network: Network) -> None:
    """Draw the weights as He et al. 2015, those of the head from N(0, 0.01); shifts begin at 0.

    AlexNet on the slice of CIFAR-10, one run each: after 60 steps of 64 images with the mission's rate the loss (mean
    of ten steps) is 2.16 from here, 2.57 from the paper's start (N(0, 0.01), shifts of 1) and still 2.30, which is
    knowing nothing, from torch's own. With He's spread in the head too, the first batch's loss is 3.7 instead of 2.9.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module is network.head:
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
