"""What a hostile caller gets from the whole trainer: a sentence, never a fault of ours, and soon."""

import json
import os
from pathlib import Path

import grpc
import pytest

from aimass.trainer.v1 import data_pb2, training_pb2
from aimass.trainer.v1.data_pb2_grpc import DataServiceStub
from aimass.trainer.v1.training_pb2_grpc import TrainingServiceStub
from services.common.errors import SettingsError
from services.common.manifest import PreprocessSpec
from services.trainer.service import TrainerComponent
from services.trainer.settings import TrainerSettings
from tests.conftest import Serve, Served
from tests.trainer.data.conftest import write_classes
from tests.trainer.runs.conftest import CountingLauncher


@pytest.fixture
def settings(tmp_path: Path) -> TrainerSettings:
    write_classes(tmp_path / "data" / "pets", {"cat": 30, "dog": 30})
    return TrainerSettings.model_validate(
        {
            "database": f"sqlite:///{tmp_path / 'trainer.db'}",
            "runs": tmp_path / "runs",
            "data": tmp_path / "data",
            "blobs": tmp_path / "blobs",
            "data_roots": (str(tmp_path / "data"),),
            "min_free_bytes": 0,
        }
    )


@pytest.fixture
async def served(serve: Serve, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr("services.trainer.service.LocalLauncher", CountingLauncher)
    return await serve(lambda stop: TrainerComponent(settings, stop))


@pytest.fixture
def training(served: Served) -> TrainingServiceStub:
    return TrainingServiceStub(served.channel)


@pytest.fixture
def data(served: Served) -> DataServiceStub:
    return DataServiceStub(served.channel)


def asked(**overrides: object) -> training_pb2.CreateRunRequest:
    work = training_pb2.Training(recipe="quick", overrides_json=json.dumps(overrides))
    return training_pb2.CreateRunRequest(training=work)


async def refused(call: grpc.aio.Call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        ({"dataset": "model:nope"}, grpc.StatusCode.NOT_FOUND, "model 'nope' is unknown"),
        ({"dataset": "model:pets"}, grpc.StatusCode.INVALID_ARGUMENT, "model 'pets' has no samples"),
        ({"dataset": "\ud800"}, grpc.StatusCode.INVALID_ARGUMENT, "half of a surrogate pair"),
        ({"start_from": "run:\ud800"}, grpc.StatusCode.INVALID_ARGUMENT, "half of a surrogate pair"),
        ({"dataset": ""}, grpc.StatusCode.INVALID_ARGUMENT, "dataset is ''"),
        ({"network": "nope"}, grpc.StatusCode.INVALID_ARGUMENT, "network 'nope' is unknown"),
    ],
    ids=["model", "empty-model", "surrogate", "source", "no-data", "network"],
)
async def test_a_run_that_cannot_work_is_not_created(
    training: TrainingServiceStub, data: DataServiceStub, overrides: dict[str, str], code: grpc.StatusCode, words: str
) -> None:
    spec = PreprocessSpec(input="image", width=8, height=8).canonical_json()
    await data.CreateModel(data_pb2.CreateModelRequest(name="pets", labels=["cat", "dog"], preprocess_spec=spec))

    found = await refused(training.CreateRun(asked(**overrides)))

    assert found[0] is code
    assert words in found[1]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (training_pb2.ListRunsRequest(states=[99]), "state 99 of runs is unknown here"),
        (training_pb2.ListRunsRequest(states=[1, 0]), "state 0 of runs is unknown here"),
        (training_pb2.ListRunsRequest(kind=99), "kind 99 of runs is unknown here"),
    ],
)
async def test_a_list_by_what_is_unknown_is_refused(
    training: TrainingServiceStub, request_: training_pb2.ListRunsRequest, words: str
) -> None:
    code, told = await refused(training.ListRuns(request_))

    assert (code, words in told) == (grpc.StatusCode.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("dataset", ["a\0b", "/a\0b", "x" * 5_000, "/" + "x" * 5_000, "", "~nobody/x"])
async def test_a_report_on_what_is_no_path_is_refused(data: DataServiceStub, dataset: str) -> None:
    code, _ = await refused(data.GetDataReport(data_pb2.GetDataReportRequest(dataset=dataset)))

    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


async def test_a_pipe_among_pictures_is_a_problem_of_the_report(data: DataServiceStub, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data" / "pets" / "cat" / "pipe.png")

    report = json.loads((await data.GetDataReport(data_pb2.GetDataReportRequest(dataset="pets"))).report_json)

    assert report["sample_count"] == 61
    assert "it is a pipe" in json.dumps(report["problems"])


async def test_a_trainer_with_another_folder_says_what_to_change(served: Served, settings: TrainerSettings) -> None:
    other = TrainerSettings.model_validate({**settings.model_dump(), "runs": settings.runs.with_name("others")})

    with pytest.raises(SettingsError, match="set TRAINER_RUNS to the former or TRAINER_DATABASE to a database of its"):
        await TrainerComponent(other).start()
