"""`aimass train`, `tune`, `evaluate` and `export`: a run is created or resumed, watched, and its result shown."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from rich.console import Console

from aimass.curves import sparkline
from aimass.progress import progress_bar
from aimass.trainer.v1 import training_pb2 as pb
from aimass.trainer_access import (
    dataset_name,
    parse_assignments,
    parse_value,
    state_name,
    trainer_channel,
    training_stub,
)
from services.common.errors import Conflict, InvalidInput, NotReady
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE

if TYPE_CHECKING:  # exists only for type checkers
    from aimass.trainer.v1.training_pb2_grpc import TrainingServiceAsyncStub

DEFAULT_RECIPE = "quick"
EXPORTED = (GRAPH_FILE, MANIFEST_FILE, "card.html", "card.json", "evaluation.json")
CURVES = ("train_loss", "validation_loss", "validation_accuracy")
GOES_ON = (pb.Run.STATE_QUEUED, pb.Run.STATE_RUNNING)


@dataclass(frozen=True)
class Publication:
    """Where the result of a run goes."""

    model: str
    stable: bool
    """Whether it serves at once."""


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
    overrides = parse_assignments(assignments) | ({"dataset": dataset_name(dataset)} if dataset else {})
    work = pb.Training(recipe=recipe or DEFAULT_RECIPE, overrides_json=json.dumps(overrides))
    wanted = pb.CreateRunRequest(id=run_id, training=work)
    asyncio.run(_do(out, address, wanted, publication, begin=bool(recipe or overrides or not run_id)))


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
    overrides = parse_assignments(assignments) | ({"dataset": dataset_name(dataset)} if dataset else {})
    options = {"space": dict(map(parse_range, space)), "trials": trials, "pruner": pruner}
    start = pb.Training(recipe=recipe or DEFAULT_RECIPE, overrides_json=json.dumps(overrides))
    work = pb.Tuning(training=start, options_json=json.dumps(options))
    wanted = pb.CreateRunRequest(id=run_id, tuning=work)
    asyncio.run(_do(out, address, wanted, publication, begin=bool(space or not run_id)))


def evaluate_model(out: Console, address: str, source: str, dataset: str, robustness: bool, samples: int) -> None:
    """Measure as `aimass evaluate --help` says."""
    options = {
        "source": _source(source),
        "dataset": dataset_name(dataset) if dataset else "",
        "robustness": robustness,
        "samples": samples,
    }
    wanted = pb.CreateRunRequest(evaluation=pb.Evaluation(options_json=json.dumps(options)))
    asyncio.run(_do(out, address, wanted, None, begin=True))


def export_model(
    out: Console, address: str, source: str, precision: str, folder: Path | None, publication: Publication | None
) -> None:
    """Convert, copy and publish as `aimass export --help` says."""
    asyncio.run(_export(out, address, source, precision, folder, publication))


async def _export(
    out: Console, address: str, source: str, precision: str, folder: Path | None, publication: Publication | None
) -> None:
    async with trainer_channel(address) as channel:
        stub = training_stub(channel)
        if precision == "float32":
            run_id = source.removeprefix("run:")
        else:
            options = json.dumps({"source": _source(source), "precision": precision})
            wanted = pb.CreateRunRequest(conversion=pb.Conversion(options_json=options))
            run = (await stub.CreateRun(wanted)).run
            run = await watch_run(out, stub, run)
            _show_result(out, run)
            run_id = run.id
        if folder is not None:
            await download(stub, run_id, folder)
            _say(out, f"exported to {folder}: {', '.join(EXPORTED)}")
        if publication is not None:
            await _publish(out, stub, run_id, publication)


async def _do(
    out: Console, address: str, wanted: pb.CreateRunRequest, publication: Publication | None, *, begin: bool
) -> None:
    """Create the run, or go on with the one that has the name; watch it to its end and publish the result."""
    async with trainer_channel(address) as channel:
        stub = training_stub(channel)
        run = await _existing(stub, wanted.id) if wanted.id else None
        if run is None:
            if not begin and not wanted.HasField("training"):
                raise InvalidInput(f"run {wanted.id!r} is unknown; say what it shall do")
            run = (await stub.CreateRun(wanted)).run
        elif begin:
            raise Conflict(
                f"run {run.id!r} exists already; name it without other options to go on with it, or give a new name"
            )
        elif run.state == pb.Run.STATE_SUCCEEDED:
            if publication is None:
                raise Conflict(f"run {run.id!r} has succeeded already; send it with --publish or give a new --run-id")
        elif run.state != pb.Run.STATE_RUNNING:
            run = (await stub.ResumeRun(pb.ResumeRunRequest(id=run.id))).run
        if run.state != pb.Run.STATE_SUCCEEDED:
            _say(out, f"run {run.id}; if it is interrupted, `aimass train --run-id {run.id}` goes on")
            run = await watch_run(out, stub, run)
        _show_result(out, run)
        if publication is not None:
            await _publish(out, stub, run.id, publication)


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
    _say(out, f"run {run.id} succeeded on {run.dataset}")
    for name, value in sorted(run.metrics.items()):
        _say(out, f"  {name:32} {value:.4g}")


async def download(stub: "TrainingServiceAsyncStub", run_id: str, folder: Path) -> None:
    """Copy what a run has made to *folder*."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    for name in EXPORTED:
        aside = folder / f"{name}.part"
        await asyncio.to_thread(aside.write_bytes, await read_artifact(stub, run_id, name))
        aside.replace(folder / name)


async def read_artifact(stub: "TrainingServiceAsyncStub", run_id: str, name: str) -> bytes:
    """Return a file that a run has made."""
    request = pb.DownloadArtifactRequest(id=run_id, name=name)
    return b"".join([part.chunk async for part in stub.DownloadArtifact(request)])


async def _publish(out: Console, stub: "TrainingServiceAsyncStub", run_id: str, publication: Publication) -> None:
    request = pb.PublishRunRequest(id=run_id, model=publication.model, stable=publication.stable)
    try:
        version = (await stub.PublishRun(request)).version
    except grpc.aio.AioRpcError as error:
        raise NotReady(
            f"the model could not be published ({error.details()}); when the suite is up, "
            f"`aimass train --run-id {run_id} --publish` sends it without training again"
        ) from error
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
