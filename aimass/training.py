"""`aimass train`, `tune`, `evaluate` and `export`: a run is created or resumed, watched, and its result shown."""

import asyncio
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from rich.console import Console

from aimass.client import DEFAULT_MODEL
from aimass.curves import sparkline
from aimass.progress import progress_bar
from aimass.trainer.v1 import training_pb2 as pb
from aimass.trainer_access import (
    dataset_name,
    parse_assignments,
    parse_value,
    run_command,
    state_name,
    trainer_channel,
    training_stub,
)
from services.common.errors import Conflict, InvalidInput, NotReady
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE
from services.trainer.recipes import RECIPES
from services.trainer.runs.folder import CARD_DOCUMENT_FILE, CARD_FILE, CHOICE_FILE, EVALUATION_FILE, replacing
from services.trainer.sets import NAMES, ModelSamples

if TYPE_CHECKING:  # exists only for type checkers
    from aimass.trainer.v1.training_pb2_grpc import TrainingServiceAsyncStub

DEFAULT_RECIPE = "quick"
EXPORTED = (GRAPH_FILE, MANIFEST_FILE, CARD_FILE, CARD_DOCUMENT_FILE, EVALUATION_FILE)
CURVES = ("train_loss", "validation_loss", "validation_accuracy")
KEEP_CHECKPOINTS = (pb.Run.KIND_TRAINING, pb.Run.KIND_TUNING)
"""Kinds of runs that go on where they were; the others begin anew, and their result is the same."""


@dataclass(frozen=True)
class Publication:
    """Where the result of a run goes."""

    model: str
    """Empty where the data set or the source says it."""
    stable: bool
    """Whether it serves at once."""
    force: bool
    """Also where a conversion was measured as not worth it."""


def train_model(
    out: Console,
    address: str,
    recipe: str | None,
    dataset: str | None,
    assignments: list[str],
    run_id: str,
    publication: Publication | None,
) -> None:
    """Train as `aimass train --help` says."""
    work, learnt = _training(recipe, dataset, assignments)
    begin = bool(recipe or dataset or assignments or not run_id)
    wanted = pb.CreateRunRequest(id=run_id, training=work)
    run_command(_do(out, address, wanted, publication, learnt, begin=begin))


def tune_model(
    out: Console,
    address: str,
    recipe: str | None,
    dataset: str | None,
    assignments: list[str],
    space: list[str],
    trials: int,
    pruner: str,
    run_id: str,
    publication: Publication | None,
) -> None:
    """Search as `aimass tune --help` says."""
    start, learnt = _training(recipe, dataset, assignments)
    options = {"space": dict(map(parse_range, space)), "trials": trials, "pruner": pruner}
    work = pb.Tuning(training=start, options_json=json.dumps(options))
    wanted = pb.CreateRunRequest(id=run_id, tuning=work)
    run_command(_do(out, address, wanted, publication, learnt, begin=bool(space or not run_id)))


def evaluate_model(out: Console, address: str, source: str, dataset: str, robustness: bool, samples: int) -> None:
    """Measure as `aimass evaluate --help` says."""
    options = {
        "source": _source(source),
        "dataset": dataset_name(dataset) if dataset else "",
        "robustness": robustness,
        "samples": samples,
    }
    wanted = pb.CreateRunRequest(evaluation=pb.Evaluation(options_json=json.dumps(options)))
    run_command(_do(out, address, wanted, None, "", begin=True))


def export_model(
    out: Console, address: str, source: str, precision: str, folder: Path | None, publication: Publication | None
) -> None:
    """Convert, copy and publish as `aimass export --help` says."""
    run_command(_export(out, address, source, precision, folder, publication))


async def _export(
    out: Console, address: str, source: str, precision: str, folder: Path | None, publication: Publication | None
) -> None:
    async with trainer_channel(address) as channel:
        stub = training_stub(channel)
        if publication is not None:
            publication = await _addressed(stub, publication, _source(source))
        if precision == "float32":
            run_id = source.removeprefix("run:")
        else:
            options = json.dumps({"source": _source(source), "precision": precision})
            wanted = pb.CreateRunRequest(conversion=pb.Conversion(options_json=options))
            run = (await stub.CreateRun(wanted)).run
            announce(out, run)
            run = await watch_run(out, stub, run)
            _show_result(out, run)
            run_id = run.id
        if folder is not None:
            names = await download(stub, run_id, folder)
            _say(out, f"exported to {folder}: {', '.join(names)}")
        if publication is not None:
            await _publish(out, stub, run_id, publication)


