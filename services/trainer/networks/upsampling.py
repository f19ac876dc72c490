"""Up-sampling inside a network, so that small images stay small on their way to it."""

from torch import Tensor, nn
from torch.nn import functional

from services.common.errors import InvalidInput


class UpSampling(nn.Module):
    """Stretches images to a square, bilinearly; those that have its size pass through.

    Args:
        side: Of the result, in pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        if not 1 <= side <= 1024:
            raise ValueError(f"input_side is {side}; it must be from 1 to 1024")
        self.side = side

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return str(self.side)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C, side, side) of *images* (B, C, H, W).

        Raises:
            InvalidInput: The images are larger; thinning them out here would let fine patterns alias.
        """
        height, width = images.shape[2:]
        if height > self.side or width > self.side:
            raise InvalidInput(
                f"images of {width}x{height} pixels are larger than the network's {self.side}x{self.side}; "
                f"make them smaller where they are prepared, or set network_options.input_side",
                field="network_options",
            )
        if height == width == self.side:
            return images
        return functional.interpolate(images, size=(self.side, self.side), mode="bilinear", align_corners=False)
