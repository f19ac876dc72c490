import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import InvalidInput, NotFound
from services.trainer.data import slices
from services.trainer.data.samples import Samples

PUBLISHED_DIGEST = "b60f671a1c92e16ab1187aa1f2d21fae9a3b9f5c2e02e9aff9f762646504ae27"


def test_the_slice_has_500_training_and_100_test_images_of_each_class(slice_samples: tuple[Samples, Samples]) -> None:
    train, test = slice_samples

    assert train.images.shape == (5000, 32, 32, 3)
    assert np.bincount(train.labels).tolist() == [500] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10


def test_the_slice_holds_the_published_samples(slice_samples: tuple[Samples, Samples]) -> None:
    """Selected from the files with the official sums; whoever has the full set can make it again."""
    hasher = hashlib.sha256()
    for samples in slice_samples:
        samples.update(hasher)

    assert hasher.hexdigest() == PUBLISHED_DIGEST


def test_the_slice_is_small_enough_for_a_repository() -> None:
    assert sum(path.stat().st_size for path in slices.FOLDER.iterdir()) <= 16_000_000


def test_read_slice_refuses_a_sheet_that_was_changed(tmp_path: Path) -> None:
    shutil.copytree(slices.FOLDER, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "train-2.webp").open("ab") as file:
        file.write(b"x")

    with pytest.raises(InvalidInput, match=r"train-2.webp has SHA-256 .* labels.json says"):
        slices.read_slice(tmp_path)


def test_read_slice_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"labels.json is missing"):
        slices.read_slice(tmp_path)


def test_write_slice_selects_the_first_of_each_class_and_keeps_every_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "PER_CLASS", {"train": 100, "test": 100})
    images = np.broadcast_to(np.arange(1200)[:, None, None, None] % 251, (1200, 32, 32, 3)).astype(np.uint8)
    full = Samples(images, np.arange(1200) % 10)

    slices.write_slice(full, full[::-1], tmp_path)
    train, test = slices.read_slice(tmp_path)

    assert np.array_equal(train.images, images[:1000])
    assert np.array_equal(test.images, images[::-1][:1000])
    assert np.array_equal(test.labels, full.labels[::-1][:1000])
