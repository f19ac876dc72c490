"""The training contract over a real server, with runs whose jobs are real processes that only count."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from aimass.inference.v1 import lifecycle_pb2
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.trainer.v1 import training_pb2 as pb
from aimass.trainer.v1.training_pb2_grpc import TrainingServiceStub
from services.common.errors import SettingsError
from services.common.manifest import PreprocessSpec
from services.trainer.data.models import create_model
from services.trainer.feedback.tables import DeletionRow
from services.trainer.loop.tables import PublicationRow
from services.trainer.options import TrainingOptions
from services.trainer.recipes import RECIPES, make_options
from services.trainer.service import TrainerComponent
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database
from tests.conftest import Classifier, Serve, Served
from tests.trainer.runs.conftest import CountingLauncher

Run = pb.Run


@pytest.fixture
def settings(tmp_path: Path) -> TrainerSettings:
    (tmp_path / "data" / "pets").mkdir(parents=True)
    return TrainerSettings.model_validate(
        {
            "database": f"sqlite:///{tmp_path / 'trainer.db'}",
            "runs": tmp_path / "runs",
            "data_roots": (str(tmp_path / "data"),),
            "min_free_bytes": 0,
        }
    )


@pytest.fixture(autouse=True)
def counting_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.service.LocalLauncher", CountingLauncher)
    monkeypatch.setattr("services.trainer.runs.watching.LOOK_SECONDS", 0.02)


@pytest.fixture
async def served(serve: Serve, settings: TrainerSettings) -> Served:
    return await serve(lambda stop: TrainerComponent(settings, stop))


@pytest.fixture
def stub(served: Served) -> TrainingServiceStub:
    return TrainingServiceStub(served.channel)


Create = Callable[..., Awaitable[Run]]


@pytest.fixture
def create(stub: TrainingServiceStub) -> Create:
    """A function that creates a run: `await create("a", epochs=5, hold_at=3)`."""

    async def create(run_id: str = "", epochs: int = 2, client_id: str = "", **behaviour: Any) -> Run:
        overrides = json.dumps({"epochs": epochs, "network_options": behaviour})
        training = pb.Training(recipe="quick", overrides_json=overrides)
        request = pb.CreateRunRequest(id=run_id, client_id=client_id, training=training)
        return (await stub.CreateRun(request)).run

    return create


async def watched(stub: TrainingServiceStub, run_id: str, position: int = 0) -> list[pb.WatchRunResponse]:
    return [answer async for answer in stub.WatchRun(pb.WatchRunRequest(id=run_id, position=position))]


async def until(stub: TrainingServiceStub, run_id: str, kind: pb.Progress.Kind.ValueType) -> pb.WatchRunResponse:
    """Return the answer that has the first entry of *kind*."""
    call: AsyncIterator[pb.WatchRunResponse] = stub.WatchRun(pb.WatchRunRequest(id=run_id))
    async for answer in call:
        if any(entry.kind == kind for entry in answer.entries):
            call.cancel()  # type: ignore[attr-defined]
            return answer
    raise AssertionError(f"run {run_id} ended")


async def test_a_run_is_created_watched_to_its_end_and_kept(stub: TrainingServiceStub, create: Create) -> None:
    created = await create("a")

    answers = await watched(stub, "a")

    assert (created.id, created.kind, created.state) == ("a", Run.KIND_TRAINING, Run.STATE_QUEUED)
    options = TrainingOptions.model_validate_json(created.options_json)
    assert options == make_options("quick", {"epochs": 2, "network_options": {}})
    states = [answer.run.state for answer in answers if answer.HasField("run")]
    assert states[0] in (Run.STATE_QUEUED, Run.STATE_RUNNING)
    assert states[-1] == Run.STATE_SUCCEEDED
    entries = [entry for answer in answers for entry in answer.entries]
    assert [(entry.kind, entry.epoch, entry.fraction) for entry in entries] == [
        (pb.Progress.KIND_STAGE, 0, 0.0), (pb.Progress.KIND_EPOCH, 1, 0.5), (pb.Progress.KIND_EPOCH, 2, 1.0),
    ]  # fmt: skip
    assert [entry.HasField("eta_seconds") for entry in entries] == [False] * 3
    got = await stub.GetRun(pb.GetRunRequest(id="a"))
    assert (got.run, got.progress) == (next(a.run for a in reversed(answers) if a.HasField("run")), entries[-1])
    assert (dict(got.run.metrics), got.run.attempt_count) == ({"test_accuracy": 0.5}, 1)
    assert (
        got.run.create_time.ToNanoseconds() < got.run.start_time.ToNanoseconds() < got.run.finish_time.ToNanoseconds()
    )


async def test_a_follower_that_lost_its_connection_goes_on_where_it_was(
    stub: TrainingServiceStub, create: Create
) -> None:
    await create("a")
    whole = await watched(stub, "a")
    entries = [entry for answer in whole for entry in answer.entries]
    seen = next(answer for answer in whole if answer.entries)

    rest = await watched(stub, "a", seen.position)

    assert [entry for answer in rest for entry in answer.entries] == entries[len(seen.entries) :]
    assert rest[0].run.state == Run.STATE_SUCCEEDED
    assert rest[-1].position == whole[-1].position


async def test_a_stopping_service_ends_those_who_watch_and_leaves_the_run_to_its_next_life(
    served: Served, stub: TrainingServiceStub, create: Create, serve: Serve, settings: TrainerSettings
) -> None:
    await create("a", epochs=3, hold_at=3)
    await until(stub, "a", pb.Progress.KIND_STEP)
    watching = asyncio.create_task(watched(stub, "a"))

    served.stop.set()
    served.stop.set_drained()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watching
    await served.component.close()

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    later = TrainingServiceStub((await serve(lambda stop: TrainerComponent(settings, stop))).channel)
    async for answer in later.WatchRun(pb.WatchRunRequest(id="a")):
        if answer.HasField("run") and answer.run.state == Run.STATE_RUNNING:
            break
    run = (await later.CancelRun(pb.CancelRunRequest(id="a"))).run
    assert (run.state, run.cancel_requested) == (Run.STATE_RUNNING, True)
    assert [answer.run.state for answer in await watched(later, "a")][-1] == Run.STATE_CANCELLED
    assert (await later.GetRun(pb.GetRunRequest(id="a"))).run.attempt_count == 2


async def test_the_same_client_id_creates_one_run(stub: TrainingServiceStub, create: Create) -> None:
    runs = await asyncio.gather(*(create(client_id="mine", hold_at=1) for _ in range(4)))

    assert len({run.id for run in runs}) == 1
    assert runs[0].id.startswith("quick-")
    assert len((await stub.ListRuns(pb.ListRunsRequest())).runs) == 1
    with pytest.raises(grpc.aio.AioRpcError, match="client id 'mine' belongs to run") as caught:
        await create(client_id="mine", epochs=9)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("name", ["client_id", "id"])
async def test_a_request_sent_once_more_gives_its_run_whatever_became_of_its_data_and_the_disk(
    serve: Serve, settings: TrainerSettings, tmp_path: Path, name: str
) -> None:
    async def create(there: TrainerSettings, **overrides: Any) -> Run:
        stub = TrainingServiceStub((await serve(lambda stop: TrainerComponent(there, stop, queue=str(there)))).channel)
        training = pb.Training(recipe="quick", overrides_json=json.dumps({"dataset": "pets", **overrides}))
        return (await stub.CreateRun(pb.CreateRunRequest(training=training, **{name: "mine"}))).run

    full = settings.model_copy(update={"min_free_bytes": 2**60})
    first = await create(settings, network_options={"hold_at": 1})
    (tmp_path / "data" / "pets").rename(tmp_path / "data" / "moved")

    again = await create(full, network_options={"hold_at": 1})

    assert (again.id, again.create_time) == (first.id, first.create_time)
    for others in ({"network_options": {}}, {"dataset": "moved", "network_options": {"hold_at": 1}}):
        with pytest.raises(grpc.aio.AioRpcError, match=r"something else was asked|with other options") as caught:
            await create(full, **others)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_search_knows_options_by_their_aliases(stub: TrainingServiceStub) -> None:
    training = pb.Training(recipe="quick")
    search = {"space": {"lr": {"low": 0.01, "high": 0.1}}}
    work = pb.Tuning(training=training, options_json=json.dumps(search))

    run = (await stub.CreateRun(pb.CreateRunRequest(tuning=work))).run

    assert list(json.loads(run.options_json)["space"]) == ["learning_rate"]
    search["space"]["learning_rate"] = {"low": 0.01, "high": 0.1}
    twice = pb.Tuning(training=training, options_json=json.dumps(search))
    with pytest.raises(grpc.aio.AioRpcError, match="space has one option twice: lr, learning_rate"):
        await stub.CreateRun(pb.CreateRunRequest(tuning=twice))


async def test_a_cancelled_run_is_resumed_from_its_checkpoint(stub: TrainingServiceStub, create: Create) -> None:
    await create("a", epochs=5, hold_at=4)
    await until(stub, "a", pb.Progress.KIND_STEP)

    await stub.CancelRun(pb.CancelRunRequest(id="a"))
    position = (await watched(stub, "a"))[-1].position
    resumed = (await stub.ResumeRun(pb.ResumeRunRequest(id="a"))).run
    assert (resumed.state, resumed.cancel_requested) == (Run.STATE_QUEUED, False)
    await stub.CancelRun(pb.CancelRunRequest(id="a"))

    again = [entry for answer in await watched(stub, "a", position) for entry in answer.entries]
    assert all(entry.kind != pb.Progress.KIND_EPOCH for entry in again)


async def test_a_failed_run_is_resumed_without_its_old_outcome(
    stub: TrainingServiceStub, create: Create, settings: TrainerSettings
) -> None:
    await create("a", fail="the disk is full; free some space")
    run = (await watched(stub, "a"))[-1].run
    assert (run.state, run.state_reason) == (Run.STATE_FAILED, "the disk is full; free some space")

    assert (await stub.ResumeRun(pb.ResumeRunRequest(id="a"))).run.state_reason == ""
    run = (await watched(stub, "a"))[-1].run
    assert (run.state, run.attempt_count) == (Run.STATE_FAILED, 2)


async def test_runs_are_listed_newest_first_by_filters_and_pages(stub: TrainingServiceStub, create: Create) -> None:
    for name in "abcde":
        await create(name, hold_at=1)
    await until(stub, "a", pb.Progress.KIND_STEP)

    async def ids(**fields: Any) -> tuple[list[str], str]:
        answer = await stub.ListRuns(pb.ListRunsRequest(**fields))
        return [run.id for run in answer.runs], answer.next_page_token

    first, token = await ids(page_size=2)
    second, next_token = await ids(page_size=2, page_token=token)
    assert [first, second] == [["e", "d"], ["c", "b"]]
    assert await ids(page_size=2, page_token=next_token) == (["a"], "")
    assert await ids(states=[Run.STATE_RUNNING]) == (["a"], "")
    assert await ids(states=[Run.STATE_QUEUED], page_size=1) == (["e"], "5")
    assert await ids(kind=Run.KIND_TUNING) == ([], "")
    assert await ids(recipe="quick", dataset="cifar10-slice", page_size=501) == (list("edcba"), "")
    assert await ids(dataset="model:pets") == ([], "")


async def test_a_refit_is_created_and_listed_by_its_kind(stub: TrainingServiceStub) -> None:
    work = pb.Refit(options_json='{"source": "pets@1", "dataset": "cifar10-slice", "pull": 0.5}')

    created = (await stub.CreateRun(pb.CreateRunRequest(id="r", refit=work))).run

    assert (created.kind, created.dataset) == (Run.KIND_REFIT, "cifar10-slice")
    options = json.loads(created.options_json)
    assert (options["source"], options["pull"], options["smoothing"]) == ("pets@1", 0.5, 0.05)
    listed = (await stub.ListRuns(pb.ListRunsRequest(kind=Run.KIND_REFIT))).runs
    assert [run.id for run in listed] == ["r"]


REFUSED = [
    (pb.CreateRunRequest(), "INVALID_ARGUMENT", "the request asks for no work", "work"),
    (pb.CreateRunRequest(training=pb.Training(recipe="slow")), "NOT_FOUND", "recipe 'slow' is unknown; use one of", ""),
    (
        pb.CreateRunRequest(training=pb.Training(recipe="quick", overrides_json='{"epoch": 3}')),
        "INVALID_ARGUMENT", "epoch is not an option; did you mean epochs?", "epoch",
    ),
    (
        pb.CreateRunRequest(training=pb.Training(recipe="quick", overrides_json='{"network": "os:system"}')),
        "INVALID_ARGUMENT", "network 'os:system' names code", "network",
    ),
    (
        pb.CreateRunRequest(training=pb.Training(recipe="quick", overrides_json='{"dataset": "/etc"}')),
        "INVALID_ARGUMENT", "dataset '/etc' lies outside of", "dataset",
    ),
    (
        pb.CreateRunRequest(training=pb.Training(recipe="quick", overrides_json="3")),
        "INVALID_ARGUMENT", "overrides_json holds JSON that is no object", "overrides_json",
    ),
    (
        pb.CreateRunRequest(tuning=pb.Tuning(training=pb.Training(recipe="quick"))),
        "INVALID_ARGUMENT", "space is missing", "space",
    ),
    (
        pb.CreateRunRequest(conversion=pb.Conversion(options_json='{"source": "run:nothing"}')),
        "NOT_FOUND", "run 'nothing' is unknown", "id",
    ),
    (
        pb.CreateRunRequest(evaluation=pb.Evaluation(options_json='{"source": "x", "samples": 0}')),
        "INVALID_ARGUMENT", "samples is 0", "samples",
    ),
    (
        pb.CreateRunRequest(refit=pb.Refit(options_json='{"source": "pets@1", "dataset": "cifar10", "rounds": 0}')),
        "INVALID_ARGUMENT", "rounds is 0", "rounds",
    ),
    (
        pb.CreateRunRequest(id="../a", training=pb.Training(recipe="quick")),
        "INVALID_ARGUMENT", "run id '../a' is not valid", "id",
    ),
    (
        pb.CreateRunRequest(client_id="x" * 129, training=pb.Training(recipe="quick")),
        "INVALID_ARGUMENT", "client id has 129 characters; use up to 128", "client_id",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "code", "words", "field"), REFUSED)
async def test_a_wrong_request_is_refused_before_a_run_is_made(
    stub: TrainingServiceStub, request_: pb.CreateRunRequest, code: str, words: str, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateRun(request_)

    assert caught.value.code().name == code
    assert words in (caught.value.details() or "")
    assert _fields(caught.value) == ([field] if field else [])
    assert not (await stub.ListRuns(pb.ListRunsRequest())).runs


@pytest.mark.parametrize(
    ("run_id", "code", "words"),
    [
        ("third", grpc.StatusCode.NOT_FOUND, "run 'third' is unknown"),
        ("../first", grpc.StatusCode.INVALID_ARGUMENT, "run id '../first' is not valid"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "run id '' is not valid"),
    ],
    ids=["unknown", "outside", "empty"],
)
async def test_a_run_that_cannot_be_named_is_refused_by_every_method(
    stub: TrainingServiceStub, run_id: str, code: grpc.StatusCode, words: str
) -> None:
    for call in (
        stub.GetRun(pb.GetRunRequest(id=run_id)),
        stub.CancelRun(pb.CancelRunRequest(id=run_id)),
        stub.ResumeRun(pb.ResumeRunRequest(id=run_id)),
        stub.PublishRun(pb.PublishRunRequest(id=run_id, model="tiny")),
        watched(stub, run_id),
        downloaded(stub, run_id, "log.txt"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is code
        assert words in (caught.value.details() or "")


async def test_a_position_or_a_page_of_somewhere_else_is_refused(stub: TrainingServiceStub, create: Create) -> None:
    await create("a")
    await watched(stub, "a")

    for call, words in (
        (watched(stub, "a", 7), "position 7 is not one that the progress of this run has"),
        (watched(stub, "a", -1), "position -1 is not one"),
        (stub.ListRuns(pb.ListRunsRequest(page_token="next")), "page token 'next' is none"),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_run_is_not_created_over_the_files_of_one_that_the_database_does_not_know(
    stub: TrainingServiceStub, create: Create, settings: TrainerSettings
) -> None:
    (settings.runs / "old").mkdir()
    (settings.runs / "old" / "run.json").write_text("{}")

    with pytest.raises(grpc.aio.AioRpcError, match="holds a run that the database does not know; remove it or"):
        await create("old")
    with pytest.raises(grpc.aio.AioRpcError, match="run 'old' is unknown"):
        await stub.GetRun(pb.GetRunRequest(id="old"))


async def test_no_run_is_created_without_the_disk_space(serve: Serve, settings: TrainerSettings) -> None:
    full = settings.model_copy(update={"min_free_bytes": 2**60})
    stub = TrainingServiceStub((await serve(lambda stop: TrainerComponent(full, stop))).channel)

    with pytest.raises(grpc.aio.AioRpcError, match="of disk space are free for runs and TRAINER_MIN_FREE") as caught:
        await stub.CreateRun(pb.CreateRunRequest(training=pb.Training(recipe="quick")))

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def downloaded(stub: TrainingServiceStub, run_id: str, name: str) -> tuple[int, bytes]:
    parts = [part async for part in stub.DownloadArtifact(pb.DownloadArtifactRequest(id=run_id, name=name))]
    return parts[0].size_bytes, b"".join(part.chunk for part in parts)


async def test_what_a_run_has_made_is_downloaded(
    stub: TrainingServiceStub, create: Create, settings: TrainerSettings
) -> None:
    await create("a")
    await watched(stub, "a")
    graph = bytes(range(256)) * 9_000  # more than two parts
    (settings.runs / "a" / "model.onnx").write_bytes(graph)

    assert await downloaded(stub, "a", "model.onnx") == (len(graph), graph)
    assert await downloaded(stub, "a", "log.txt") == (0, b"")
    with pytest.raises(grpc.aio.AioRpcError, match=r"run 'a' has no card.html") as caught:
        await downloaded(stub, "a", "card.html")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError, match=r"artifact '../../trainer.db' is unknown; use one of model.onnx,"):
        await downloaded(stub, "a", "../../trainer.db")


@pytest.fixture
async def finished(stub: TrainingServiceStub, create: Create, settings: TrainerSettings, tiny_classifier: Classifier):
    """Folder of a run that has succeeded, with a real model in it."""
    await create("a")
    await watched(stub, "a")
    folder = settings.runs / "a"
    shutil.copy(tiny_classifier.path, folder / "model.onnx")
    (folder / "model.json").write_text(tiny_classifier.manifest.to_json())
    return folder


async def test_the_model_of_a_run_is_published_and_serves(
    inference: Served, serve: Serve, settings: TrainerSettings, finished: Path
) -> None:
    there = settings.model_copy(update={"inference_address": inference.address})
    stub = TrainingServiceStub((await serve(lambda stop: TrainerComponent(there, stop))).channel)

    version = (await stub.PublishRun(pb.PublishRunRequest(id="a", model="tiny", stable=True))).version

    lifecycle = ModelLifecycleServiceStub(inference.channel)
    (model,) = (await lifecycle.ListVersions(lifecycle_pb2.ListVersionsRequest(model="tiny"))).models
    assert (version, model.traffic.stable_version) == (2, 2)
    with pytest.raises(grpc.aio.AioRpcError, match="inference refuses the model of run 'a': ") as caught:
        await stub.PublishRun(pb.PublishRunRequest(id="a", model="no/name"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_conversion_that_was_not_chosen_is_published_only_by_force(
    inference: Served, serve: Serve, settings: TrainerSettings, finished: Path
) -> None:
    there = settings.model_copy(update={"inference_address": inference.address})
    stub = TrainingServiceStub((await serve(lambda stop: TrainerComponent(there, stop))).channel)
    choice = {"chosen": False, "reason": "not chosen: 0.90 times as fast at batch 1", "threads": 1}
    (finished / "choice.json").write_text(json.dumps(choice))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PublishRun(pb.PublishRunRequest(id="a", model="tiny", stable=True))
    forced = await stub.PublishRun(pb.PublishRunRequest(id="a", model="tiny", force=True))

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == (
        "the model of run 'a' was not chosen: 0.90 times as fast at batch 1; publish the model that it was made from, "
        "or this one all the same with force"
    )
    assert forced.version == 2
    (finished / "choice.json").write_text(json.dumps(choice | {"chosen": True}))
    assert (await stub.PublishRun(pb.PublishRunRequest(id="a", model="tiny"))).version == 3


async def test_nothing_gets_out_of_a_run_that_has_learnt_what_is_deleted(
    stub: TrainingServiceStub, create: Create, settings: TrainerSettings, finished: Path
) -> None:
    await create("b", epochs=5, hold_at=4)
    await until(stub, "b", pb.Progress.KIND_STEP)
    await stub.CancelRun(pb.CancelRunRequest(id="b"))
    await watched(stub, "b")
    database = Database(settings.database.get_secret_value())
    create_model(database, "pets", ["cat", "dog"], PreprocessSpec(input="image", width=8, height=8).canonical_json())
    with database.begin() as session:
        report = {"request_time": "2026-01-02T03:04:05Z", "parts": {"pets": {"rows_gone": True}}}
        session.add(
            DeletionRow(id="deletion-1", kind="SAMPLE", subject="", state="RETRAINING", deadline="", report=report)
        )
        for run_id in ("a", "b"):
            marked = PublicationRow(id=run_id, model="pets", run=run_id, tainted_time="", deletion="deletion-1")
            session.add(marked)
    database.close()
    made_from = pb.Conversion(options_json=json.dumps({"source": "run:a"}))

    for call in (
        stub.PublishRun(pb.PublishRunRequest(id="a", model="tiny", force=True)),
        downloaded(stub, "a", "model.onnx"),
        stub.ResumeRun(pb.ResumeRunRequest(id="b")),
        stub.CreateRun(pb.CreateRunRequest(conversion=made_from)),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="has learnt what deletion 'deletion-1' removes, and") as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_model_is_not_published_where_inference_is_away(
    serve: Serve, settings: TrainerSettings, finished: Path
) -> None:
    nowhere = settings.model_copy(update={"inference_address": "127.0.0.1:1"})
    stub = TrainingServiceStub((await serve(lambda stop: TrainerComponent(nowhere, stop))).channel)

    with pytest.raises(grpc.aio.AioRpcError, match=r"inference at 127.0.0.1:1 does not answer: ") as caught:
        await stub.PublishRun(pb.PublishRunRequest(id="a", model="tiny"))

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_run_without_a_model_is_not_published(stub: TrainingServiceStub, create: Create) -> None:
    await create("a", hold_at=1)

    with pytest.raises(
        grpc.aio.AioRpcError, match=r"run 'a' is (QUEUED|RUNNING) and has no model to publish"
    ) as caught:
        await stub.PublishRun(pb.PublishRunRequest(id="a", model="tiny"))

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_run_of_another_queue_is_cancelled_and_taken_over(
    stub: TrainingServiceStub, create: Create, serve: Serve, settings: TrainerSettings
) -> None:
    await create("a", hold_at=1)
    await until(stub, "a", pb.Progress.KIND_STEP)
    line = await serve(lambda stop: TrainerComponent(settings, stop, queue="line", trusted=True))
    other = TrainingServiceStub(line.channel)

    running = (await other.ResumeRun(pb.ResumeRunRequest(id="a"))).run
    assert (running.state, running.attempt_count) == (Run.STATE_RUNNING, 1)  # the service sees it through
    await other.CancelRun(pb.CancelRunRequest(id="a"))
    assert (await watched(other, "a"))[-1].run.state == Run.STATE_CANCELLED
    await other.ResumeRun(pb.ResumeRunRequest(id="a"))
    await other.CancelRun(pb.CancelRunRequest(id="a"))

    assert (await watched(stub, "a"))[-1].run.state == Run.STATE_CANCELLED


async def test_recipes_are_listed_by_name_with_their_options(stub: TrainingServiceStub) -> None:
    recipes = (await stub.ListRecipes(pb.ListRecipesRequest())).recipes

    assert [recipe.name for recipe in recipes] == sorted(RECIPES)
    for recipe in recipes:
        assert TrainingOptions.model_validate_json(recipe.options_json) == make_options(recipe.name)


async def test_runs_are_counted_by_their_states(served: Served, stub: TrainingServiceStub, create: Create) -> None:
    await create("a")
    await watched(stub, "a")
    await create("b", hold_at=1)
    await until(stub, "b", pb.Progress.KIND_STEP)
    registry = CollectorRegistry()
    for collector in served.component.collectors:
        registry.register(collector)

    counts = {
        state: registry.get_sample_value("aimass_training_runs", {"state": state})
        for state in ("QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED")
    }

    assert counts == {"QUEUED": 0, "RUNNING": 1, "SUCCEEDED": 1, "FAILED": 0, "CANCELLED": 0}


def test_a_database_that_is_none_is_a_wrong_setting(settings: TrainerSettings) -> None:
    wrong = TrainerSettings.model_validate({**settings.model_dump(), "database": "trainer.db"})

    with pytest.raises(SettingsError, match="TRAINER_DATABASE is not the URL of a database"):
        TrainerComponent(wrong)


async def test_a_database_that_does_not_answer_is_a_wrong_setting(settings: TrainerSettings, tmp_path: Path) -> None:
    wrong = TrainerSettings.model_validate({**settings.model_dump(), "database": f"sqlite:///{tmp_path}"})

    with pytest.raises(SettingsError, match="the trainer's database does not answer: unable to open database file"):
        await TrainerComponent(wrong).start()


def test_a_password_of_the_database_is_not_logged() -> None:
    settings = TrainerSettings.model_validate({"database": "postgresql+psycopg://user:secret@host/db"})

    assert "secret" not in settings.model_dump_json() + repr(settings)


def _fields(error: grpc.aio.AioRpcError) -> list[str]:
    request = error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)
    return [v.field for detail in status.details if detail.Unpack(request) for v in request.field_violations]
