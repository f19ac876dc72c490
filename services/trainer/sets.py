"""Names of data sets, and the folders that they may lie in."""

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.common.errors import InvalidInput

NAMES = ("cifar10", "cifar10-slice")
"""Sets with a name of their own; beside them the samples of models and the paths of folders."""
FORMS = f"{', '.join(NAMES)}, model:<name>, snapshot:<digest> or the path of a folder"
"""What the option `dataset` takes, in words."""

SNAPSHOT_PREFIX = "snapshot:"
"""Of the names of sets that are snapshots."""

_MODEL_PREFIX = "model:"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SAMPLES = re.compile(r"(?P<model>[^@]*)(@((?P<after>[0-9]{1,18})\.\.)?(?P<last>[0-9]{1,18})?)?")


@dataclass(frozen=True)
class ModelSamples:
    """Samples that were imported for a model: those above number *after*, up to number *last*; without it, to the end.

    Numbers of samples rise, so what has a *last* one stays the same whatever is imported later.
    """

    model: str
    after: int = 0
    last: int | None = None

    @classmethod
    def parse(cls, dataset: str) -> Self | None:
        """Return what `model:<name>`, `model:<name>@<last>` or `model:<name>@<after>..<last>` means, else None.

        `model:<name>@<after>..` ends with the newest sample, as `model:<name>` does.

        Raises:
            InvalidInput: It begins like one of them, and is none.
        """
        if not dataset.startswith(_MODEL_PREFIX):
            return None
        match = _SAMPLES.fullmatch(dataset.removeprefix(_MODEL_PREFIX))
        if match is None or dataset.endswith("@"):
            raise InvalidInput(
                f"dataset {dataset[:200]!r} names no samples; write model:<name>, model:<name>@<last> or "
                "model:<name>@<after>..<last> with numbers of samples",
                field="dataset",
            )
        samples = cls(match["model"], int(match["after"] or 0), int(match["last"]) if match["last"] else None)
        if samples.last is not None and samples.last <= samples.after:
            raise InvalidInput(
                f"dataset {dataset!r} has no samples: none is above {samples.after} and up to {samples.last}; name a "
                "higher last one",
                field="dataset",
            )
        return samples

    def __str__(self) -> str:
        if self.last is None:
            return _MODEL_PREFIX + self.model + (f"@{self.after}.." if self.after else "")
        return _MODEL_PREFIX + self.model + "@" + (f"{self.after}.." if self.after else "") + str(self.last)

    def pinned(self, newest: int) -> Self:
        """Return these samples with a last one, where *newest* is the number of the model's newest sample.

        Raises:
            InvalidInput: The last one, or the one that they begin after, is not there yet.
        """
        samples = type(self)(self.model, self.after, newest if self.last is None else self.last)
        assert samples.last is not None
        if samples.last > newest or samples.after >= newest:
            raise InvalidInput(
                f"dataset {str(self)!r} asks for samples that are not there: the newest of model {self.model!r} is "
                f"number {newest}; name a number up to that, or import more",
                field="dataset",
            )
        return samples


def parse_snapshot(dataset: str) -> str | None:
    """Return the digest in `snapshot:<digest>`, else None.

    Raises:
        InvalidInput: It begins like one, and is none.
    """
    if not dataset.startswith(SNAPSHOT_PREFIX):
        return None
    digest = dataset.removeprefix(SNAPSHOT_PREFIX)
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput(
            f"dataset {dataset[:200]!r} names no snapshot; write snapshot: and its digest, 64 hexadecimal digits in "
            "lower case",
            field="dataset",
        )
    return digest


def resolve_places(name: str, bases: Iterable[Path]) -> list[Path]:
    """Return where the folder *name* may lie, all links resolved: below each of *bases*, unless it is absolute.

    Raises:
        InvalidInput: It is not a path.
    """
    path = Path(name)
    try:
        with contextlib.suppress(RuntimeError):  # of a user that is not known here
            path = path.expanduser()
        return [path.resolve()] if path.is_absolute() else [(base / path).resolve() for base in bases]
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, links in a circle
        problem = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(
            f"dataset {name[:200]!r} is not a path: {problem}; name a folder", field="dataset"
        ) from error


def lies_in(path: Path, roots: Iterable[Path]) -> bool:
    """Whether *path*, all links resolved, lies in one of *roots*."""
    resolved = Path(os.path.realpath(path))  # unlike resolve, it bears links in a circle; nobody can open those
    return any(resolved.is_relative_to(root.expanduser().resolve()) for root in roots)


def is_folder(path: Path) -> bool:
    """Whether a folder is there."""
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, or not ours to look at
        return False
