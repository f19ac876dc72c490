"""The classifier that is trained, evaluated and served around a network."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.common.errors import InvalidInput, Unsupported

Views = Literal[1, 2, 6]


class Network(nn.Module):
    """Normalised float images (B, 3, H, W) to logits (B, classes).

    Attributes:
        head: The last layer: features to logits.
    """

    head: nn.Module

    def initialise_from(self, images: Tensor) -> None:
        """Set weights that are computed from normalised training *images* (N, 3, H, W) instead of learnt."""

    def fold(self) -> None:
        """Merge what only training needs into the weights; in evaluation mode the results stay the same.

        The exporter merges a batch norm behind its convolution by itself; only what it cannot know is done here.
        """

    def embed(self, images: Tensor) -> Tensor:
        """Return what the head decides on, (B, features)."""
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that makes the logits.

        Raises:
            Unsupported: There is none that is fully connected.
        """
        layer = getattr(self, "head", None)
        if not isinstance(layer, nn.Linear):
            raise Unsupported(
                f"{type(self).__name__} does not end in a fully connected layer, so it has no features to give; "
                "use another network"
            )
        return layer

    def set_head(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> None:
        """Give the last layer other numbers, so that it computes features · weightᵀ + bias.

        Args:
            weight: (classes, features).
            bias: (classes,); None is none, also where the layer has one.

        Raises:
            Unsupported: There is no last layer that is fully connected.
            InvalidInput: The layer is of another size, or has no bias and is given one.
        """
        layer = self.last_layer
        own = tuple(layer.weight.shape)
        if weight.shape != own or (bias is not None and (layer.bias is None or bias.shape != own[:1])):
            shifts = "no bias" if bias is None else f"a bias of shape {bias.shape}"
            raise InvalidInput(
                f"weights of shape {weight.shape} and {shifts} do not fit a last layer of {own} "
                f"{'without' if layer.bias is None else 'with'} a bias; fit them on the features of this network"
            )
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            if bias is not None:
                layer.bias.copy_(torch.from_numpy(bias))
            elif layer.bias is not None:
                layer.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.embed(images))
        return logits


class Classifier(nn.Module):
    """A network with the arithmetic before and after it: uint8 pixels to probabilities.

    This whole module is exported, so training and serving cannot differ.

    Args:
        network: What is trained.
        mean: Per channel, in units of 0 to 255.
        std: Per channel, in the same units.
        views: What each answer is the mean of: 1 is the image; 2 adds its mirror image; 6 adds both again, shifted by
            a pixel up and left, and down and right, where the unshifted pair has half of the weight (Jordan 2024).

    Attributes:
        temperature: Logits are divided by it; fitted after training, so that a confidence of 80 % is right in 80 %.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network, mean: Tensor, std: Tensor, views: Views = 1) -> None:
        super().__init__()
        self.network = network
        self.views = views
        self.temperature = 1.0
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def normalise(self, image: Tensor) -> Tensor:
        """Return uint8 NHWC pixels as float NCHW with zero mean and unit variance."""
        return ((image.float() - self.mean) / self.std).permute(0, 3, 1, 2)

    def logits(self, image: Tensor) -> Tensor:
        """Return the logits (B, classes) of uint8 images (B, H, W, 3), averaged over the views, before temperature."""
        images = self.normalise(image)
        if self.views == 1:
            return self.network(images)  # type: ignore[no-any-return]
        # One batch of all views: a graph has the network once, and it runs at full width also for a single image.
        seen = self.network(torch.cat(_views(images, self.views))).unflatten(0, (self.views, -1))
        pair: Tensor = seen[:2].mean(dim=0)
        return pair if self.views == 2 else (pair + seen[2:].mean(dim=0)) / 2

    def forward(self, image: Tensor) -> Tensor:
        """Return the probabilities (B, classes) of uint8 images (B, H, W, 3)."""
        return functional.softmax(self.logits(image) / self.temperature, dim=1)


def _views(images: Tensor, count: int) -> list[Tensor]:
    """Return *images* (B, C, H, W) as they are seen, the unshifted pair first."""
    seen = [images]
    if count == 6:
        height, width = images.shape[2:]
        padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
        seen += [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    return [view for shift in seen for view in (shift, shift.flip(3))]
