"""`aimass train`: a training run in this process, then its publication."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from aimass.progress import progress_bar
from services.common.errors import InvalidInput, NotFound, NotReady
from services.common.settings import load_settings
from services.trainer.recipes import TrainingOptions, make_options
from services.trainer.runs import Run, RunState, check_run_id, read_run
from services.trainer.settings import TrainerSettings


def train_model(
    out: Console,
    recipe: str,
    dataset: str | None,
    assignments: list[str],
    model: str,
    publish: bool,
    stable: bool,
    run_id: str | None,
) -> None:
    """Run the recipe and report to *out*; see `aimass train --help`."""
    settings = load_settings(TrainerSettings)
    options = make_options(recipe, _overrides(dataset, assignments))
    folder = settings.runs / check_run_id(run_id or f"{recipe}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    run = _finished(folder) if publish else None
    if run is None:
        out.print(
            f"run {folder.name} in {folder}; if it is interrupted, --run-id {folder.name} goes on", highlight=False
        )
        run = _train(options, settings.data, folder)
    _print_result(out, run)
    if publish:
        _publish(out, settings.inference_address, model, folder, stable)


def _finished(folder: Path) -> Run | None:
    """Return the run in *folder* where it has succeeded already and only waits to be published."""
    try:
        run = read_run(folder)
    except NotFound:
        return None
    return run if run.state is RunState.SUCCEEDED else None


def _overrides(dataset: str | None, assignments: list[str]) -> dict[str, Any]:
    overrides: dict[str, Any] = {"dataset": dataset} if dataset else {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise InvalidInput(f"--set {assignment!r} is not name=value")
        target = overrides
        *outer, last = name.split(".")
        for part in outer:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise InvalidInput(f"--set {assignment!r}: {part} was set before and has no parts")
        target[last] = _parse(value)
    return overrides


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _train(options: TrainingOptions, data_dir: Path, folder: Path) -> Run:
    from services.trainer.pipeline import run_training  # imports torch, which takes seconds

    with progress_bar() as advance:
        return run_training(options, data_dir, folder, advance)


def _print_result(out: Console, run: Run) -> None:
    assert run.dataset is not None
    counts = ", ".join(f"{count} {split}" for split, count in run.dataset.counts.items())
    out.print(f"run {run.id} succeeded on {run.dataset.name} ({counts})", highlight=False)
    for name, value in sorted(run.metrics.items()):
        out.print(f"  {name:32} {value:.4g}", highlight=False)


def _publish(out: Console, address: str, model: str, folder: Path, stable: bool) -> None:
    from services.trainer.publishing import publish_version, set_stable

    try:
        with progress_bar() as advance, grpc.insecure_channel(address) as channel:
            version = publish_version(channel, model, folder, lambda fraction: advance("publish", fraction, {})).version
            if stable:
                set_stable(channel, model, version)
    except grpc.RpcError as error:
        raise NotReady(
            f"the model could not be published at {address} ({error.details()}); when the suite is up, "
            f"`aimass train --run-id {folder.name} --publish` sends it without training again"
        ) from error
    out.print(f"published as version {version} of {model}" + (", which serves now" if stable else ", without traffic"))
