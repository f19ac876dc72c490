import numpy as np
import torch

from services.trainer.data.samples import Samples
from services.trainer.options import Augmentation
from services.trainer.training.batches import cut_out, epoch_batches, mirrored_in, translate

PLAIN = Augmentation(flip=False, translate=0, cutout=0)


def _ramp(count: int = 10) -> Samples:
    """Images that grow to the right, each labelled with its number."""
    images = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None], (count, 32, 32, 3)).copy()
    return Samples(images, np.arange(count))


def _labels(epoch: int, seed: int = 0) -> list[int]:
    batches = epoch_batches(_ramp(), PLAIN, batch_size=4, seed=seed, epoch=epoch)
    return [int(label) for _, labels in batches for label in labels]


def test_an_epoch_shows_whole_batches_without_repetition() -> None:
    labels = _labels(epoch=0)

    assert len(labels) == len(set(labels)) == 8


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert _labels(epoch=1) == _labels(epoch=1)
    assert _labels(epoch=1) != _labels(epoch=2)
    assert _labels(epoch=1) != _labels(epoch=1, seed=1)


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    batches = list(epoch_batches(_ramp(3), PLAIN, batch_size=8, seed=0, epoch=0))

    assert [len(labels) for _, labels in batches] == [3]


def test_plain_batches_pass_pixels_unchanged() -> None:
    images, _ = next(epoch_batches(_ramp(), PLAIN, batch_size=4, seed=0, epoch=0))

    assert np.array_equal(images.numpy(), _ramp().images[:4])


def test_every_image_alternates_between_its_two_sides() -> None:
    first, second, third = (mirrored_in(epoch, 100, seed=0) for epoch in range(3))

    assert torch.equal(second, ~first)
    assert torch.equal(third, first)
    assert 30 < int(first.sum()) < 70


def test_flip_mirrors_left_and_right() -> None:
    flip = Augmentation(flip=True, translate=0, cutout=0)
    images, labels = next(epoch_batches(_ramp(), flip, batch_size=10, seed=0, epoch=0))

    for image, mirrored in zip(images.numpy(), mirrored_in(0, 10, seed=0)[labels], strict=True):
        assert np.array_equal(image, _ramp().images[0][:, ::-1] if mirrored else _ramp().images[0])


def test_translate_shifts_by_whole_pixels_within_reach() -> None:
    images = torch.from_numpy(_ramp(64).images)

    moved = translate(images, 2, torch.Generator().manual_seed(0))

    shifts = moved[:, 16, 16, 0].int() - 16  # a ramp shows its own shift
    assert set(shifts.tolist()) == {-2, -1, 0, 1, 2}
    inner = moved[:, 4:-4, 4:-4, 0].int() - images[:, 4:-4, 4:-4, 0].int()
    assert torch.equal(inner, shifts[:, None, None].expand_as(inner))


def test_cut_out_blanks_one_square_in_each_image() -> None:
    images = torch.zeros((50, 32, 32, 3), dtype=torch.uint8)

    blanked = cut_out(images, 8, torch.Generator().manual_seed(0)) != images

    assert blanked.sum(dim=(1, 2, 3)).tolist() == [8 * 8 * 3] * 50
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in blanked}) > 30
