"""What a run starts from: samples, and the models of other runs."""

import os
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from services.common import manifest
from services.common.errors import Conflict, InvalidInput, NotFound, NotReady
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest
from services.trainer.data.collecting import collect
from services.trainer.data.datasets import Dataset, load_dataset
from services.trainer.data.replay import add_replay, check_judged, contents_of, leave_out_learnt
from services.trainer.data.sources import DataSources
from services.trainer.jobs.job import Job
from services.trainer.jobs.served import find_version, parse_version
from services.trainer.options import RefitOptions, TrainingOptions, TuningOptions
from services.trainer.runs.folder import DATASET_FILE, LEARNT_FILE, RunFolder, read_document, write_document
from services.trainer.runs.record import check_run_id
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database


def data_sources(job: Job) -> DataSources:
    """Return where this machine keeps samples; this machine's command line may name any folder."""
    settings = job.settings
    roots = ("/",) if job.request.trusted else settings.data_roots
    return DataSources(
        data=settings.data,
        roots=tuple(map(Path, roots)),
        database=Database(settings.database.get_secret_value()),
        blobs=settings.blobs,
    )


def load_samples(job: Job, options: TrainingOptions) -> Dataset:
    """Load what *options* train on and judge on.

    With `start_from`, samples that the other run has learnt are not judged on, and where its set has others than this
    one, some of them are learnt again. What a run has learnt is kept in its folder, since folders of pictures change.

    Raises:
        ServiceError: As `load_dataset`, `find_run`, `add_replay`, `check_judged` and `check_augmentation`.
    """
    loaded = _load(options, data_sources(job), job.settings)
    if isinstance(job.request.options, TrainingOptions | TuningOptions):
        from services.trainer.training.batches import check_augmentation  # torch comes with it

        check_augmentation(options.augmentation, loaded.dataset.spec.height, loaded.dataset.spec.width)
    if loaded.figures:
        job.reporter.stage("prepare", figures=loaded.figures)
    if job.request.kind.makes_model and not (job.folder / LEARNT_FILE).exists():
        _keep_learnt(job.folder / LEARNT_FILE, loaded.learnt)
    return loaded.dataset


def remember_samples(job: Job, dataset: Dataset, *, first: bool = True) -> manifest.Dataset:
    """Return the identity of *dataset*, which must stay the same for as long as the run lives.

    Args:
        job: The run, whose first life writes it down.
        dataset: Of this life.
        first: Whether this process writes; of several workers, one does.

    Raises:
        Conflict: The run was begun with other samples.
    """
    described = manifest.Dataset(name=dataset.name, digest=dataset.digest, counts=dataset.counts)
    before = read_document(job.folder / DATASET_FILE, manifest.Dataset)
    if before not in (None, described):
        raise Conflict(
            f"run {job.request.id!r} was begun with other samples of {dataset.name}; bring them back, or begin a "
            "new run"
        )
    if before is None and first:
        write_document(job.folder / DATASET_FILE, described)
    return described


@dataclass(frozen=True)
class _Loaded:
    dataset: Dataset
    before: NDArray[np.uint64]
    """Contents that the model to start from has learnt, and those that it had started from."""
    figures: dict[str, float]

    @cached_property
    def learnt(self) -> NDArray[np.uint64]:
        """Contents that a model has learnt that was trained on this."""
        return np.union1d(self.before, contents_of(self.dataset.train))


def _load(options: TrainingOptions, sources: DataSources, settings: TrainerSettings) -> _Loaded:
    dataset = load_dataset(options, sources)
    if not options.start_from:
        return _Loaded(dataset, np.empty(0, np.uint64), {})
    folder = find_run(options.start_from, settings)
    source = training_options(folder)
    spec = _manifest(folder).preprocess or dataset.spec
    if source.dataset == options.dataset and spec != dataset.spec and collect(options, sources).draws:
        # Contents decide on the parts, and at another size they are others.
        raise Conflict(
            f"{options.start_from} has learnt from data set {options.dataset!r} at {spec.width} x {spec.height} pixels "
            f"(mode {spec.mode}, filter {spec.filter}); at others its parts are drawn anew, and what it has learnt "
            "would be judged on: use its pixels, or a set with validation and test parts"
        )
    before = _learnt(folder, sources, settings)
    dataset, known = leave_out_learnt(dataset, before)
    figures = {}
    if options.replay and not _are_the_same(source, options):
        old, more = leave_out_learnt(_load(source, sources, settings).dataset, before)
        dataset, judged = add_replay(dataset, old, options.replay, options.seed)
        known += more
        figures["left_out_as_judged_on"] = float(judged)
    if known:
        check_judged(dataset, options.start_from)
    return _Loaded(dataset, before, figures | {"left_out_as_learnt": float(known)})


