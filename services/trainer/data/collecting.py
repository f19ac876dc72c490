"""Finds the samples of a data set by its name, wherever they are."""

import os
from collections.abc import Sequence

import numpy as np
import structlog

from services.common.errors import InvalidInput, NotReady
from services.common.manifest import PreprocessSpec
from services.trainer.data import cifar10, slices
from services.trainer.data.cifar_files import find_layout, read_batches
from services.trainer.data.collection import OPEN, PARTS, Collection
from services.trainer.data.files import PictureFile
from services.trainer.data.folders import list_pictures
from services.trainer.data.imported import count_judging, list_picture_files, newest_sample
from services.trainer.data.models import find_model
from services.trainer.data.pictures import check_spec
from services.trainer.data.prepared import prepare_pictures
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.options import Pixels, TrainingOptions
from services.trainer.sets import FORMS, ModelSamples, is_folder, parse_snapshot

log = structlog.get_logger(__name__)

_CIFAR_SPEC = PreprocessSpec(input="image", width=32, height=32)


def collect(options: TrainingOptions, sources: DataSources) -> Collection:
    """Return all samples of the set that *options* name, good and bad, their pictures decoded.

    Raises:
        NotFound: There is no such set, or a file of it is missing.
        InvalidInput: The set is damaged, holds nothing, or lies outside of the roots.
        NotReady: The set is in the database, and there is none.
        Conflict: The set is a snapshot that is no longer whole.
        Overloaded: The disk has no room for the decoded pictures.
    """
    name = options.dataset
    if name == "cifar10":
        return _batches(name, cifar10.LABELS, *cifar10.read(sources.data / "cifar10"))
    if name == "cifar10-slice":
        return _batches(name, cifar10.LABELS, *slices.read_slice())
    samples = ModelSamples.parse(name)
    if samples is not None:
        return _imported(options, sources, samples)
    snapshot = parse_snapshot(name)
    if snapshot is not None:
        from services.trainer.data.pinned import collect_snapshot  # its base is a whole data set, which is collected

        return collect_snapshot(options, sources, snapshot)
    if os.sep not in name and not name.startswith(("~", ".")) and not is_folder(sources.data / name):
        raise InvalidInput(
            f"dataset {name!r} is unknown; use one of {FORMS}",
            reason="DATASET_NOT_FOUND",
            field="dataset",
        )
    return _folder(options, sources)


def _folder(options: TrainingOptions, sources: DataSources) -> Collection:
    folder = sources.folder(options.dataset)
    layout = find_layout(folder)
    if layout is not None:
        outside = next((each for each in layout.files(folder) if not sources.allows(each)), None)
        if outside is not None:
            raise InvalidInput(
                f"{outside} is a link that leads outside of the folders that data may come from; copy the file",
                reason="OUTSIDE_ROOTS",
                field="dataset",
            )
        found = read_batches(folder, layout)
        return _batches(options.dataset, found.labels, found.train, found.test, found.names)
    pictures = list_pictures(folder, sources.allows)
    return _pictures(options, sources, pictures.labels, _spec(options.pixels), pictures.files)


def _imported(options: TrainingOptions, sources: DataSources, samples: ModelSamples) -> Collection:
    if sources.database is None:
        raise NotReady(
            f"dataset {options.dataset!r} is in the trainer's database, which is not open; set TRAINER_DATABASE"
        )
    model = find_model(sources.database, samples.model)
    samples = samples.pinned(newest_sample(sources.database, model.name))
    files = list_picture_files(sources.database, sources.blobs, samples)
    judging = count_judging(sources.database, samples)
    if not files:
        raise InvalidInput(
            f"dataset {options.dataset!r} has no samples: none of the model's has such a number"
            + (f", but for {judging} that candidates are judged on" if judging else "")
            + "; name others",
            reason="NO_SAMPLES",
            field="dataset",
        )
    if judging:
        log.info("samples that candidates are judged on are left out", dataset=options.dataset, samples=judging)
    return _pictures(options, sources, model.labels, model.spec, files)


def _batches(
    name: str, labels: tuple[str, ...], train: Samples, test: Samples, names: Sequence[str] = ()
) -> Collection:
    count = len(train) + len(test)
    images = np.concatenate([train.images, test.images])
    names = names or [*(f"train[{row}]" for row in range(len(train))), *(f"test[{row}]" for row in range(len(test)))]
    return Collection(
        name,
        labels,
        _CIFAR_SPEC,
        images,
        np.concatenate([train.labels, test.labels]),
        np.repeat([PARTS.index("train"), PARTS.index("test")], [len(train), len(test)]).astype(np.int8),
        names,
        np.full((count, 2), images.shape[1:3][::-1], np.int32),
        ["batch"] * count,
    )


def _pictures(
    options: TrainingOptions,
    sources: DataSources,
    labels: tuple[str, ...],
    spec: PreprocessSpec,
    files: Sequence[PictureFile],
) -> Collection:
    check_spec(spec)
    prepared = prepare_pictures(files, spec, sources.prepared, options.threads)
    return Collection(
        options.dataset,
        labels,
        spec,
        prepared.images,
        np.array([each.label for each in files], np.int64),
        np.array([PARTS.index(each.part) if each.part else OPEN for each in files], np.int8),
        [each.name for each in files],
        prepared.sizes,
        prepared.formats,
        prepared.unreadable,
        prepared.folder,
        files,
    )


def _spec(pixels: Pixels) -> PreprocessSpec:
    return PreprocessSpec(
        input="image", width=pixels.width, height=pixels.height, mode=pixels.mode, filter=pixels.filter
    )
