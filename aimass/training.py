"""`aimass train`: a training run in this process, then its publication."""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from aimass.progress import progress_bar
from services.common.errors import Conflict, InvalidInput, NotFound, NotReady
from services.common.settings import load_settings
from services.trainer.data.datasets import load_dataset
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.runs.record import Run, RunState, check_run_id, open_run, read_run, started_run
from services.trainer.settings import TrainerSettings

DEFAULT_RECIPE = "quick"


def train_model(
    out: Console,
    recipe: str | None,
    dataset: str | None,
    assignments: list[str],
    model: str,
    publish: bool,
    stable: bool,
    run_id: str | None,
) -> None:
    """Run the recipe and report to *out*; see `aimass train --help`."""
    settings = load_settings(TrainerSettings)
    folder = settings.runs / check_run_id(run_id or f"{recipe or DEFAULT_RECIPE}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    options = _options(folder, recipe, dataset, assignments)
    run = open_run(folder, options)
    if run.state is not RunState.SUCCEEDED:
        run = _train(out, run, settings.data, folder)
    elif not publish:
        raise Conflict(f"run {run.id!r} has succeeded already; send it with --publish or give a new --run-id")
    _print_result(out, run)
    if publish:
        _publish(out, settings.inference_address, model, folder, stable)


def _options(folder: Path, recipe: str | None, dataset: str | None, assignments: list[str]) -> TrainingOptions:
    """Return the options that were given or, where none was, those of the run in *folder* if there is one."""
    if not (recipe or dataset or assignments):
        with suppress(NotFound):
            return read_run(folder).options
    return make_options(recipe or DEFAULT_RECIPE, _overrides(dataset, assignments))


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


def _train(out: Console, run: Run, data_dir: Path, folder: Path) -> Run:
    options = run.options
    dataset = load_dataset(
        options.dataset, data_dir, validation_fraction=options.validation_fraction, seed=options.seed
    )
    with started_run(folder, run) as run:
        _say(out, f"run {run.id} in {folder}; if it is interrupted, `aimass train --run-id {run.id}` goes on")
        _say(out, f"data set {_samples(dataset.name, dataset.counts)}")
        from services.trainer.jobs.train import run_training  # imports torch, which takes seconds

        with progress_bar() as advance:
            return run_training(run, dataset, folder, advance)


def _print_result(out: Console, run: Run) -> None:
    assert run.dataset is not None
    _say(out, f"run {run.id} succeeded on {_samples(run.dataset.name, run.dataset.counts)}")
    for name, value in sorted(run.metrics.items()):
        _say(out, f"  {name:32} {value:.4g}")


def _samples(name: str, counts: Mapping[str, int]) -> str:
    return f"{name} ({', '.join(f'{count} {split}' for split, count in counts.items())})"


def _say(out: Console, line: str) -> None:
    out.print(line, highlight=False, markup=False, soft_wrap=True)


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
    _say(out, f"published as version {version} of {model}" + (", which serves now" if stable else ", without traffic"))