def load_to_refit(job: Job, options: RefitOptions, source: RunFolder) -> tuple[Dataset, TrainingOptions]:
    """Load what the last layer of *source* is fitted to anew and measured on; what it has learnt is not judged on.

    What the new model has learnt is kept in the folder of its run. The validation part may be left empty, since nothing
    but the temperature is chosen by it.

    Returns:
        The samples, and options by which the new model can be trained further: those of *source*, with these samples.

    Raises:
        ServiceError: As `load_dataset`.
        Conflict: The samples have other labels or pixels than the source.
        InvalidInput: The source has learnt all test samples.
    """
    sources = data_sources(job)
    changes = {"dataset": options.dataset, "start_from": f"run:{source.path.name}", "replay": 0.0}
    trained = training_options(source).model_copy(update=changes)
    dataset = load_dataset(trained.model_copy(update={"threads": job.threads}), sources)
    described = _manifest(source)
    if (described.labels, described.preprocess) != (dataset.labels, dataset.spec):
        raise Conflict(
            f"data set {dataset.name!r} has other labels or pixels than {options.source}; fit it to one with "
            f"{', '.join(described.labels[:10])}"
        )
    before = _learnt(source, sources, job.settings)
    dataset, known = leave_out_learnt(dataset, before)
    if not len(dataset.test):
        raise InvalidInput(
            f"{options.source} has learnt every test sample of data set {dataset.name!r}, so that nothing is left to "
            "measure on; name a set with others",
            reason="ALL_LEARNT",
            field="dataset",
        )
    job.reporter.stage("prepare", 1.0, {"left_out_as_learnt": float(known)})
    if not (job.folder / LEARNT_FILE).exists():
        _keep_learnt(job.folder / LEARNT_FILE, np.union1d(before, contents_of(dataset.train)))
    return dataset, trained


def _are_the_same(source: TrainingOptions, options: TrainingOptions) -> bool:
    """Whether *source* has no samples that *options* have not, as far as their names tell."""
    deciding = {"dataset", "pixels", "validation_fraction", "test_fraction", "split_seed", "clean"}
    alone = not (source.start_from and source.replay)
    return alone and source.model_dump(include=deciding) == options.model_dump(include=deciding)


def _learnt(folder: RunFolder, sources: DataSources, settings: TrainerSettings) -> NDArray[np.uint64]:
    """Return the contents that the model in *folder* has learnt."""
    path = folder / LEARNT_FILE
    if path.exists():
        learnt: NDArray[np.uint64] = np.load(path, allow_pickle=False)
        return learnt
    return _load(training_options(folder), sources, settings).learnt  # a run of an earlier release


def _keep_learnt(path: Path, learnt: NDArray[np.uint64]) -> None:
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")  # several workers may be here at once
    with aside.open("wb") as file:
        np.save(file, learnt)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def find_run(source: str, settings: TrainerSettings) -> RunFolder:
    """Return the folder of the run that made *source*: `run:<id>`, or `<model>@<version>` as inference serves it.

    Raises:
        InvalidInput: *source* is neither.
        NotFound: There is no such run, or the version was not made by a run on this machine.
        Conflict: The run has no model.
        NotReady: Inference does not answer.
    """
    if source.startswith("run:"):
        folder = RunFolder(settings.runs / check_run_id(source.removeprefix("run:")))
        folder.request()
        if not (folder / MANIFEST_FILE).exists():
            raise Conflict(f"{source} has no model; let it succeed first, `aimass train --run-id` goes on with it")
        return folder
    digest = _served_digest(source, settings.inference_address)
    for path in settings.runs.glob(f"*/{MANIFEST_FILE}"):
        graph = Manifest.from_json(path.read_bytes(), str(path)).graph
        if graph is not None and graph.sha256 == digest and (path.parent / GRAPH_FILE).exists():
            return RunFolder(path.parent)
    raise NotFound(f"no run on this machine made {source}; train one, or name a run with run:<id>")


def training_options(folder: RunFolder) -> TrainingOptions:
    """Return how the model in *folder* was trained, also where it was converted from another run's."""
    training = _manifest(folder).training
    assert training is not None, "every run writes how it trained"
    return TrainingOptions.model_validate(training.options)


def _manifest(folder: RunFolder) -> Manifest:
    return Manifest.from_json((folder / MANIFEST_FILE).read_bytes(), MANIFEST_FILE)


def _served_digest(source: str, address: str) -> str:
    model, version = parse_version(source, "source")
    with grpc.insecure_channel(address) as channel:
        try:
            return find_version(channel, model, version).graph_digest
        except grpc.RpcError as error:
            raise NotReady(
                f"inference at {address} does not say what {source} is ({error.details()}); start it, or name a run "
                "with run:<id>"
            ) from error