def _training(recipe: str | None, dataset: str | None, assignments: list[str]) -> tuple[pb.Training, str]:
    """Return what is asked for, and the data set that is learnt from; empty where only the trainer knows the recipe."""
    overrides = parse_assignments(assignments) | ({"dataset": dataset_name(dataset)} if dataset else {})
    recipe = recipe or DEFAULT_RECIPE
    learnt = overrides.get("dataset", RECIPES[recipe].dataset if recipe in RECIPES else "")
    return pb.Training(recipe=recipe, overrides_json=json.dumps(overrides)), str(learnt)


async def _do(
    out: Console,
    address: str,
    wanted: pb.CreateRunRequest,
    publication: Publication | None,
    dataset: str,
    *,
    begin: bool,
) -> None:
    """Create the run, or go on with the one that has the name; watch it to its end and publish the result.

    Args:
        out: Where it is shown.
        address: Of the trainer.
        wanted: What is asked for, as far as *begin* says that something is.
        publication: Where the result goes.
        dataset: That a new run learns from.
        begin: Whether options are given, and not a name alone.
    """
    async with trainer_channel(address) as channel:
        stub = training_stub(channel)
        known = await _existing(stub, wanted.id) if wanted.id else None
        if known is None and not begin and not wanted.HasField("training"):
            raise InvalidInput(f"run {wanted.id!r} is unknown; say what it shall do")
        if known is not None and known.state == pb.Run.STATE_SUCCEEDED and not begin and publication is None:
            raise Conflict(f"run {known.id!r} has succeeded already; send it with --publish or give a new --run-id")
        if publication is not None:
            publication = await _addressed(stub, publication, f"run:{known.id}" if known else "", dataset)
        # With the options of a run that is there, it is that one.
        run = (await stub.CreateRun(wanted)).run if begin or known is None else known
        if publication is not None:
            publication = await _addressed(stub, publication, f"run:{run.id}")
        if known is not None and run.state != pb.Run.STATE_SUCCEEDED:
            run = (await stub.ResumeRun(pb.ResumeRunRequest(id=run.id))).run
        if run.state != pb.Run.STATE_SUCCEEDED:
            announce(out, run)
            run = await watch_run(out, stub, run)
        _show_result(out, run)
        if publication is not None:
            await _publish(out, stub, run.id, publication)


async def _addressed(
    stub: "TrainingServiceAsyncStub", publication: Publication, source: str, dataset: str = ""
) -> Publication:
    """Return *publication* with the name of a model.

    Args:
        stub: Of the trainer.
        publication: Has the name of a model, or leaves that open.
        source: `run:<id>` or `<model>@<version>`, what is published or was converted; empty where it is yet to come.
        dataset: That it will learn from then; where that is unknown too, the name stays open.

    Raises:
        InvalidInput: The data set does not say whose model it is.
    """
    if publication.model or not (source or dataset):
        return publication
    while source.startswith("run:"):
        run = (await stub.GetRun(pb.GetRunRequest(id=source.removeprefix("run:")))).run
        source, dataset = json.loads(run.options_json or "{}").get("source", ""), run.dataset
    samples = ModelSamples.parse(dataset)
    model = source.rpartition("@")[0] or (samples.model if samples else DEFAULT_MODEL if dataset in NAMES else "")
    if not model:
        raise InvalidInput(f"data set {dataset!r} does not say whose version its model is; name one with --model")
    return replace(publication, model=model)


def announce(out: Console, run: pb.Run) -> None:
    """Name *run* and how it is taken up again."""
    how = "goes on" if run.kind in KEEP_CHECKPOINTS else "begins it anew"
    _say(out, f"run {run.id}; if it is interrupted, `aimass train --run-id {run.id}` {how}")


async def _existing(stub: "TrainingServiceAsyncStub", run_id: str) -> pb.Run | None:
    try:
        return (await stub.GetRun(pb.GetRunRequest(id=run_id))).run
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


