"""A picture is deleted over the contract, and the loop replaces what has learnt it, in inference too."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from sqlalchemy import update

from aimass.trainer.v1 import loop_pb2 as pb
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceStub
from services.common.server import StopSignal
from services.trainer.data.tables import ObservationRow, SampleRow, SnapshotSampleRow
from services.trainer.loop import director as directing
from services.trainer.provenance.erasure import Erasure
from services.trainer.provenance.lineage import Lineage
from services.trainer.runs.store import RunFilter
from services.trainer.runs.table import RunRow
from tests.conftest import Serve
from tests.trainer.loop.component import LoopComponent
from tests.trainer.loop.conftest import MODEL, clock, home, task
from tests.trainer.loop.home import STARTER, Home
from tests.trainer.loop.rows import add_samples

__all__ = ["clock", "home", "task"]


def with_erasure(home: Home, folder: Path, stop: StopSignal) -> LoopComponent:
    """Return the servicer, the loops behind it, and what they delete with."""
    running_in = asyncio.get_running_loop()

    def graphs() -> dict[str, dict[int, str]]:
        models = asyncio.run_coroutine_threadsafe(home.served.models(), running_in).result()
        return {name: {each.version: each.graph_digest for each in one.versions} for name, one in models.items()}

    component = LoopComponent(home, folder, stop, graphs=graphs)
    folders = component.folders
    lineage = Lineage(home.database, home.store, home.origins, folders.runs, folders.blobs)
    home.erasing = Erasure(  # type: ignore[assignment]
        home.database, home.log, home.store, lineage, folders, graphs, lambda model: None
    )
    return component


@pytest.fixture
async def stub(
    serve: Serve, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LoopServiceStub]:
    """The contract, with users and reviewers who go on and on."""
    monkeypatch.setattr(directing, "LOOK_SECONDS", 0.02)
    policy = home.policy.deletion.model_copy(update={"deadline_hours": 0.0})
    home.policy = home.policy.model_copy(update={"deletion": policy})
    served = await serve(lambda stop: with_erasure(home, tmp_path, stop))

    async def turn() -> None:
        while True:
            await home.turn()

    world = asyncio.create_task(turn())
    yield LoopServiceStub(served.channel)
    world.cancel()
    await asyncio.gather(world, return_exceptions=True)


async def happened(stub: LoopServiceStub, kind: str, after: int = 0) -> pb.Event:
    """Wait for an event of *kind*."""
    call = stub.WatchEvents(pb.WatchEventsRequest(model=MODEL, after=after))
    async for answer in call:
        if answer.event.kind == kind:
            call.cancel()
            return answer.event  # type: ignore[no-any-return]
    raise AssertionError("the stream ended")


async def test_a_picture_is_forgotten_by_the_model_that_serves(
    stub: LoopServiceStub, home: Home, tmp_path: Path
) -> None:
    pictures = add_samples(home.database, 5)
    digests = {"content_digest": "c" * 64, "pixel_digest": "d" * 64}
    with home.database.begin() as session:
        session.execute(update(ObservationRow).where(ObservationRow.number == pictures[0]).values(digests))
        session.execute(update(SampleRow).where(SampleRow.observation == pictures[0]).values(digests))
    promoted = await happened(stub, "cycle.ended")
    (learner,) = {run.id for run in home.store.list(RunFilter())} - {STARTER}
    with home.database.begin() as session:  # what a refit on a snapshot leaves
        values = {"dataset": "snapshot:" + "5" * 64, "options": {"source": f"run:{STARTER}"}}
        session.execute(update(RunRow).where(RunRow.id == learner).values(values))
        session.add(SnapshotSampleRow(snapshot="5" * 64, observation=pictures[0], sample=1, label=0, part="train"))
    request = pb.DeleteSampleRequest(observation_id=pictures[0], request_id="deletion-1")

    begun = (await stub.DeleteSample(request)).deletion
    again = (await stub.DeleteSample(request)).deletion
    erased = await happened(stub, "deletion.erased", promoted.number)
    completed = await happened(stub, "deletion.completed", erased.number)
    deletion = (await stub.GetDeletion(pb.GetDeletionRequest(id="deletion-1"))).deletion

    assert (begun.id, begun.deadline) == (again.id, again.deadline)
    assert begun.state == pb.Deletion.STATE_ERASING
    assert json.loads(erased.payload_json)["versions"] == [2]
    assert json.loads(completed.payload_json)["counts"]["references_left"] == 0
    assert deletion.state == pb.Deletion.STATE_COMPLETED
    assert (list(deletion.tainted_versions), list(deletion.tainted_runs)) == ([2], [learner])
    report = json.loads(deletion.report_json)
    assert report["search"]["found"] == {}
    assert report["models"][MODEL]["removed"]["runs"] == 1
    assert (await home.stable())[0] == 3
    assert {each.version for each in (await home.served.model(MODEL)).versions} == {1, 3}
    assert home.state().tainted == {2}
    assert not (tmp_path / "runs" / learner).exists()
    traced = pb.TracePredictionRequest(prediction_id=f"{1:032x}")
    answer = await stub.TracePrediction(traced)
    assert (answer.version, answer.run_id, answer.tainted) == (1, STARTER, False)


async def test_a_trace_of_nothing_is_not_found(stub: LoopServiceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.TracePrediction(pb.TracePredictionRequest(prediction_id="f" * 32))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
