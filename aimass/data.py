"""`aimass data`: tasks of one's own, their samples, and reports on sets."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aimass.progress import progress_bar
from aimass.trainer.v1 import data_pb2 as pb
from aimass.trainer.v1 import training_pb2 as training_pb
from aimass.trainer.v1.data_pb2_grpc import DataServiceStub
from aimass.trainer_access import dataset_name, parse_assignments, run_command, trainer_channel, training_stub
from aimass.training import announce, read_artifact, watch_run
from services.common.errors import InvalidInput
from services.trainer.data.files import read_file
from services.trainer.data.folders import shown, walk_files
from services.trainer.data.imported import MAX_TEXT
from services.trainer.data.pictures import MAX_IMAGE_BYTES

if TYPE_CHECKING:  # exists only for type checkers
    from aimass.trainer.v1.data_pb2_grpc import DataServiceAsyncStub

SHOWN_REJECTIONS = 20


def create_model(out: Console, address: str, name: str, labels: list[str], width: int, height: int, mode: str) -> None:
    """Make a task of one's own: what is told apart, and how pictures become pixels."""
    spec = {"input": "image", "width": width, "height": height, "mode": mode}
    request = pb.CreateModelRequest(name=name, labels=labels, preprocess_spec=json.dumps(spec).encode())
    run_command(_create(out, address, request))


def list_models(out: Console, address: str) -> None:
    """Print the tasks with their labels and how many samples each has."""
    run_command(_list(out, address))


def import_folder(out: Console, address: str, model: str, folder: Path) -> None:
    """Send the images in the subfolders of *folder*, which have the names of labels, as samples of *model*.

    Raises:
        InvalidInput: There are no such subfolders.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [file for path in classes for file in walk_files(path)]
    if not files:
        raise InvalidInput(f"{folder} has no subfolders with files; put images into one subfolder for each label")
    run_command(_import(out, address, model, folder, files))


def report_on(out: Console, address: str, dataset: str, to: Path) -> None:
    """Write what is known of a set, and what is wrong with it, as a page and beside it as JSON.

    Raises:
        InvalidInput: *to* cannot be the name of the page.
    """
    _check_page(to)
    run_command(_report(out, address, dataset, to))


def inspect(
    out: Console, address: str, dataset: str, recipe: str, assignments: list[str], folds: int, to: Path
) -> None:
    """Write the report with the labels that models, trained by *recipe* on other samples, find wrong.

    Raises:
        InvalidInput: *to* cannot be the name of the page.
    """
    _check_page(to)
    overrides = parse_assignments(assignments) | {"dataset": dataset_name(dataset)}
    training = training_pb.Training(recipe=recipe, overrides_json=json.dumps(overrides))
    work = training_pb.Inspection(training=training, options_json=json.dumps({"folds": folds}))
    run_command(_inspect(out, address, training_pb.CreateRunRequest(inspection=work), to))


def _stub(channel: grpc.aio.Channel) -> "DataServiceAsyncStub":
    return DataServiceStub(channel)


async def _create(out: Console, address: str, request: pb.CreateModelRequest) -> None:
    async with trainer_channel(address) as channel:
        model = (await _stub(channel).CreateModel(request)).model
    out.print(f"{model.name} tells {', '.join(model.labels)} apart", markup=False, highlight=False)


async def _list(out: Console, address: str) -> None:
    async with trainer_channel(address) as channel:
        models = (await _stub(channel).ListModels(pb.ListModelsRequest())).models
    table = Table("model", "samples", "labels", box=None)
    for model in models:
        counts = zip(model.labels, model.sample_counts, strict=True)
        each = ", ".join(f"{label} {count}" for label, count in counts)
        table.add_row(escape(model.name), str(sum(model.sample_counts)), escape(each))
    out.print(table)


async def _import(out: Console, address: str, model: str, folder: Path, files: list[Path]) -> None:
    sent: list[Path] = []
    refused: list[tuple[Path, str]] = []
    with progress_bar() as advance:

        async def requests() -> AsyncIterator[pb.ImportSamplesRequest]:
            yield pb.ImportSamplesRequest(header=pb.ImportSamplesHeader(model=model))
            for number, path in enumerate(files, 1):
                try:
                    sample = await asyncio.to_thread(_sample, folder, path)
                except InvalidInput as error:  # the others are sent all the same
                    refused.append((path, error.message))
                else:
                    sent.append(path)
                    yield pb.ImportSamplesRequest(sample=sample)
                advance("import", number / len(files), {})

        async with trainer_channel(address) as channel:
            answer = await _stub(channel).ImportSamples(requests())
    counts = f"{answer.accepted_count} accepted, {answer.duplicate_count} were there already"
    out.print(f"{counts}, {answer.rejected_count + len(refused)} refused", highlight=False)
    refused += [(sent[each.index], each.message) for each in answer.rejections]
    for path, message in refused[:SHOWN_REJECTIONS]:
        out.print(f"  {shown(str(path))}: {message}", markup=False, highlight=False, soft_wrap=True)


def _sample(folder: Path, path: Path) -> pb.ImportedSample:
    """Return the image at *path*, with the name of its folder in *folder* as its label.

    Raises:
        InvalidInput: It cannot be read, or is too large to be sent.
    """
    image = read_file(path, MAX_IMAGE_BYTES + 1)
    if len(image) > MAX_IMAGE_BYTES:
        raise InvalidInput(
            f"the file has {path.stat().st_size:,} bytes; the limit is {MAX_IMAGE_BYTES:,}; make it smaller"
        )
    inner = path.relative_to(folder)
    source = shown(inner.as_posix())
    if len(source) > MAX_TEXT:
        source = f"{source[: MAX_TEXT // 2]}…{source[-MAX_TEXT // 2 + 1 :]}"
    return pb.ImportedSample(image=image, label=shown(inner.parts[0]), source=source)


async def _inspect(out: Console, address: str, wanted: training_pb.CreateRunRequest, to: Path) -> None:
    async with trainer_channel(address) as channel:
        stub = training_stub(channel)
        run = (await stub.CreateRun(wanted)).run
        announce(out, run)
        run = await watch_run(out, stub, run)
        page, document = [await read_artifact(stub, run.id, name) for name in ("report.html", "report.json")]
    _write(to, page, document)
    found, judged = run.metrics["mislabelled_samples"], run.metrics["judged_samples"]
    out.print(f"{found:.0f} of {judged:.0f} labels are likely wrong; report in {to}", markup=False, highlight=False)


def _check_page(to: Path) -> None:
    if not to.name or to.is_dir() or to.with_suffix(".json") == to:
        raise InvalidInput(
            f"--to {shown(str(to))!r} cannot be the page, beside which a JSON document of the same name is put; name a "
            "file such as report.html"
        )


def _write(to: Path, page: bytes, document: bytes) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(page)
    to.with_suffix(".json").write_bytes(document)


async def _report(out: Console, address: str, dataset: str, to: Path) -> None:
    async with trainer_channel(address) as channel:
        report = await _stub(channel).GetDataReport(pb.GetDataReportRequest(dataset=dataset_name(dataset)))
    _write(to, report.report_html, report.report_json)
    out.print(f"report on {dataset} in {to} and {to.with_suffix('.json')}", markup=False, highlight=False)
