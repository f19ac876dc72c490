"""`aimass runs` and `recipes`: what can be trained, what was trained, and what came of it."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from aimass.trainer.v1 import training_pb2 as pb
from aimass.trainer_access import kind_name, run_command, state_name, trainer_channel, training_stub
from aimass.training import download, show_curves
from services.common.errors import InvalidInput
from services.trainer.recipes import RECIPES
from services.trainer.runs.record import RunState

if TYPE_CHECKING:  # exists only for type checkers
    from aimass.trainer.v1.training_pb2_grpc import TrainingServiceAsyncStub

HEADLINES = ("test_accuracy", "validation_accuracy")
COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELLED": "yellow", "RUNNING": "cyan"}


def list_runs(out: Console, address: str, state: str, limit: int) -> None:
    """Print the newest runs as a table.

    Raises:
        InvalidInput: There is no such state.
    """
    states = [name.lower() for name in RunState]
    if state and state.lower() not in states:
        raise InvalidInput(f"--state {state!r} is none; use one of {', '.join(states)}")
    run_command(_list(out, address, state, limit))


def show_run(out: Console, address: str, run_id: str, *, cancel: bool) -> None:
    """Print one run with its figures and curves; *cancel* ends it first."""
    run_command(_show(out, address, run_id, cancel))


def list_recipes(out: Console) -> None:
    """Print the recipes with what each changes of the defaults."""
    for name, recipe in sorted(RECIPES.items()):
        out.print(f"[bold]{name}[/bold]")
        changed = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"recipe"})
        out.print("  " + json.dumps(changed), markup=False, highlight=False, soft_wrap=True)


def send_to_mlflow(out: Console, address: str, run_id: str, uri: str) -> None:
    """Copy options, figures and files of a run to MLflow.

    Raises:
        ModuleNotFoundError: The extra `mlflow` is not installed.
    """
    run_command(_send_to_mlflow(out, address, run_id, uri))


async def _list(out: Console, address: str, state: str, limit: int) -> None:
    states = [pb.Run.State.Value(f"STATE_{state.upper()}")] if state else []
    async with trainer_channel(address) as channel:
        answer = await training_stub(channel).ListRuns(pb.ListRunsRequest(states=states, page_size=limit))
    longest = max((len(run.id) for run in answer.runs), default=0)
    table = Table(
        Column("run", min_width=longest), "kind", "state", "recipe", "data set", "begun", "accuracy", box=None
    )
    for run in answer.runs:
        name = state_name(run)
        accuracy = next((run.metrics[figure] for figure in HEADLINES if figure in run.metrics), None)
        table.add_row(
            escape(run.id),
            kind_name(run),
            f"[{COLOURS.get(name, 'white')}]{name}[/]",
            escape(run.recipe) or "-",
            escape(run.dataset) or "-",
            run.create_time.ToDatetime().isoformat(" ", "minutes"),
            "-" if accuracy is None else f"{accuracy:.2%}",
        )
    out.print(table)


async def _show(out: Console, address: str, run_id: str, cancel: bool) -> None:
    async with trainer_channel(address) as channel:
        stub = training_stub(channel)
        if cancel:
            await stub.CancelRun(pb.CancelRunRequest(id=run_id))
        answer = await stub.GetRun(pb.GetRunRequest(id=run_id))
        run, epochs = answer.run, await finished_epochs(stub, answer)
    out.print(f"{run.id}  {kind_name(run)}  {state_name(run)}  {run.state_reason}", markup=False, highlight=False)
    show_curves(out, epochs)
    for name, value in sorted(run.metrics.items()):
        out.print(f"  {name:32} {value:.4g}", highlight=False)
    out.print_json(json.dumps(json.loads(run.options_json or "{}")))


async def finished_epochs(stub: "TrainingServiceAsyncStub", answer: pb.GetRunResponse) -> dict[int, dict[str, float]]:
    """Return the figures of the epochs that the run had finished when *answer* was given."""
    epochs: dict[int, dict[str, float]] = {}
    if not answer.HasField("progress"):
        return epochs
    call = stub.WatchRun(pb.WatchRunRequest(id=answer.run.id))
    async for update in call:
        finished = (entry for entry in update.entries if entry.kind == pb.Progress.KIND_EPOCH)
        epochs |= {entry.epoch: dict(entry.figures) for entry in finished}
        if any(entry.time.ToNanoseconds() >= answer.progress.time.ToNanoseconds() for entry in update.entries):
            break
    call.cancel()
    return epochs


async def _send_to_mlflow(out: Console, address: str, run_id: str, uri: str) -> None:
    from aimass.mlflow_export import copy_run

    async with trainer_channel(address) as channel:
        stub = training_stub(channel)
        answer = await stub.GetRun(pb.GetRunRequest(id=run_id))
        epochs = await finished_epochs(stub, answer)
        with tempfile.TemporaryDirectory() as folder:
            if answer.run.state == pb.Run.STATE_SUCCEEDED:
                await download(stub, run_id, Path(folder))
            copied = await asyncio.to_thread(copy_run, uri, answer.run, epochs, Path(folder))
    out.print(f"{run_id} is run {copied} at {uri}", highlight=False, markup=False)
