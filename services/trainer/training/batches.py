"""Shuffled, augmented batches of a training set that lies whole in memory as uint8."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from services.trainer.data.samples import Samples
from services.trainer.options import Augmentation


def epoch_batches(
    samples: Samples, augmentation: Augmentation, *, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images uint8 (B, H, W, 3), labels int64 (B,)); the last incomplete batch of an epoch is left out.

    All randomness comes from *seed* and *epoch*, so a resumed run sees what an uninterrupted one would have seen.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    images, labels = torch.from_numpy(samples.images), torch.from_numpy(samples.labels)
    mirrored = mirrored_in(epoch, len(samples), seed)
    order = torch.randperm(len(samples), generator=generator)
    size = min(batch_size, len(samples))
    for start in range(0, len(samples) - size + 1, size):
        chosen = order[start : start + size]
        batch = images[chosen]
        if augmentation.flip:
            batch = torch.where(mirrored[chosen, None, None, None], batch.flip(2), batch)
        if augmentation.translate:
            batch = translate(batch, augmentation.translate, generator)
        if augmentation.cutout:
            batch = cut_out(batch, augmentation.cutout, generator)
        yield batch, labels[chosen]


def mirrored_in(epoch: int, count: int, seed: int) -> Tensor:
    """Which of *count* images are mirrored in *epoch*, bool (count,).

    A coin decides for the first epoch only; from then on every image alternates, so that no two epochs in a row show
    the same side. That learns faster than a coin per epoch, which repeats itself half of the time.
    """
    first = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    return first if epoch % 2 == 0 else ~first


def translate(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Shift each of *images* (B, H, W, C) by up to *reach* pixels on both axes; the border is mirrored in."""
    count, height, width, _ = images.shape
    padded = functional.pad(images.permute(0, 3, 1, 2).float(), (reach,) * 4, mode="reflect")
    padded = padded.to(images.dtype).permute(0, 2, 3, 1)
    offsets = torch.randint(2 * reach + 1, (2, count, 1), generator=generator)
    rows = offsets[0] + torch.arange(height)  # (B, H)
    columns = offsets[1] + torch.arange(width)  # (B, W)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def cut_out(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blank a square of *side* pixels, wholly inside, at a random place of each of *images* (B, H, W, C)."""
    count, height, width, _ = images.shape
    top = torch.randint(height - side + 1, (count, 1), generator=generator)
    left = torch.randint(width - side + 1, (count, 1), generator=generator)
    rows = (torch.arange(height) >= top) & (torch.arange(height) < top + side)
    columns = (torch.arange(width) >= left) & (torch.arange(width) < left + side)
    hidden = rows[:, :, None, None] & columns[:, None, :, None]
    return images.masked_fill(hidden, 122)  # about the mean of natural images
