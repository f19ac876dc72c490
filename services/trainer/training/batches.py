"""Shuffled, augmented batches of a training set."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from services.common.errors import InvalidInput
from services.trainer.data.samples import Samples
from services.trainer.options import Augmentation, TrainingOptions
from services.trainer.training.augmentation import augment, mirrored_in, mix


class Batches:
    """The batches of every epoch, each computed from its own seed: one that is resumed sees what it would have seen.

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
        seed, count = self._options.seed, len(self._samples)
        augmentation = self._options.augmentation
        order = torch.randperm(count, generator=_generator(seed, epoch))
        mirrored = mirrored_in(epoch, count, seed)
        for number in range(first, self.per_epoch):
            chosen = order[number * self._size : (number + 1) * self._size][self._part]
            torch.manual_seed(_seed(seed, epoch, number, self._rank))  # also for dropout, in the step that follows
            images = augment(self._images(chosen), mirrored[chosen].to(self._device), augmentation)
            labels = torch.from_numpy(self._samples.labels[chosen.numpy()]).to(self._device)
            if augmentation.mixup or augmentation.cutmix:
                images, labels = mix(images, labels, self._classes, augmentation)
            yield images, labels

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


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*parts))
