"""Decodes many pictures once, into an array on the disk that later runs map into memory."""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput, Overloaded, ServiceError
from services.common.manifest import PreprocessSpec
from services.trainer.data.collection import create_mapped, open_mapped
from services.trainer.data.files import PictureFile, read_file
from services.trainer.data.pictures import MAX_IMAGE_BYTES, read_picture

KEPT = 8
"""Sets of decoded pictures that are kept: those that were used last."""
ABANDONED_SECONDS = 24 * 3600.0
"""Age at which an unfinished set must be one that a killed process has left."""

_FORM = 1
"""Goes up when the same files would give other pixels."""
_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Prepared:
    """Pixels of n pictures, in the order of their files."""

    folder: Path
    images: NDArray[np.uint8]
    """(n, height, width, 3); black where a file could not be read."""
    sizes: NDArray[np.int32]
    """Width and height as stored, (n, 2)."""
    formats: tuple[str, ...]
    unreadable: dict[int, str]
    """By position, why."""


def prepare_pictures(files: Sequence[PictureFile], spec: PreprocessSpec, root: Path, threads: int = 0) -> Prepared:
    """Return the pixels of *files* as *spec* makes them, from an earlier call where one had the same.

    Args:
        files: Any number; one at a time is in memory for each thread.
        spec: As `check_spec` wants it.
        root: Folder of prepared sets; a new one appears in it at once when it is complete.
        threads: Pictures decoded at the same time; 0 is one per core.

    Raises:
        Overloaded: The disk has no room for them.
    """
    folder = root / _digest(files, spec)
    if not (folder / "index.json").is_file():
        _make(files, spec, folder, threads or os.cpu_count() or 1)
    with contextlib.suppress(OSError):  # a read-only disk
        os.utime(folder)
    index = json.loads((folder / "index.json").read_text())
    return Prepared(
        folder,
        open_mapped(folder / "images.npy"),
        np.array(index["sizes"], np.int32).reshape(-1, 2),
        tuple(index["formats"]),
        {int(position): problem for position, problem in index["unreadable"].items()},
    )


def _digest(files: Sequence[PictureFile], spec: PreprocessSpec) -> str:
    hasher = hashlib.sha256(f"{_FORM} {len(files)}\n".encode() + spec.canonical_json())
    for file in files:
        state = file.content or _state(file.path)
        hasher.update(f"\n{file.path}\0{state}\0{file.orientation}\0{file.refusal}".encode(errors="surrogateescape"))
    return hasher.hexdigest()


def _state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _make(files: Sequence[PictureFile], spec: PreprocessSpec, folder: Path, threads: int) -> None:
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        _check_room(aside, len(files) * spec.height * spec.width * spec.channels)
        index = _decode(files, spec, aside / "images.npy", threads)
        (aside / "index.json").write_text(json.dumps(index))
        aside.rename(folder)
    except OSError as error:
        if not (folder / "index.json").is_file():  # no other process was quicker
            raise Overloaded(f"decoded pictures cannot be kept in {folder.parent}: {error}; make room there") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _remove_old(folder.parent)


def _check_room(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise Overloaded(
            f"the decoded pictures take {wanted:,} bytes and {folder.parent} has {free:,} left; make room there or "
            "lower pixels.width and pixels.height",
            reason="DISK_FULL",
        )


def _decode(files: Sequence[PictureFile], spec: PreprocessSpec, path: Path, threads: int) -> dict[str, object]:
    images = create_mapped(path, (len(files), *spec.shape))
    sizes: list[tuple[int, int]] = []
    formats: list[str] = []
    unreadable: dict[int, str] = {}

    def decode(position: int) -> tuple[tuple[int, int], str, str]:
        file = files[position]
        try:
            if file.refusal:
                raise InvalidInput(file.refusal)
            # One byte more than a picture may have is enough to be refused.
            picture = read_picture(read_file(file.path, MAX_IMAGE_BYTES + 1), file.orientation)
            images[position] = picture.pixels(spec)
        except ServiceError as error:
            return (0, 0), "", error.message
        return picture.image.size, picture.format, ""

    with ThreadPoolExecutor(threads, "decode") as pool:
        for start in range(0, len(files), _AT_ONCE):  # so that a failure ends the work soon
            for size, name, problem in pool.map(decode, range(start, min(start + _AT_ONCE, len(files)))):
                if problem:
                    unreadable[len(sizes)] = problem
                sizes.append(size)
                formats.append(name)
    images.flush()
    return {"sizes": sizes, "formats": formats, "unreadable": unreadable}


def _remove_old(root: Path) -> None:
    """Keep the newest; a process that has mapped a removed one keeps it until it ends."""
    ages = sorted(((_age_seconds(path), path) for path in root.iterdir() if path.is_dir()), key=lambda each: each[0])
    finished = [path for _, path in ages if not path.name.startswith(".")]
    left = [path for age, path in ages if path.name.startswith(".") and age > ABANDONED_SECONDS]
    for path in finished[KEPT:] + left:
        shutil.rmtree(path, ignore_errors=True)


def _age_seconds(path: Path) -> float:
    with contextlib.suppress(OSError):  # another process has removed it
        return time.time() - path.stat().st_mtime
    return 0.0
