"""Random changes of a batch of training images; all randomness comes from torch's default generators."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from services.trainer.options import Augmentation

MEAN_PIXEL = 122
"""About the mean of natural images; what is cut out is filled with it."""

_POLICIES: dict[str, Callable[[], v2.Transform]] = {
    "auto": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    "rand": v2.RandAugment,
    "trivial": v2.TrivialAugmentWide,
}


def augment(images: Tensor, mirrored: Tensor, augmentation: Augmentation) -> Tensor:
    """Return *images*, uint8 (B, H, W, 3), changed one by one.

    Args:
        images: Stay as they are.
        mirrored: Which of them are mirrored, bool (B,).
        augmentation: Of which flip, translate, cutout and policy are done here.
    """
    if augmentation.flip:
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    if augmentation.translate:
        images = translate(images, augmentation.translate)
    if augmentation.policy != "none":
        images = change(images, _POLICIES[augmentation.policy]())
    if augmentation.cutout:
        images = cut_out(images, augmentation.cutout)
    return images


def mirrored_in(epoch: int, count: int, seed: int) -> Tensor:
    """Which of *count* images are mirrored in *epoch*, bool (count,).

    A coin decides for the first epoch only; from then on every image alternates, so that no two epochs in a row show
    the same side. That learns faster than a coin per epoch, which repeats itself half of the time.
    """
    first = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    return first if epoch % 2 == 0 else ~first


def translate(images: Tensor, reach: int) -> Tensor:
    """Shift each of *images* (B, H, W, C) by up to *reach* pixels on both axes; the border is mirrored in."""
    count, height, width, _ = images.shape
    padded = functional.pad(images.permute(0, 3, 1, 2).float(), (reach,) * 4, mode="reflect")
    padded = padded.to(images.dtype).permute(0, 2, 3, 1)
    offsets = torch.randint(2 * reach + 1, (2, count, 1), device=images.device)
    rows = offsets[0] + torch.arange(height, device=images.device)  # (B, H)
    columns = offsets[1] + torch.arange(width, device=images.device)  # (B, W)
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]]


def cut_out(images: Tensor, side: int) -> Tensor:
    """Blank a square of *side* pixels, wholly inside, at a random place of each of *images* (B, H, W, C)."""
    count, height, width, _ = images.shape
    rows = _span(count, height, min(side, height), images.device)
    columns = _span(count, width, min(side, width), images.device)
    return images.masked_fill(rows[:, :, None, None] & columns[:, None, :, None], MEAN_PIXEL)


def _span(count: int, length: int, part: int, device: torch.device) -> Tensor:
    """Choose *part* neighbours out of *length* for each of *count*, bool (count, length)."""
    start = torch.randint(length - part + 1, (count, 1), device=device)
    position = torch.arange(length, device=device)
    return (position >= start) & (position < start + part)


def change(images: Tensor, transform: v2.Transform) -> Tensor:
    """Apply *transform* to each of *images* (B, H, W, C) by itself: over a batch it would draw only once."""
    return torch.stack([transform(image) for image in images.permute(0, 3, 1, 2)]).permute(0, 2, 3, 1)


def mix(images: Tensor, labels: Tensor, classes: int, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """Blend images with each other (mixup) or paste rectangles of others into them (cutmix), and labels alike.

    Zhang et al. 2018, Yun et al. 2019. With both on, a coin decides for the batch.

    Args:
        images: Uint8 (B, H, W, 3).
        labels: Int64 (B,).
        classes: Number of labels.
        augmentation: Of which mixup and cutmix are done here.

    Returns:
        Images as they came in kind, and shares of the labels, float32 (B, classes).
    """
    kinds: list[v2.Transform] = []
    if augmentation.mixup:
        kinds.append(v2.MixUp(alpha=augmentation.mixup, num_classes=classes))
    if augmentation.cutmix:
        kinds.append(v2.CutMix(alpha=augmentation.cutmix, num_classes=classes))
    kind = kinds[int(torch.randint(len(kinds), ()))]
    # Back in bytes, the batch is what a served teacher takes; the rounding is far below what mixing changes.
    mixed, shares = kind(images.permute(0, 3, 1, 2).float(), labels)
    return mixed.round().to(torch.uint8).permute(0, 2, 3, 1), shares
