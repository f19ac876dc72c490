"""What the trainer's contract says of runs that lie on disk."""

import json
from pathlib import Path

import grpc
import pytest

from aimass.trainer.v1 import trainer_pb2 as pb
from aimass.trainer.v1.trainer_pb2_grpc import TrainerServiceStub
from services.common.errors import InvalidInput
from services.trainer.data.datasets import Dataset
from services.trainer.options import TrainingOptions
from services.trainer.recipes import make_options
from services.trainer.runs.record import read_run
from services.trainer.service import TrainerComponent
from services.trainer.settings import TrainerSettings
from tests.conftest import Serve
from tests.trainer.conftest import Reports, run_in


@pytest.fixture(scope="module")
def failed(finished: Path, run_options: TrainingOptions, small_dataset: Dataset) -> Path:
    """Folder of a run that failed, beside the one that succeeded."""
    folder = finished.with_name("second")
    with pytest.raises(InvalidInput):
        run_in(folder, run_options.model_copy(update={"network": "vgg"}), small_dataset, Reports())
    return folder


@pytest.fixture
async def stub(serve: Serve, finished: Path, failed: Path) -> TrainerServiceStub:
    served = await serve(lambda stop: TrainerComponent(TrainerSettings(runs=finished.parent)))
    return TrainerServiceStub(served.channel)


async def test_runs_are_listed_newest_first_with_their_states(stub: TrainerServiceStub) -> None:
    runs = (await stub.ListRuns(pb.ListRunsRequest())).runs

    assert [(run.id, run.state) for run in runs] == [
        ("second", pb.Run.STATE_FAILED),
        ("first", pb.Run.STATE_SUCCEEDED),
    ]


async def test_a_listed_run_is_the_one_that_is_got(stub: TrainerServiceStub) -> None:
    runs = (await stub.ListRuns(pb.ListRunsRequest())).runs

    assert [(await stub.GetRun(pb.GetRunRequest(id=run.id))).run for run in runs] == list(runs)


async def test_a_finished_run_has_its_epochs_metrics_and_times(stub: TrainerServiceStub, finished: Path) -> None:
    record = read_run(finished)

    run = (await stub.GetRun(pb.GetRunRequest(id="first"))).run

    assert (run.recipe, run.dataset, run.state_reason) == ("quick", "cifar10-slice", "")
    assert json.loads(run.options_json) == record.options.model_dump(mode="json")
    assert [epoch.epoch for epoch in run.epochs] == [1, 2]
    assert [epoch.metrics["train_loss"] for epoch in run.epochs] == [each.train_loss for each in record.history]
    assert run.epochs[0].metrics.keys() == {
        "learning_rate", "train_loss", "validation_loss", "validation_accuracy", "seconds",
    }  # fmt: skip
    assert dict(run.metrics) == record.metrics
    assert run.create_time.ToJsonString() == record.create_time
    assert run.finish_time.ToJsonString() == record.finish_time


async def test_a_failed_run_has_its_reason_and_no_metrics(stub: TrainerServiceStub, failed: Path) -> None:
    run = (await stub.GetRun(pb.GetRunRequest(id="second"))).run

    assert (run.state, run.state_reason) == (pb.Run.STATE_FAILED, "network 'vgg' is unknown; use one of residual")
    assert (list(run.epochs), dict(run.metrics)) == ([], {})
    assert run.finish_time.ToJsonString() == read_run(failed).finish_time


@pytest.mark.parametrize(
    ("run_id", "code", "words"),
    [
        ("third", grpc.StatusCode.NOT_FOUND, "run 'third' is unknown"),
        ("../first", grpc.StatusCode.INVALID_ARGUMENT, "run id '../first' is not valid"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "run id '' is not valid"),
    ],
    ids=["unknown", "outside", "empty"],
)
async def test_a_run_that_cannot_be_named_is_refused(
    stub: TrainerServiceStub, run_id: str, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetRun(pb.GetRunRequest(id=run_id))

    assert caught.value.code() is code
    assert words in caught.value.details()


async def test_recipes_are_listed_by_name_with_their_options(stub: TrainerServiceStub) -> None:
    recipes = (await stub.ListRecipes(pb.ListRecipesRequest())).recipes

    assert [recipe.name for recipe in recipes] == ["fast", "quick"]
    assert TrainingOptions.model_validate_json(recipes[0].options_json) == make_options("fast")
