import numpy as np
import pytest
import torch

from services.trainer.options import Augmentation
from services.trainer.training.augmentation import augment, cut_out, mirrored_in, mix, move

PLAIN = Augmentation(flip=False, translate=0)
RAMP = torch.arange(32, dtype=torch.uint8)[:, None].expand(32, 32, 3)
"""An image that grows to the right."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def ramps(count: int) -> torch.Tensor:
    return RAMP.expand(count, 32, 32, 3).clone()


def test_plain_augmentation_passes_pixels_unchanged() -> None:
    assert torch.equal(augment(ramps(4), torch.ones(4, dtype=torch.bool), PLAIN), ramps(4))


def test_every_image_alternates_between_its_two_sides() -> None:
    first, second, third = (mirrored_in(epoch, 100, seed=0) for epoch in range(3))

    assert torch.equal(second, ~first)
    assert torch.equal(third, first)
    assert 30 < int(first.sum()) < 70


def test_flip_mirrors_left_and_right_where_it_is_told() -> None:
    mirrored = torch.tensor([True, False])

    images = augment(ramps(2), mirrored, Augmentation(flip=True, translate=0))

    assert torch.equal(images[0], RAMP.flip(1))
    assert torch.equal(images[1], RAMP)


def test_move_shifts_by_whole_pixels_within_reach() -> None:
    images = ramps(64)

    moved = move(images, torch.zeros(len(images), dtype=torch.bool), 2)

    shifts = moved[:, 16, 16, 0].int() - 16  # a ramp shows its own shift
    assert set(shifts.tolist()) == {-2, -1, 0, 1, 2}
    inner = moved[:, 4:-4, 4:-4, 0].int() - images[:, 4:-4, 4:-4, 0].int()
    assert torch.equal(inner, shifts[:, None, None].expand_as(inner))


def test_cut_out_blanks_one_square_in_each_image() -> None:
    images = torch.zeros((50, 32, 32, 3), dtype=torch.uint8)

    blanked = cut_out(images, 8) != images

    assert blanked.sum(dim=(1, 2, 3)).tolist() == [8 * 8 * 3] * 50
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in blanked}) > 30


def test_a_square_larger_than_the_image_blanks_all_of_it() -> None:
    assert (cut_out(torch.zeros((2, 8, 8, 3), dtype=torch.uint8), 24) == 122).all()


@pytest.mark.parametrize("policy", ["auto", "rand", "trivial"])
def test_a_policy_changes_each_image_in_its_own_way(policy: str) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)).expand(
        16, -1, -1, -1
    )

    changed = augment(images, torch.zeros(16, dtype=torch.bool), PLAIN.model_copy(update={"policy": policy}))

    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
    assert len({image.numpy().tobytes() for image in changed}) > 8


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_the_mixed_pixels(kind: str) -> None:
    images = torch.zeros((8, 32, 32, 3), dtype=torch.uint8)
    images[::2] = 200  # every neighbour is of the other kind
    labels = torch.arange(8) % 2

    mixed, shares = mix(images, labels, 2, PLAIN.model_copy(update={kind: 1.0}))

    bright = mixed.float().mean(dim=(1, 2, 3)) / 200
    assert mixed.dtype == torch.uint8
    assert shares.sum(dim=1).tolist() == pytest.approx([1] * 8)
    assert bright.tolist() == pytest.approx(shares[:, 0].tolist(), abs=0.01)


def test_with_mixup_and_cutmix_a_coin_decides_for_the_batch() -> None:
    images = torch.zeros((2, 8, 8, 3), dtype=torch.uint8)
    images[0] = 200
    both = PLAIN.model_copy(update={"mixup": 1.0, "cutmix": 1.0})

    pasted = [bool(set(mix(images, torch.arange(2), 2, both)[0].unique().tolist()) <= {0, 200}) for _ in range(40)]

    assert 8 < sum(pasted) < 32
