"""The training contract: recipes and runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import AliasChoices

from aimass.trainer.v1 import training_pb2 as pb
from aimass.trainer.v1.training_pb2_grpc import TrainingServiceServicer
from services.common.errors import InvalidInput
from services.trainer.contracts.page_sizes import page_size
from services.trainer.contracts.timestamps import timestamp_of
from services.trainer.options import (
    ConversionOptions,
    EvaluationOptions,
    InspectionOptions,
    RefitOptions,
    TrainingOptions,
    TuningOptions,
    parse_options,
)
from services.trainer.recipes import RECIPES
from services.trainer.runs.admission import parse_object, training_options
from services.trainer.runs.artifacts import read_chunks
from services.trainer.runs.control import RunControl
from services.trainer.runs.progress import Progress
from services.trainer.runs.record import Options, RunKind, RunState
from services.trainer.runs.store import Run, RunFilter

if TYPE_CHECKING:
    import grpc

    from services.common.server import StopSignal

    Context = grpc.aio.ServicerContext[Any, Any]

PAGE_SIZE = 50
MAX_PAGE_SIZE = 500


class TrainingServicer(TrainingServiceServicer):
    """Unpacks, calls, packs."""

    def __init__(self, control: RunControl, stop: StopSignal) -> None:
        self._control = control
        self._stop = stop

    async def ListRecipes(self, request: pb.ListRecipesRequest, context: Context) -> pb.ListRecipesResponse:
        """List the recipes."""
        return pb.ListRecipesResponse(recipes=[_recipe(RECIPES[name]) for name in sorted(RECIPES)])

    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.CreateRunResponse:
        """Queue a run."""
        run = await self._control.create(_options(request), request.client_id, request.id)
        return pb.CreateRunResponse(run=_run(run))

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        """Return one run and its newest progress."""
        run, progress = await self._control.get(request.id)
        return pb.GetRunResponse(run=_run(run), progress=_progress(progress) if progress else None)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        """List runs page by page, newest first."""
        size = page_size(request.page_size, PAGE_SIZE, MAX_PAGE_SIZE)
        runs = await self._control.list(_filter(request), size + 1, _before(request.page_token))
        token = str(runs[size - 1].number) if len(runs) > size else ""
        return pb.ListRunsResponse(runs=[_run(run) for run in runs[:size]], next_page_token=token)

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        """Send what has happened and what happens, until the run has ended."""
        async for update in self._stop.until(self._control.watch(request.id, request.position)):
            yield pb.WatchRunResponse(
                run=_run(update.run) if update.run else None,
                entries=[_progress(entry) for entry in update.entries],
                position=update.position,
            )

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        """End a run before its time."""
        return pb.CancelRunResponse(run=_run(await self._control.cancel(request.id)))

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.ResumeRunResponse:
        """Let a run that has ended without success go on."""
        return pb.ResumeRunResponse(run=_run(await self._control.resume(request.id)))

    async def PublishRun(self, request: pb.PublishRunRequest, context: Context) -> pb.PublishRunResponse:
        """Send the model of a run to inference."""
        version = await self._control.publish(request.id, request.model, stable=request.stable, force=request.force)
        return pb.PublishRunResponse(version=version)

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        """Send a file in parts."""
        path = await asyncio.to_thread(self._control.artifact, request.id, request.name)
        size = path.stat().st_size
        for chunk in read_chunks(path):
            yield pb.DownloadArtifactResponse(size_bytes=size, chunk=chunk)
            size = 0
        if not path.stat().st_size:
            yield pb.DownloadArtifactResponse()


def _options(request: pb.CreateRunRequest) -> Options:
    """Return what the request asks for, parsed and checked.

    Raises:
        InvalidInput: It asks for nothing, or an option is wrong.
        NotFound: The recipe is unknown.
    """
    work = request.WhichOneof("work")
    if work == "training":
        return training_options(request.training.recipe, request.training.overrides_json)
    if work in ("tuning", "inspection"):
        asked = request.tuning if work == "tuning" else request.inspection
        training = training_options(asked.training.recipe, asked.training.overrides_json)
        fields = parse_object(asked.options_json, "options_json")
        fields["training"] = training
        if isinstance(space := fields.get("space"), dict):
            fields["space"] = {_without_alias(name): values for name, values in space.items()}
            if len(fields["space"]) < len(space):
                raise InvalidInput(f"space has one option twice: {', '.join(space)}; leave one out", field="space")
        return parse_options(TuningOptions, fields) if work == "tuning" else parse_options(InspectionOptions, fields)
    if work == "conversion":
        return parse_options(ConversionOptions, parse_object(request.conversion.options_json, "options_json"))
    if work == "evaluation":
        return parse_options(EvaluationOptions, parse_object(request.evaluation.options_json, "options_json"))
    if work == "refit":
        return parse_options(RefitOptions, parse_object(request.refit.options_json, "options_json"))
    raise InvalidInput(
        "the request asks for no work; set training, tuning, conversion, evaluation, inspection or refit", field="work"
    )


def _without_alias(name: str) -> str:
    """Return the name of the option that *name* is an alias of, or *name*."""
    for field, described in TrainingOptions.model_fields.items():
        if isinstance(described.validation_alias, AliasChoices) and name in described.validation_alias.choices:
            return field
    return name


def _filter(request: pb.ListRunsRequest) -> RunFilter:
    """Return which runs are asked for.

    Raises:
        InvalidInput: A state or the kind is none that this server knows.
    """
    unknown = [number for number in request.states if number not in pb.Run.State.values() or not number]
    if unknown or request.kind not in pb.Run.Kind.values():
        what, field = (f"state {unknown[0]}", "states") if unknown else (f"kind {request.kind}", "kind")
        raise InvalidInput(f"{what} of runs is unknown here; use one that the contract names", field=field)
    states = [state for state in RunState if pb.Run.State.Value(f"STATE_{state}") in request.states]
    kinds = [kind for kind in RunKind if pb.Run.Kind.Value(f"KIND_{kind}") == request.kind]
    return RunFilter(states=states, kind=kinds[0] if kinds else None, recipe=request.recipe, dataset=request.dataset)


def _before(page_token: str) -> int | None:
    """Return the number of the run that ended the page before.

    Raises:
        InvalidInput: No page has such a token.
    """
    if not page_token:
        return None
    if not (page_token.isascii() and page_token.isdigit() and len(page_token) < 19):
        raise InvalidInput(
            f"page token {page_token[:100]!r} is none; give next_page_token of the page before", field="page_token"
        )
    return int(page_token)


def _recipe(options: TrainingOptions) -> pb.Recipe:
    return pb.Recipe(name=options.recipe, options_json=options.model_dump_json())


def _run(run: Run) -> pb.Run:
    return pb.Run(
        id=run.id,
        kind=pb.Run.Kind.Value(f"KIND_{run.kind}"),
        state=pb.Run.State.Value(f"STATE_{run.state}"),
        state_reason=run.reason,
        cancel_requested=run.cancel_requested,
        recipe=run.recipe,
        dataset=run.dataset,
        options_json=json.dumps(run.options),
        metrics=run.metrics,
        attempt_count=run.attempts,
        create_time=_timestamp(run.create_time),
        start_time=_timestamp(run.start_time),
        finish_time=_timestamp(run.finish_time),
    )


def _progress(entry: Progress) -> pb.Progress:
    time = Timestamp()
    time.FromNanoseconds(int(entry.time * 1e9))
    return pb.Progress(
        time=time,
        kind=pb.Progress.Kind.Value(f"KIND_{entry.kind.upper()}"),
        stage=entry.stage,
        fraction=entry.fraction,
        step=entry.step,
        step_count=entry.steps,
        epoch=entry.epoch,
        figures=entry.figures,
        eta_seconds=entry.eta_seconds,
    )


def _timestamp(text: str | None) -> Timestamp | None:
    return None if text is None else timestamp_of(text)