async def watch_run(out: Console, stub: "TrainingServiceAsyncStub", run: pb.Run) -> pb.Run:
    """Show how *run* gets further until it ends.

    Raises:
        Conflict: It failed or was cancelled.
    """
    epochs: dict[int, dict[str, float]] = {}
    with progress_bar() as advance:
        async for update in stub.WatchRun(pb.WatchRunRequest(id=run.id)):
            if update.HasField("run"):
                run = update.run
            for entry in update.entries:
                advance(entry.stage, entry.fraction, dict(entry.figures))
                if entry.kind == pb.Progress.KIND_EPOCH:
                    epochs[entry.epoch] = dict(entry.figures)
    if run.state != pb.Run.STATE_SUCCEEDED:
        raise Conflict(f"run {run.id} {state_name(run)}: {run.state_reason or 'it was asked to'}")
    show_curves(out, epochs)
    return run


def show_curves(out: Console, epochs: dict[int, dict[str, float]]) -> None:
    """Draw the figures of *epochs*, one line each."""
    for name in CURVES:
        values = [epochs[epoch][name] for epoch in sorted(epochs) if name in epochs[epoch]]
        if len(values) > 1:
            _say(out, f"  {name.replace('_', ' '):20} {sparkline(values)}  {values[0]:.4g} -> {values[-1]:.4g}")


def _show_result(out: Console, run: pb.Run) -> None:
    _say(out, f"run {run.id} succeeded" + (f" on {run.dataset}" if run.dataset else ""))
    for name, value in sorted(run.metrics.items()):
        _say(out, f"  {name:32} {value:.4g}")


async def download(stub: "TrainingServiceAsyncStub", run_id: str, folder: Path) -> list[str]:
    """Copy what a run has made to *folder*, and return the names of the files."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    names = list(EXPORTED)
    for name in EXPORTED:
        await asyncio.to_thread(_write, folder / name, await read_artifact(stub, run_id, name))
    try:
        choice = await read_artifact(stub, run_id, CHOICE_FILE)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        (folder / CHOICE_FILE).unlink(missing_ok=True)  # of another model that was here before
    else:
        await asyncio.to_thread(_write, folder / CHOICE_FILE, choice)
        names.append(CHOICE_FILE)
    return names


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


async def read_artifact(stub: "TrainingServiceAsyncStub", run_id: str, name: str) -> bytes:
    """Return a file that a run has made."""
    request = pb.DownloadArtifactRequest(id=run_id, name=name)
    return b"".join([part.chunk async for part in stub.DownloadArtifact(request)])


async def _publish(out: Console, stub: "TrainingServiceAsyncStub", run_id: str, publication: Publication) -> None:
    model, stable, force = publication.model, publication.stable, publication.force
    request = pb.PublishRunRequest(id=run_id, model=model, stable=stable, force=force)
    try:
        version = (await stub.PublishRun(request)).version
    except grpc.aio.AioRpcError as error:
        how = f"--{'stable' if stable else 'publish'} --model {shlex.quote(model)}{' --force' if force else ''}"
        again = f"`aimass train --run-id {run_id} {how}` tries again without training"
        sentence = f"the model could not be published: {error.details()}"
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            raise NotReady(f"{sentence}; when the suite is up, {again}") from error
        raise Conflict(f"{sentence}; {again}") from error
    traffic = "which serves now" if publication.stable else "without traffic"
    _say(out, f"published as version {version} of {publication.model}, {traffic}")


def parse_range(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the range that `name=low..high`, `name=low..high:log` or `name=a,b,c` mean.

    Raises:
        InvalidInput: *text* is none of these.
    """
    name, separator, values = text.partition("=")
    interval, _, scale = values.partition(":")
    low, dots, high = interval.partition("..")
    try:
        if separator and dots and scale in ("", "log"):
            return name, {"low": float(low), "high": float(high), "log": scale == "log"}
        if separator and values and not dots:
            return name, {"choices": [parse_value(value) for value in values.split(",")]}
    except ValueError:
        pass
    raise InvalidInput(f"--space {text!r} is no range; write name=low..high, name=low..high:log or name=a,b,c")


def _source(text: str) -> str:
    """Return *text* as the contract names a model; the name of a run alone will do here."""
    return text if ":" in text or "@" in text else f"run:{text}"


def _say(out: Console, line: str) -> None:
    out.print(line, highlight=False, markup=False, soft_wrap=True)
