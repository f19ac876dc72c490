"""What a run starts from: samples, and the models of other runs."""

import re
from pathlib import Path

import grpc

from aimass.inference.v1 import lifecycle_pb2 as pb
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from services.common.errors import Conflict, InvalidInput, NotFound, NotReady
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest
from services.trainer.data.datasets import Dataset, load_dataset
from services.trainer.data.replay import add_replay
from services.trainer.data.sources import DataSources
from services.trainer.jobs.job import Job
from services.trainer.options import TrainingOptions
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.record import check_run_id
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database

_VERSION = re.compile(r"(?P<model>[^@]+)@(?P<version>\d+)")
_ANSWER_SECONDS = 30


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
    """Load what *options* train on; with `start_from` on another set, samples of that set are replayed.

    Raises:
        ServiceError: As `load_dataset`, `find_run` and `add_replay`.
    """
    sources = data_sources(job)
    dataset = load_dataset(options, sources)
    if not (options.start_from and options.replay):
        return dataset
    before = training_options(find_run(options.start_from, job.settings))
    if before.dataset == options.dataset:
        return dataset
    joined, left_out = add_replay(dataset, load_dataset(before, sources), options.replay, options.seed)
    job.reporter.stage("prepare", figures={"left_out_as_judged_on": left_out})
    return joined


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
    match = _VERSION.fullmatch(source)
    if match is None:
        raise InvalidInput(f"{source!r} names no model; write run:<id> or <model>@<version>", field="source")
    digest = _served_digest(match["model"], int(match["version"]), settings.inference_address)
    for path in settings.runs.glob(f"*/{MANIFEST_FILE}"):
        graph = Manifest.from_json(path.read_bytes(), str(path)).graph
        if graph is not None and graph.sha256 == digest and (path.parent / GRAPH_FILE).exists():
            return RunFolder(path.parent)
    raise NotFound(f"no run on this machine made {source}; train one, or name a run with run:<id>")


def training_options(folder: RunFolder) -> TrainingOptions:
    """Return how the model in *folder* was trained, also where it was converted from another run's."""
    manifest = Manifest.from_json((folder / MANIFEST_FILE).read_bytes(), MANIFEST_FILE)
    assert manifest.training is not None, "every run writes how it trained"
    return TrainingOptions.model_validate(manifest.training.options)


def _served_digest(model: str, version: int, address: str) -> str:
    with grpc.insecure_channel(address) as channel:
        try:
            request = pb.ListVersionsRequest(model=model)
            listed = ModelLifecycleServiceStub(channel).ListVersions(request, timeout=_ANSWER_SECONDS).models
        except grpc.RpcError as error:
            raise NotReady(
                f"inference at {address} does not say what {model}@{version} is ({error.details()}); start it, or "
                "name a run with run:<id>"
            ) from error
    for found in (found for state in listed for found in state.versions):
        if found.version == version:
            return found.graph_digest
    raise NotFound(f"inference at {address} has no {model}@{version}; `aimass models` lists what it serves")
