import dataclasses
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import InvalidInput, NotFound
from services.trainer.data.datasets import Dataset, channel_statistics, load_dataset, split
from services.trainer.data.samples import Samples


def _numbered(count: int) -> Samples:
    """Samples whose first pixel is their own number, in two classes of unequal size."""
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return Samples(images, np.where(np.arange(count) % 4 == 0, 1, 0).astype(np.int64))


def _numbers(samples: Samples) -> list[int]:
    return [int(number) for number in samples.images[:, 0, 0, 0]]


def test_split_takes_the_fraction_of_each_class() -> None:
    train, validation = split(_numbered(200), 0.2, seed=3)

    assert np.bincount(train.labels).tolist() == [120, 40]
    assert np.bincount(validation.labels).tolist() == [30, 10]


def test_split_parts_are_disjoint_and_complete() -> None:
    train, validation = split(_numbered(200), 0.2, seed=3)

    assert sorted(_numbers(train) + _numbers(validation)) == list(range(200))


def test_split_depends_on_the_seed_alone() -> None:
    first, again, other = (split(_numbered(200), 0.2, seed)[1] for seed in (3, 3, 4))

    assert _numbers(first) == _numbers(again)
    assert _numbers(first) != _numbers(other)


def test_split_refuses_a_fraction_that_leaves_a_class_empty() -> None:
    with pytest.raises(InvalidInput, match=r"validation_fraction 0\.01 takes 0 of the 15 samples of class 0"):
        split(_numbered(20), 0.01, seed=0)


def test_samples_refuse_unequal_lengths() -> None:
    with pytest.raises(InvalidInput, match="2 images came with 3 labels"):
        Samples(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(3, np.int64))


def test_load_dataset_refuses_the_full_set_where_it_was_not_fetched(empty_data_dir: Path) -> None:
    sentence = r"data_batch_1\.bin is missing; run `aimass data fetch cifar10` or use cifar10-slice"

    with pytest.raises(NotFound, match=sentence):
        load_dataset("cifar10", empty_data_dir, validation_fraction=0.1, seed=0)


def test_load_dataset_takes_the_slice_from_the_repository(empty_data_dir: Path) -> None:
    dataset = load_dataset("cifar10-slice", empty_data_dir, validation_fraction=0.1, seed=0)

    assert dataset.name == "cifar10-slice"
    assert dataset.counts == {"train": 4500, "validation": 500, "test": 1000}


def test_load_dataset_rejects_an_unknown_name(empty_data_dir: Path) -> None:
    with pytest.raises(InvalidInput, match="dataset 'mnist' is unknown; use one of cifar10, cifar10-slice"):
        load_dataset("mnist", empty_data_dir, validation_fraction=0.1, seed=0)


def test_digest_is_the_same_for_equal_samples(small_dataset: Dataset) -> None:
    copy = Samples(small_dataset.train.images.copy(), small_dataset.train.labels.copy())

    assert dataclasses.replace(small_dataset, train=copy).digest == small_dataset.digest


@pytest.mark.parametrize("field", ["images", "labels"])
def test_digest_changes_with_one_pixel_or_label(small_dataset: Dataset, field: str) -> None:
    parts = {"images": small_dataset.test.images.copy(), "labels": small_dataset.test.labels.copy()}
    parts[field].flat[0] ^= 1

    assert dataclasses.replace(small_dataset, test=Samples(**parts)).digest != small_dataset.digest


def test_digest_changes_when_a_sample_moves_to_another_split(small_dataset: Dataset) -> None:
    swapped = dataclasses.replace(small_dataset, validation=small_dataset.test, test=small_dataset.validation)

    assert swapped.digest != small_dataset.digest


def test_channel_statistics_equal_numpy(small_dataset: Dataset) -> None:
    images = small_dataset.train.images

    mean, std = channel_statistics(images)

    assert np.allclose(mean, images.mean(axis=(0, 1, 2)), atol=1e-3)
    assert np.allclose(std, images.std(axis=(0, 1, 2)), atol=1e-3)
