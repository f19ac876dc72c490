"""The sets that a model's own samples are added to and measured on, with their features kept on the disk."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common.errors import Conflict, Overloaded
from services.trainer.analyst.encoders import OpenedEncoder
from services.trainer.analyst.stopping import GoOn
from services.trainer.data.collection import PARTS
from services.trainer.data.datasets import load_with_originals
from services.trainer.data.features import features_path
from services.trainer.data.models import Model
from services.trainer.data.originals import Originals
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.recipes import make_options
from services.trainer.runs.folder import replacing

_EMBEDDED_AT_ONCE = 500
_KEPT = 4
"""Files of features that are kept, those that were written last."""


@dataclass(frozen=True, eq=False)
class Basis:
    """A public set in its parts."""

    name: str
    digest: str
    """`sha256:<hex>` over all samples."""
    train: Samples
    validation: Samples
    test: Samples
    """The locked hold-out."""
    originals: Mapping[str, Originals]
    """By the names of the parts, the pictures that their samples were made from."""

    @cached_property
    def holdout_digest(self) -> str:
        """`sha256:<hex>` over pixels and labels of the hold-out, in order."""
        hasher = hashlib.sha256(f"holdout {self.test.images.shape}\n".encode())
        self.test.update(hasher)
        return "sha256:" + hasher.hexdigest()


@dataclass(frozen=True, eq=False)
class BasisFeatures:
    """Features of a basis by one encoder, float16 (n, f), in the order of its parts."""

    train: NDArray[np.float16]
    validation: NDArray[np.float16]
    test: NDArray[np.float16]


def load_basis(name: str, task: Model, sources: DataSources) -> Basis:
    """Load the set *name* as a run of this model would.

    Raises:
        ServiceError: There is no such set, it cannot be learnt from, or it has other labels or another size.
    """
    spec = task.spec
    pixels = {"width": spec.width, "height": spec.height, "mode": spec.mode, "filter": spec.filter}
    options = make_options("quick", {"dataset": name, "pixels": pixels, "clean": True, "threads": 1})
    dataset, originals = load_with_originals(options, sources)
    if dataset.labels != task.labels:
        raise Conflict(
            f"set {name!r} tells {', '.join(dataset.labels[:10])} apart and model {task.name!r} "
            f"{', '.join(task.labels[:10])}; name a set with the same labels in the same order"
        )
    if dataset.test.images.shape[1:] != task.spec.shape:
        raise Conflict(
            f"set {name!r} has images of shape {dataset.test.images.shape[1:]} and model {task.name!r} takes "
            f"{task.spec.shape}; name a set of that size"
        )
    return Basis(name, dataset.digest, dataset.train, dataset.validation, dataset.test, originals)


def embed_basis(basis: Basis, encoder: OpenedEncoder, folder: Path, go_on: GoOn) -> BasisFeatures:
    """Return the features of *basis*, from the file of an earlier call where there is one.

    Args:
        basis: The set.
        encoder: Of the model.
        folder: Of prepared sets.
        go_on: As it says.

    Raises:
        InvalidInput: The encoder takes pictures of another size than its run says.
        Conflict: With reason `SET_CHANGED`: the encoder takes other pixels, and a picture is not what it was.
        Overloaded: The disk has no room for the features.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = features_path(folder, encoder.digest, basis.digest)
    if not path.is_file():
        _write(path, basis, encoder, go_on)
    features: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    begin = len(basis.train)
    end = begin + len(basis.validation)
    return BasisFeatures(features[:begin], features[begin:end], features[end:])


def _write(path: Path, basis: Basis, encoder: OpenedEncoder, go_on: GoOn) -> None:
    features = []
    for part in PARTS:
        originals = basis.originals[part]
        for start in range(0, len(originals), _EMBEDDED_AT_ONCE):
            go_on()
            pixels = originals.pixels(slice(start, start + _EMBEDDED_AT_ONCE), encoder.spec)
            features.append(encoder.embed(pixels).astype(np.float16))
    try:
        with replacing(path) as file:
            np.save(file, np.concatenate(features))
    except OSError as error:
        raise Overloaded(
            f"features of set {basis.name!r} cannot be kept in {path.parent}: {error.strerror}; make room there",
            reason="DISK_FULL",
        ) from error
    old = sorted(path.parent.glob("features-*.npy"), key=lambda each: each.stat().st_mtime)
    for each in old[:-_KEPT]:
        each.unlink(missing_ok=True)
