"""Random changes of a batch of training images; all randomness comes from torch's default generators."""

from collections.abc import Callable

import torch
from torch import Tensor
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
    if augmentation.flip or augmentation.translate:
        images = move(images, mirrored & augmentation.flip, augmentation.translate)
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


def move(images: Tensor, mirrored: Tensor, reach: int) -> Tensor:
    """Mirror those of *images* (B, H, W, C) that *mirrored* (B,) says, then shift each by up to *reach* pixels.

    Both axes are shifted; the border is mirrored in. Every pixel is looked up once where it comes from: with padded
    copies, small networks wait for it.
    """
    count, height, width, channels = images.shape
    device = images.device
    down, right = torch.randint(2 * reach + 1, (2, count), device=device)
    rows = _shifted(height, reach, device)[down]  # (B, H)
    shifted = _shifted(width, reach, device)
    columns = torch.cat((shifted, width - 1 - shifted))[right + mirrored * len(shifted)]  # (B, W)
    sources = _positions(rows, columns, height, width)
    return images.reshape(-1, channels).index_select(0, sources).view(images.shape)


def cut_out(images: Tensor, side: int) -> Tensor:
    """Blank a square of *side* pixels, wholly inside, at a random place of each of *images* (B, H, W, C)."""
    count, height, width, channels = images.shape
    rows = _span(count, height, min(side, height), images.device)
    columns = _span(count, width, min(side, width), images.device)
    blank = _positions(rows, columns, height, width)
    return images.reshape(-1, channels).index_fill(0, blank, MEAN_PIXEL).view(images.shape)


def _span(count: int, length: int, part: int, device: torch.device) -> Tensor:
    """Choose *part* neighbours out of *length* for each of *count*, int64 (count, part)."""
    start = torch.randint(length - part + 1, (count, 1), device=device)
    return start + torch.arange(part, device=device)


def _shifted(length: int, reach: int, device: torch.device) -> Tensor:
    """Where pixels come from when *length* of them are shifted by each of -*reach* to *reach*, mirrored at the ends.

    Int64 (2 reach + 1, length).
    """
    positions = torch.arange(-reach, length + reach, device=device)
    reflected = length - 1 - (length - 1 - positions.abs()).abs()
    return reflected.unfold(0, length, 1)


def _positions(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Return where the pixels at *rows* (B, h) and *columns* (B, w) lie among those of all images, int64 (B h w,)."""
    first = torch.arange(len(rows), device=rows.device)[:, None] * height
    return (((first + rows) * width)[:, :, None] + columns[:, None, :]).flatten()


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
