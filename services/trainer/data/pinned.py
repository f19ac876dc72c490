"""The samples of a snapshot: its base set in its parts, and the pictures of users, as one collection."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import structlog

from services.common.errors import Conflict, NotReady
from services.trainer.data.blobs import Blobs
from services.trainer.data.choosing import Base
from services.trainer.data.cleaning import find_problems
from services.trainer.data.collection import PARTS, Collection
from services.trainer.data.datasets import Dataset, load_with_originals
from services.trainer.data.files import PictureFile
from services.trainer.data.models import Model, find_model
from services.trainer.data.originals import Originals
from services.trainer.data.pictures import check_spec
from services.trainer.data.prepared import prepare_pictures
from services.trainer.data.problems import LEFT_OUT
from services.trainer.data.samples import Samples
from services.trainer.data.snapshots import PinnedSnapshot, read_snapshot
from services.trainer.data.sources import DataSources
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.sets import SNAPSHOT_PREFIX

log = structlog.get_logger(__name__)


def load_base(name: str, task: Model, sources: DataSources, threads: int = 1) -> Dataset:
    """Load the set *name* as the base of the model's snapshots; its parts depend on nothing but its samples.

    Raises:
        ServiceError: There is no such set, or it cannot be learnt from.
        Conflict: It is a snapshot itself, or has other labels or pixels than the model.
    """
    return _load_base(name, task, sources, threads)[0]


def _load_base(name: str, task: Model, sources: DataSources, threads: int) -> tuple[Dataset, Mapping[str, Originals]]:
    if name.startswith(SNAPSHOT_PREFIX):
        raise Conflict(
            f"base set {name!r} is a snapshot, which holds pictures of users that may have to be forgotten; name the "
            "set that it was made beside"
        )
    spec = task.spec
    pixels = {"width": spec.width, "height": spec.height, "mode": spec.mode, "filter": spec.filter}
    options = make_options("quick", {"dataset": name, "pixels": pixels, "clean": True, "threads": threads})
    dataset, originals = load_with_originals(options, sources)
    if dataset.labels != task.labels or dataset.test.images.shape[1:] != spec.shape:
        raise Conflict(
            f"base set {name!r} has {len(dataset.labels)} labels, {', '.join(dataset.labels[:10])}, and images of "
            f"shape {dataset.test.images.shape[1:]}; model {task.name!r} has {', '.join(task.labels[:10])} and "
            f"{spec.shape}: name a set with the same labels in the same order and of that size"
        )
    return dataset, originals


def describe_base(dataset: Dataset) -> Base:
    """Return what choosing has to know of *dataset*, from `load_base`."""
    return Base(dataset.name, dataset.digest, dataset.train.labels)


def collect_snapshot(options: TrainingOptions, sources: DataSources, digest: str) -> Collection:
    """Return the samples of a snapshot with their parts: those of the base first, then users' by their pixels.

    Validated on is what users gave for it and the base's own part, where it is not learnt yet; tested on is the base's
    test part alone. A picture of a user that has the pixels of one of the base, where the base has another label or
    judges, is left out, and so is one that cannot be read or that contradicts another user's.

    Raises:
        NotFound: There is no such snapshot, or a file of the base is missing.
        NotReady: There is no database.
        Conflict: Pictures of it were deleted, or its base has other samples than it had.
    """
    if sources.database is None:
        raise NotReady(f"snapshot {digest} is in the trainer's database, which is not open; set TRAINER_DATABASE")
    pinned = read_snapshot(sources.database, digest)
    task = find_model(sources.database, pinned.model)
    check_spec(task.spec)
    users = _users(pinned, task, options, sources)
    if not pinned.base:
        return _without_problems(users, 0)
    base, originals = _load_base(pinned.base, task, sources, options.threads)
    if base.digest != pinned.base_digest:
        raise Conflict(
            f"snapshot {digest} was made beside {pinned.base!r} with digest {pinned.base_digest}, which has "
            f"{base.digest} now; bring its samples back, or let the loop make a new snapshot",
            reason="BASE_CHANGED",
        )
    return _without_problems(
        _joined(base, originals, pinned, users), len(base.validation) + len(base.test) + len(pinned.base_drawn)
    )


def _users(pinned: PinnedSnapshot, task: Model, options: TrainingOptions, sources: DataSources) -> Collection:
    store = Blobs(sources.blobs)
    files = [
        PictureFile(
            f"sample {each.sample}",
            store.path(each.content_digest),
            each.label,
            each.part,
            orientation=each.orientation,
            content=each.content_digest,
        )
        for each in pinned.pictures
    ]
    prepared = prepare_pictures(files, task.spec, sources.prepared, options.threads)
    return Collection(
        SNAPSHOT_PREFIX + pinned.digest,
        task.labels,
        task.spec,
        prepared.images,
        np.array([each.label for each in files], np.int64),
        np.array([PARTS.index(each.part) for each in files], np.int8),
        [each.name for each in files],
        prepared.sizes,
        prepared.formats,
        prepared.unreadable,
        prepared.folder,
        files,
    )


def _joined(base: Dataset, originals: Mapping[str, Originals], pinned: PinnedSnapshot, users: Collection) -> Collection:
    """Put the parts of *base* before *users*."""
    positions = np.array(pinned.base_drawn, np.int64)
    drawn = base.train[positions]
    files = [originals["train"].file(position) for position in positions]
    files += [originals[part].file(row) for part in PARTS[1:] for row in range(len(originals[part]))]
    parts = {"train": drawn, "validation": base.validation, "test": base.test}
    samples = Samples.joined(*parts.values())
    height, width = samples.images.shape[1:3]
    names = [f"{base.name} {part}[{position}]" for part, each in parts.items() for position in range(len(each))]
    return replace(
        users,
        images=np.concatenate([samples.images, users.images]),
        classes=np.concatenate([samples.labels, users.classes]),
        parts=np.concatenate(
            [np.full(len(each), PARTS.index(part), np.int8) for part, each in parts.items()] + [users.parts]
        ),
        names=[*names, *users.names],
        sizes=np.concatenate([np.full((len(samples), 2), (width, height), np.int32), users.sizes]),
        formats=["batch"] * len(samples) + list(users.formats),
        unreadable={position + len(samples): problem for position, problem in users.unreadable.items()},
        files=[*files, *users.files],
    )


def _without_problems(collection: Collection, first: int) -> Collection:
    """Leave out samples from position *first* on that contradict others, leak or cannot be read."""
    wrong: set[int] = set()
    for problem in find_problems(collection):
        if problem.kind in LEFT_OUT:
            both = (problem.position, problem.other_position)
            wrong.update([each for each in both if each is not None and each >= first][:1])
    if not wrong:
        return collection
    log.warning("pictures of a snapshot are left out", dataset=collection.name, pictures=len(wrong))
    kept = np.setdiff1d(np.arange(len(collection)), np.array(sorted(wrong)))
    return replace(
        collection,
        images=collection.images[kept],
        classes=collection.classes[kept],
        parts=collection.parts[kept],
        names=[collection.names[position] for position in kept],
        sizes=collection.sizes[kept],
        formats=[collection.formats[position] for position in kept],
        unreadable={},
        files=[collection.files[position] for position in kept],
    )
