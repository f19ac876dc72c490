"""The trainer contract: recipes, and the runs that lie on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from aimass.trainer.v1 import trainer_pb2 as pb
from aimass.trainer.v1.trainer_pb2_grpc import TrainerServiceServicer
from services.trainer.options import TrainingOptions
from services.trainer.recipes import RECIPES
from services.trainer.runs.record import EpochResult, Run, check_run_id, list_runs, read_run

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(TrainerServiceServicer):
    """Unpacks, calls, packs."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir

    async def ListRecipes(self, request: pb.ListRecipesRequest, context: Context) -> pb.ListRecipesResponse:
        """List the recipes."""
        return pb.ListRecipesResponse(recipes=[_recipe(RECIPES[name]) for name in sorted(RECIPES)])

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        """List the runs, newest first."""
        return pb.ListRunsResponse(runs=[_run(run) for run in await asyncio.to_thread(list_runs, self._runs_dir)])

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        """Return one run."""
        folder = self._runs_dir / check_run_id(request.id)
        return pb.GetRunResponse(run=_run(await asyncio.to_thread(read_run, folder)))


def _recipe(options: TrainingOptions) -> pb.Recipe:
    return pb.Recipe(name=options.recipe, options_json=options.model_dump_json())


def _run(run: Run) -> pb.Run:
    return pb.Run(
        id=run.id,
        state=pb.Run.State.Value(f"STATE_{run.state}"),
        state_reason=run.reason or "",
        recipe=run.options.recipe,
        options_json=run.options.model_dump_json(),
        dataset=run.dataset.name if run.dataset else run.options.dataset,
        create_time=_timestamp(run.create_time),
        finish_time=_timestamp(run.finish_time),
        epochs=[_epoch(each) for each in run.history],
        metrics=run.metrics,
    )


def _epoch(result: EpochResult) -> pb.Epoch:
    return pb.Epoch(epoch=result.epoch, metrics=result.model_dump(exclude={"epoch"}))


def _timestamp(text: str | None) -> Timestamp | None:
    if text is None:
        return None
    timestamp = Timestamp()
    timestamp.FromJsonString(text)
    return timestamp
