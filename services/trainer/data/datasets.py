"""Labelled images in three parts: what a training run learns from, is tuned on and is finally measured on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidInput
from services.common.manifest import PreprocessSpec
from services.trainer.data.cleaning import find_problems
from services.trainer.data.collecting import collect
from services.trainer.data.collection import OPEN, PARTS, Collection
from services.trainer.data.originals import Originals
from services.trainer.data.problems import LEFT_OUT, Problem, list_names
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.data.splitting import choose
from services.trainer.options import TrainingOptions

_COUNTED_AT_ONCE = 1024


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of one labelled collection.

    Attributes:
        name: Which collection this is, as the option `dataset` names it.
        labels: Name of each class, in the order of the label numbers.
        spec: How a picture becomes the pixels of these images; goes into the model's manifest.
        train: What the weights are fitted to.
        validation: What choices are made on; drawn from the training samples where the collection names none.
        test: The public test samples, or else drawn too; measured once, when every choice is made.
    """

    name: str
    labels: tuple[str, ...]
    spec: PreprocessSpec
    train: Samples
    validation: Samples
    test: Samples

    @property
    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return {name: len(samples) for name, samples in self._splits()}

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over the samples and labels of all splits, in order."""
        hasher = hashlib.sha256()
        for name, samples in self._splits():
            hasher.update(f"{name} {samples.images.shape}\n".encode())
            samples.update(hasher)
        return "sha256:" + hasher.hexdigest()

    def _splits(self) -> tuple[tuple[str, Samples], ...]:
        return (("train", self.train), ("validation", self.validation), ("test", self.test))


def load_dataset(options: TrainingOptions, sources: DataSources) -> Dataset:
    """Load the samples that *options* ask for: collected, checked, cleaned if they say so, and split.

    The same options and files always give the same splits.

    Raises:
        NotFound: There is no such set, or a file of it is missing.
        InvalidInput: The set cannot be learnt from; the sentence says why.
        Overloaded: The disk has no room for the decoded pictures.
    """
    return make_dataset(collect(options, sources), options)


def load_with_originals(options: TrainingOptions, sources: DataSources) -> tuple[Dataset, dict[str, Originals]]:
    """Load what `load_dataset` does, and by the names of `PARTS` the pictures that the samples were made from.

    Raises:
        ServiceError: As `load_dataset`.
    """
    collection = collect(options, sources)
    members = assign_parts(collection, options, find_problems(collection))
    dataset = _parted(collection, members)
    parts = (dataset.train, dataset.validation, dataset.test)
    originals = {part: collection.originals(members[part], each) for part, each in zip(PARTS, parts, strict=True)}
    return dataset, originals


def make_dataset(collection: Collection, options: TrainingOptions) -> Dataset:
    """Split *collection* as *options* say.

    Raises:
        InvalidInput: There are problems and `clean` is off, or a class is missing or too small.
    """
    return _parted(collection, assign_parts(collection, options, find_problems(collection)))


def _parted(collection: Collection, members: Mapping[str, NDArray[np.int64]]) -> Dataset:
    train, validation, test = (collection.select(members[part]) for part in PARTS)
    return Dataset(collection.name, collection.labels, collection.spec, train, validation, test)


def assign_parts(
    collection: Collection, options: TrainingOptions, problems: Sequence[Problem]
) -> dict[str, NDArray[np.int64]]:
    """Return, by the names of `PARTS`, which samples belong to each: rising positions.

    Args:
        collection: The samples.
        options: Shares of the parts that the collection leaves open, the seed, and whether to leave out.
        problems: What `find_problems` gave.

    Raises:
        InvalidInput: As `make_dataset`.
    """
    left_out = [each for each in problems if each.kind in LEFT_OUT]
    if left_out and not options.clean:
        raise _refusal(collection, left_out)
    kept = np.ones(len(collection), dtype=bool)
    kept[[each.position for each in left_out]] = False
    _check_classes(collection, kept)
    members = {part: np.flatnonzero(kept & (collection.parts == number)) for number, part in enumerate(PARTS)}
    members["train"] = np.flatnonzero(kept & np.isin(collection.parts, (OPEN, PARTS.index("train"))))
    for part, option in (("test", "test_fraction"), ("validation", "validation_fraction")):
        if not members[part].size:
            members["train"], members[part] = _draw(collection, members["train"], options, option)
    return members


def _draw(
    collection: Collection, members: NDArray[np.int64], options: TrainingOptions, option: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what is left of *members*, and what was drawn for the part whose share is *option*."""
    chosen = choose(
        collection.classes[members],
        collection.contents[members],
        getattr(options, option),
        options.split_seed,
        labels=collection.labels,
        option=option,
    )
    return members[~chosen], members[chosen]


def _refusal(collection: Collection, problems: list[Problem]) -> InvalidInput:
    unreadable = [each for each in problems if each.kind == "unreadable"]
    problems = unreadable or problems
    what = "cannot be read" if unreadable else "are duplicates that contradict each other"
    return InvalidInput(
        f"{len(problems)} of the {len(collection)} samples of dataset {collection.name!r} {what}; correct or remove "
        f"them, or set clean to leave them out: {list_names(problems)}",
        reason="UNREADABLE_SAMPLES" if unreadable else "CONFLICTING_SAMPLES",
        field="dataset",
    )


def _check_classes(collection: Collection, kept: NDArray[np.bool_]) -> None:
    if len(collection.labels) < 2:
        raise InvalidInput(
            f"dataset {collection.name!r} has one class, {', '.join(map(repr, collection.labels))}; telling classes "
            "apart takes two: add another",
            reason="ONE_CLASS",
            field="dataset",
        )
    wrong = np.flatnonzero((collection.classes < 0) | (collection.classes >= len(collection.labels)))
    if wrong.size:
        raise InvalidInput(
            f"{collection.names[wrong[0]]} has label {collection.classes[wrong[0]]}; dataset {collection.name!r} has "
            f"{len(collection.labels)} classes, so labels go from 0 to {len(collection.labels) - 1}: correct it",
            reason="LABEL_OUT_OF_RANGE",
            field="dataset",
        )
    for part in sorted(set(collection.parts.tolist())):
        counts = np.bincount(collection.classes[kept & (collection.parts == part)], minlength=len(collection.labels))
        if not counts.all():
            place = "" if part == OPEN else f" in {PARTS[part]}"
            raise InvalidInput(
                f"class {collection.labels[counts.argmin()]!r} of dataset {collection.name!r} is empty{place}; add "
                "samples or remove the class",
                reason="EMPTY_CLASS",
                field="dataset",
            )


def channel_statistics(images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation of each channel of uint8 NHWC *images*, float32 (3,), in units of 0 to 255."""
    # Exact sums over a histogram: 256 values are counted instead of millions of floats being made.
    values = np.arange(256, dtype=np.float64)
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), _COUNTED_AT_ONCE):
        block = images[start : start + _COUNTED_AT_ONCE]
        counts += np.stack([np.bincount(block[..., channel].ravel(), minlength=256) for channel in range(3)])
    mean = counts @ values / counts.sum(axis=1)
    variance = counts @ values**2 / counts.sum(axis=1) - mean**2
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
