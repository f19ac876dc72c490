"""The classifier that is trained, evaluated and served around a network."""

from torch import Tensor, nn
from torch.nn import functional


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
