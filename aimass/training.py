"""`aimass train`: a training run in this process, then its publication."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from aimass.client import PredictionError
from aimass.progress import progress_bar
from services.common.errors import InvalidInput
from services.common.settings import load_settings
from services.preprocess.settings import PreprocessSettings
from services.trainer.recipes import TrainingOptions, make_options
from services.trainer.runs import Run, check_run_id
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
    run = _train(options, settings.data, folder)
    _print_result(out, run, folder)
    if publish:
        _publish(out, model, folder, stable)


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


def _print_result(out: Console, run: Run, folder: Path) -> None:
    out.print(f"run {run.id} succeeded; graph and manifest are in {folder}", highlight=False)
    for name, value in sorted(run.metrics.items()):
        out.print(f"  {name:32} {value:.4g}", highlight=False)


def _publish(out: Console, model: str, folder: Path, stable: bool) -> None:
    from services.trainer.publishing import publish_version, set_stable

    address = load_settings(PreprocessSettings).inference_address
    try:
        with progress_bar() as advance, grpc.insecure_channel(address) as channel:
            version = publish_version(channel, model, folder, lambda fraction: advance("publish", fraction, {})).version
            if stable:
                set_stable(channel, model, version)
    except grpc.RpcError as error:
        raise PredictionError(error.code().name, "PUBLISHING_FAILED", str(error.details())) from error
    out.print(f"published as version {version} of {model}" + (", which serves now" if stable else ", without traffic"))
