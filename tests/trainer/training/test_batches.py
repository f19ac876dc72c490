import numpy as np
import pytest
import torch

from services.trainer.data.samples import Samples
from services.trainer.options import Augmentation, TrainingOptions
from services.trainer.training.batches import Batches

CPU = torch.device("cpu")
PLAIN = Augmentation(flip=False, translate=0)


def numbered(count: int = 10) -> Samples:
    """Images that are filled with their number, which is also their label."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 16, 16, 3)).copy()
    return Samples(images, np.arange(count))


def batches(count: int = 10, *, rank: int = 0, workers: int = 1, **options: object) -> Batches:
    fields = {"recipe": "none", "epochs": 1, "learning_rate": 1, "batch_size": 4, "augmentation": PLAIN} | options
    return Batches(numbered(count), count, TrainingOptions.model_validate(fields), CPU, rank, workers)


def labels_of(made: Batches, epoch: int = 0) -> list[int]:
    return [int(label) for _, labels in made.epoch(epoch) for label in labels]


def test_an_epoch_shows_whole_batches_without_repetition() -> None:
    labels = labels_of(batches())

    assert len(labels) == len(set(labels)) == 8


def test_images_come_with_their_labels() -> None:
    for images, labels in batches().epoch(0):
        assert torch.equal(images[:, 3, 4, 1].long(), labels)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert labels_of(batches(), 1) == labels_of(batches(), 1)
    assert labels_of(batches(), 1) != labels_of(batches(), 2)
    assert labels_of(batches(), 1) != labels_of(batches(seed=1), 1)


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    assert [len(labels) for _, labels in batches(3, batch_size=8).epoch(0)] == [3]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_an_epoch_that_goes_on_shows_what_it_would_have_shown(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.training.batches.BLOCK_BYTES", at_once * 4 * 16 * 16 * 3)
    changing = Augmentation(flip=True, translate=2, cutout=4, policy="trivial", mixup=0.5)
    whole = list(batches(20, augmentation=changing).epoch(3))

    rest = list(batches(20, augmentation=changing).epoch(3, first=3))

    assert (len(whole), len(rest)) == (5, 2)
    for (images, labels), (expected_images, expected_labels) in zip(rest, whole[3:], strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)


def test_what_a_step_draws_does_not_depend_on_how_it_was_reached() -> None:
    def draws(first: int) -> list[float]:
        return [torch.rand(()).item() for _ in batches(20).epoch(0, first)]

    assert draws(first=3) == draws(first=0)[3:]


def test_workers_share_each_batch_between_them() -> None:
    alone = batches(20, batch_size=8)
    first, second = (batches(20, batch_size=8, rank=rank, workers=2) for rank in range(2))

    for (_, whole), (_, left), (_, right) in zip(alone.epoch(0), first.epoch(0), second.epoch(0), strict=True):
        assert torch.cat([left, right]).tolist() == whole.tolist()


def test_mixed_batches_have_shares_of_labels() -> None:
    images, shares = next(batches(augmentation=PLAIN.model_copy(update={"mixup": 1.0})).epoch(0))

    assert images.dtype == torch.uint8
    assert shares.shape == (4, 10)
