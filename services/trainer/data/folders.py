"""Folders of pictures by class: `<class>/<picture>`, or the same below `train`, `validation` and `test`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from services.common.errors import InvalidInput
from services.trainer.data.collection import PARTS
from services.trainer.data.files import PictureFile

_PARTS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class PictureFolder:
    """What was found in a folder."""

    labels: tuple[str, ...]
    """Names of the class folders, sorted."""
    files: tuple[PictureFile, ...]
    """By part, class and name."""


def list_pictures(folder: Path, allows: Callable[[Path], bool]) -> PictureFolder:
    """List the pictures by class in *folder*, without opening any.

    Args:
        folder: Where to look.
        allows: Whether a path may be read; asked of what links lead to.

    Raises:
        InvalidInput: There is nothing of the kind, a class is empty, or the parts have different classes.
    """
    found: dict[tuple[str, str], list[PictureFile]] = {}
    roots = _roots(folder)
    for part, root in roots:
        refusal = _refusal(root, allows)
        if refusal:
            raise InvalidInput(f"{shown(str(root))} cannot be read: {refusal}", reason="OUTSIDE_ROOTS")
        for path in _folders(root):
            linked = path.is_symlink() or root.is_symlink()
            refusal = _refusal(path, allows)  # a folder that must not be read is not listed either
            files = [
                PictureFile(
                    shown(file.relative_to(folder).as_posix()),
                    file,
                    0,
                    part,
                    refusal=refusal or _file_refusal(file, linked, allows),
                )
                for file in ([path] if refusal else walk_files(path))
            ]
            found.setdefault((part, shown(path.name)), []).extend(files)
    if not any(found.values()):
        raise _nothing_in(folder)
    labels = tuple(sorted({label for _, label in found}))
    numbers = {label: number for number, label in enumerate(labels)}
    _check_classes(folder, found, labels, [part for part, _ in roots])
    return PictureFolder(
        labels,
        tuple(replace(file, label=numbers[label]) for (_, label), files in found.items() for file in files),
    )


def _roots(folder: Path) -> list[tuple[str, Path]]:
    """Return the folders of classes with the part that each holds, `` where there are no parts."""
    inner = {path: _PARTS.get(path.name.lower(), "") for path in _folders(folder)}
    if "train" not in inner.values() or "" in inner.values():
        return [("", folder)]
    return [(part, path) for part in PARTS for path, found in inner.items() if found == part]


def shown(name: str) -> str:
    """Return *name* as text that can be written down, whatever bytes the file system holds."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _file_refusal(path: Path, linked: bool, allows: Callable[[Path], bool]) -> str:
    """Return why the file *path* must not be opened; *linked* says that a folder above it is a link."""
    if path.is_dir():
        return "it is a link to a folder, which is not followed; copy the folder"
    return _refusal(path, allows, linked=linked)


def _refusal(path: Path, allows: Callable[[Path], bool], *, linked: bool = False) -> str:
    if (linked or path.is_symlink()) and not allows(path):
        place = shown(os.path.realpath(path))  # which bears links in a circle
        return f"it leads to {place}, outside of the folders that data may come from; copy what is there"
    return ""


def _check_classes(
    folder: Path, found: dict[tuple[str, str], list[PictureFile]], labels: tuple[str, ...], parts: list[str]
) -> None:
    for part in parts:
        for label in labels:
            if not found.get((part, label)):
                place = folder / part / label if part else folder / label
                raise InvalidInput(
                    f"class {label!r} is empty: {place} has no pictures; add some, or remove the class everywhere",
                    reason="EMPTY_CLASS",
                )


def _nothing_in(folder: Path) -> InvalidInput:
    return InvalidInput(
        f"{folder} holds no data set: neither batches of CIFAR's layout (data_batch_1.bin, test_batch.bin and "
        "batches.meta.txt, or data_batch_1, test_batch and batches.meta) nor pictures by class (<class>/<picture>, or "
        "train/<class>/<picture> beside validation and test); put one of these there",
        reason="NO_DATA_SET",
        field="dataset",
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield all files below *folder*, sorted, but those that systems leave in every folder; and links to folders."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in sorted([*names, *links]):
            if not name.startswith(".") and name.lower() not in _LEFT_BY_SYSTEMS:
                yield Path(place, name)
