"""Shuffled, augmented batches of a training set."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from services.common.errors import InvalidInput
from services.trainer.data.samples import Samples
from services.trainer.options import Augmentation, TrainingOptions
from services.trainer.training.augmentation import augment, mirrored_in, mix

BLOCK_BYTES = 4 << 20
"""Batches are made several at once, up to this much: beside a small network's step, which leaves no cache warm, the
twenty operations of a batch cost more than their work."""


class Batches:
    """The batches of every epoch, from seeds of their own: an epoch that goes on shows what it would have shown.

    On a GPU the whole set is kept there as uint8. On the CPU it stays where it is, which may be a file mapped into
    memory.

    Args:
        samples: The training samples.
        classes: Number of labels.
        options: Batch size, augmentation, seed.
        device: Where batches are needed.
        rank: Which of *count* workers this is; each takes its part of every batch.
        count: Workers that share a batch.

    Attributes:
        per_epoch: Batches of an epoch; the last incomplete one is left out.

    Raises:
        InvalidInput: The workers cannot have parts of the same size, as their mean gradient would ask for, or the
            augmentation is too large for the images.
    """

    def __init__(
        self, samples: Samples, classes: int, options: TrainingOptions, device: torch.device, rank: int, count: int
    ) -> None:
        check_augmentation(options.augmentation, *samples.images.shape[1:3])
        self._size = min(options.batch_size, len(samples))
        part = share_of(self._size, count)
        self.per_epoch = len(samples) // self._size
        self._at_once = max(1, BLOCK_BYTES // max(1, self._size * samples.images[0].nbytes))
        self._samples = samples
        self._classes = classes
        self._options = options
        self._part = slice(rank * part, (rank + 1) * part)
        self._rank = rank
        self._device = device
        self._resident = torch.from_numpy(np.array(samples.images)).to(device) if device.type == "cuda" else None

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images uint8 (B, H, W, 3), labels) of *epoch*, from 0, beginning with batch *first*.

        Labels are int64 (B,), or float32 (B, classes) where images are mixed. B is this worker's part of a batch.
        """
        augmentation = self._options.augmentation
        block, done = divmod(first, self._at_once)
        for number, (images, labels) in enumerate(islice(self._changed(epoch, block), done, None), first):
            self._reseed(epoch, number, self._rank)  # also for dropout, in the step that follows
            if augmentation.mixup or augmentation.cutmix:
                images, labels = mix(images, labels, self._classes, augmentation)
            yield images, labels

    def _changed(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of *epoch*, not mixed yet, beginning with block *first*."""
        count = len(self._samples)
        mirrored = mirrored_in(epoch, count, self._options.seed)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(_seed(self._options.seed, epoch)))
        batches = order[: self.per_epoch * self._size].view(-1, self._size)[:, self._part]
        for number, block in enumerate(torch.split(batches, self._at_once)[first:], first):
            chosen = block.flatten()
            self._reseed(epoch, number, self._rank, 1)  # 1: other numbers than the batch's own
            images = augment(self._images(chosen), mirrored[chosen].to(self._device), self._options.augmentation)
            labels = torch.from_numpy(self._samples.labels[chosen.numpy()]).to(self._device)
            size = block.shape[1]
            yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)

    def _reseed(self, *parts: int) -> None:
        seed = _seed(self._options.seed, *parts)
        # `torch.manual_seed` seeds every kind of device, and takes 0.16 ms a batch where there is none of them.
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _images(self, chosen: Tensor) -> Tensor:
        if self._resident is not None:
            return self._resident[chosen.to(self._device)]
        return torch.from_numpy(self._samples.images[chosen.numpy()])


def share_of(size: int, count: int) -> int:
    """Return how many of *size* samples, a batch, each of *count* workers has.

    Raises:
        InvalidInput: The parts would not be equal.
    """
    if size % count:
        raise InvalidInput(
            f"a batch of {size} cannot be shared evenly by {count} workers; use a multiple of {count}",
            field="batch_size",
        )
    return size // count


def check_augmentation(augmentation: Augmentation, height: int, width: int) -> None:
    """Refuse what leaves nothing of images of that size.

    Raises:
        InvalidInput: They would be shifted out of sight, or blanked out from edge to edge.
    """
    most = min(height, width) - 1
    for name, value in (("translate", augmentation.translate), ("cutout", augmentation.cutout)):
        if value > most:
            raise InvalidInput(
                f"augmentation.{name} is {value}, and the images are {width} x {height} pixels; set it to {most} at "
                "most",
                field=f"augmentation.{name}",
            )


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
