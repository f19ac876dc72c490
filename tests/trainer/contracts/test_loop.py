"""The loop contract over a real server, with a real loop behind it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from aimass.trainer.v1 import loop_pb2 as pb
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceStub
from services.common.identity import CALLER_KEY, Caller, Scope, caller_metadata
from services.trainer.contracts import following, wishes
from services.trainer.contracts import loop as contract
from services.trainer.loop import director as directing
from services.trainer.loop.payloads import DeletionRequested, TriggerWished
from services.trainer.loop.policy import Strategy
from services.trainer.loop.tables import LoopModelRow
from tests.conftest import Serve, Served
from tests.trainer.loop.component import LoopComponent
from tests.trainer.loop.conftest import MODEL, clock, home, task
from tests.trainer.loop.home import Home

__all__ = ["clock", "home", "task"]
TRAINER = (caller_metadata(Caller("ada", frozenset({Scope.TRAIN}))),)
USER = (caller_metadata(Caller("ben", frozenset({Scope.FEEDBACK}))),)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directing, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(contract, "REMEMBERED_SECONDS", 0.0)


@pytest.fixture
async def served(serve: Serve, home: Home, tmp_path: Path) -> Served:
    return await serve(lambda stop: LoopComponent(home, tmp_path, stop))


@pytest.fixture
def stub(served: Served) -> LoopServiceStub:
    return LoopServiceStub(served.channel)


@pytest.fixture
async def world(home: Home) -> AsyncIterator[asyncio.Task[None]]:
    """Users and reviewers, who go on and on."""

    async def turn() -> None:
        while True:
            await home.turn()

    task = asyncio.create_task(turn())
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """Return code, reason and sentence of the error that *call* ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(caught.value)
    reasons = [info.reason for detail in status.details if detail.Unpack(info)] if status else [""]
    return caught.value.code(), reasons[0], caught.value.details() or ""


async def events_until(stub: LoopServiceStub, kind: str, after: int = 0) -> list[pb.Event]:
    """Return what is sent up to the first event of *kind*."""
    events = []
    call = stub.WatchEvents(pb.WatchEventsRequest(model=MODEL, after=after))
    async for answer in call:
        events.append(answer.event)
        if answer.event.kind == kind:
            call.cancel()
            return events
    raise AssertionError("the stream ended")


async def test_a_cycle_that_is_triggered_is_watched_to_its_promotion_and_taken_back(
    stub: LoopServiceStub, home: Home, world: asyncio.Task[None]
) -> None:
    home.policy = home.policy.model_copy(update={"trigger": home.policy.trigger.model_copy(update={"accepted": 1000})})
    home.accept(3)
    request = pb.TriggerCycleRequest(model=MODEL, reason="new camera", request_id="by-hand-1")

    begun = (await stub.TriggerCycle(request)).cycle
    again = (await stub.TriggerCycle(request)).cycle
    events = await events_until(stub, "cycle.ended")
    loop = await stub.GetLoop(pb.GetLoopRequest(model=MODEL))
    request_back = pb.RollBackRequest(model=MODEL, reason="users complain", request_id="by-hand-9")
    back, repeated = await stub.RollBack(request_back), await stub.RollBack(request_back)

    assert again == begun
    assert (begun.number, begun.stage) == (1, pb.Cycle.STAGE_SNAPSHOT)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    wish = json.loads(events[1].payload_json if events[1].kind == "wish.trigger" else events[0].payload_json)
    assert wish == {"request_id": "by-hand-1", "reason": "new camera"}
    assert loop.enabled
    assert not loop.HasField("cycle")
    assert loop.last_cycle.promoted
    assert (loop.last_cycle.champion_version, loop.last_cycle.candidate_version) == (1, 2)
    assert loop.last_cycle.gate.log_e >= loop.last_cycle.gate.log_e_bound > 0
    assert {"snapshot", "run", "gate", "canary"} <= set(loop.last_cycle.stage_durations)
    assert (loop.accepted_count, loop.accepted_since_snapshot) == (3, 0)
    assert loop.next_trigger.startswith("0 of 1000 new samples")
    assert json.loads(loop.policy_json)["trigger"]["accepted"] == 1000
    assert (back.event.kind, back.stable_version) == ("rolled_back", 1)
    assert repeated == back
    assert (await home.stable())[0] == 1  # it did not go forth again


async def test_a_candidate_is_promoted_by_hand_past_the_gate(stub: LoopServiceStub, home: Home) -> None:
    home.accept()
    await events_until(stub, "gate.begun")
    champion = pb.PromoteCandidateRequest(model=MODEL, version=1, request_id="by-hand-1")
    wrong = await refused(stub.PromoteCandidate(champion))

    request = pb.PromoteCandidateRequest(model=MODEL, version=2, reason="I know", request_id="by-hand-2")
    promoted, repeated = await stub.PromoteCandidate(request), await stub.PromoteCandidate(request)

    assert wrong[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "NO_CANDIDATE")
    assert "with SetTraffic or `aimass promote`" in wrong[2]
    assert promoted.event.kind == "promoted"
    assert repeated == promoted
    assert (await home.stable())[0] == 2


async def test_who_asks_again_gets_the_first_answer_whatever_has_happened_since(
    stub: LoopServiceStub, home: Home
) -> None:
    home.policy = home.policy.model_copy(update={"trigger": home.policy.trigger.model_copy(update={"accepted": 1000})})
    home.accept(3)
    trigger = pb.TriggerCycleRequest(model=MODEL, request_id="by-hand-1")
    promote = pb.PromoteCandidateRequest(model=MODEL, version=2, request_id="by-hand-2")
    reject = pb.RejectCandidateRequest(model=MODEL, version=3, request_id="by-hand-3")
    begun = await stub.TriggerCycle(trigger)
    await events_until(stub, "gate.begun")
    promoted = await stub.PromoteCandidate(promote)
    home.accept(3)
    another = await stub.TriggerCycle(pb.TriggerCycleRequest(model=MODEL, request_id="by-hand-4"))
    await events_until(stub, "gate.begun", promoted.event.number)
    rejected = await stub.RejectCandidate(reject)

    late = pb.PromoteCandidateRequest(model=MODEL, version=2, request_id="by-hand-5")
    other_values = pb.PromoteCandidateRequest(model=MODEL, version=9, request_id="by-hand-2")

    assert (await refused(stub.PromoteCandidate(late)))[1] == "NO_CANDIDATE"  # that of the last cycle is version 3
    assert await stub.PromoteCandidate(promote) == promoted
    assert await stub.RejectCandidate(reject) == rejected
    assert await stub.TriggerCycle(trigger) == begun
    assert (begun.cycle.number, another.cycle.number) == (1, 2)
    assert "has the same request_id" in (await refused(stub.PromoteCandidate(other_values)))[2]


async def test_a_cycle_under_way_declines_another_and_ends_when_it_is_rejected(
    stub: LoopServiceStub, home: Home
) -> None:
    home.launcher.waits = True
    home.accept()
    await events_until(stub, "run.created")
    whatever = pb.RejectCandidateRequest(model=MODEL, request_id="by-hand-1")
    early = await stub.RejectCandidate(whatever)  # it has no candidate yet
    home.launcher.waits = False
    home.accept()
    await events_until(stub, "gate.begun", early.event.number)
    loop = await stub.GetLoop(pb.GetLoopRequest(model=MODEL))

    another = await refused(stub.TriggerCycle(pb.TriggerCycleRequest(model=MODEL, request_id="by-hand-2")))
    request = pb.RejectCandidateRequest(model=MODEL, version=2, request_id="by-hand-3")
    rejected, repeated = await stub.RejectCandidate(request), await stub.RejectCandidate(request)
    request.request_id = "by-hand-4"
    none = await refused(stub.RejectCandidate(request))

    assert (early.event.kind, early.event.cycle) == ("cycle.ended", 1)
    assert loop.cycle.stage == pb.Cycle.STAGE_GATE
    assert another[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "CYCLE_UNDER_WAY")
    assert rejected.event.kind == "cycle.ended"
    assert repeated == rejected
    assert none[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "NO_CANDIDATE")
    last = (await stub.GetLoop(pb.GetLoopRequest(model=MODEL))).last_cycle
    assert (last.refusal.rule, last.promoted, last.refusal.HasField("bound")) == ("REJECTED_BY_HAND", False, False)
    assert last.refusal.message == "somebody has rejected the candidate"


async def test_the_analysis_is_a_document_and_a_page_about_the_version_that_serves(
    stub: LoopServiceStub, home: Home
) -> None:
    await home.turn()
    told = await stub.GetLoop(pb.GetLoopRequest(model=MODEL))

    found = await stub.GetAnalysis(pb.GetAnalysisRequest(model=MODEL), metadata=TRAINER)
    document, page = json.loads(found.analysis_json), found.analysis_html.decode()

    (one,) = document["accuracy"]
    assert (one["version"], one["serves"], one["judged"]) == (1, True, 10)
    assert [one["low"], one["estimate"], one["high"]] == [
        told.live_accuracy.low,
        told.live_accuracy.estimate,
        told.live_accuracy.high,
    ]
    assert page.startswith("<!doctype html>")
    assert f"<h1>{MODEL}</h1>" in page


async def test_the_analysis_tells_what_is_known_while_inference_is_away(stub: LoopServiceStub, home: Home) -> None:
    await home.turn()
    await home.inference.server.stop(0)

    document = json.loads((await stub.GetAnalysis(pb.GetAnalysisRequest(model=MODEL))).analysis_json)

    assert [(each["judged"], each["serves"]) for each in document["accuracy"]] == [(10, False)]


async def test_nothing_to_go_back_to_is_said_so_whenever_it_is_asked(
    stub: LoopServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directing, "LEAST_SECONDS", 2 * wishes.ANSWER_SECONDS)  # it rests longer than is waited

    for request_id in ("by-hand-1", "by-hand-2"):
        code, reason, sentence = await refused(stub.RollBack(pb.RollBackRequest(model=MODEL, request_id=request_id)))

        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_VERSION_BEFORE")
        assert sentence.startswith(f"the loop of model {MODEL!r} declines the rollback: no other version is ready")
        assert "; name the one that shall serve" in sentence


async def test_a_version_that_is_not_there_cannot_be_proposed(stub: LoopServiceStub) -> None:
    request = pb.ProposeVersionRequest(model=MODEL, version=9, request_id="by-hand-3")

    _, reason, sentence = await refused(stub.ProposeVersion(request))

    assert reason == "NOT_READY"
    assert "declines the proposal of version 9: version 9 is not there" in sentence


async def test_events_are_listed_by_kind_and_page(stub: LoopServiceStub, home: Home) -> None:
    for number in range(3):
        home.log.ask(MODEL, TriggerWished(request_id=f"by-hand-{number}"))

    page = await stub.ListEvents(pb.ListEventsRequest(model=MODEL, kind="wish.trigger", page_size=2))
    rest = await stub.ListEvents(pb.ListEventsRequest(model=MODEL, kind="wish.trigger", after=page.events[-1].number))
    unknown = await refused(stub.ListEvents(pb.ListEventsRequest(model=MODEL, kind="nothing")))

    assert [len(page.events), len(rest.events)] == [2, 1]
    assert unknown[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_is_asked_wrongly_is_refused(stub: LoopServiceStub) -> None:
    calls = {
        stub.GetLoop(pb.GetLoopRequest(model="unknown")): grpc.StatusCode.NOT_FOUND,
        stub.ListEvents(pb.ListEventsRequest(model="unknown")): grpc.StatusCode.NOT_FOUND,
        stub.RollBack(pb.RollBackRequest(model="unknown", request_id="by-hand-3")): grpc.StatusCode.NOT_FOUND,
        stub.RollBack(pb.RollBackRequest(model=MODEL)): grpc.StatusCode.INVALID_ARGUMENT,
        stub.RejectCandidate(pb.RejectCandidateRequest(model=MODEL, version=1)): grpc.StatusCode.INVALID_ARGUMENT,
        stub.TriggerCycle(pb.TriggerCycleRequest(model="unknown", request_id="by-hand-3")): grpc.StatusCode.NOT_FOUND,
        stub.TriggerCycle(pb.TriggerCycleRequest(model=MODEL)): grpc.StatusCode.INVALID_ARGUMENT,
        stub.TriggerCycle(
            pb.TriggerCycleRequest(model=MODEL, request_id="by-hand-4", strategy="magic")
        ): grpc.StatusCode.INVALID_ARGUMENT,
        stub.TriggerCycle(
            pb.TriggerCycleRequest(model=MODEL, request_id="by-hand-5", reason="x" * 201)
        ): grpc.StatusCode.INVALID_ARGUMENT,
        stub.ProposeVersion(
            pb.ProposeVersionRequest(model=MODEL, request_id="by-hand-6")
        ): grpc.StatusCode.INVALID_ARGUMENT,
        stub.ProposeVersion(
            pb.ProposeVersionRequest(model=MODEL, request_id="by-hand-7", version=1, goal=9)  # type: ignore[arg-type]
        ): grpc.StatusCode.INVALID_ARGUMENT,
        stub.ListEvents(pb.ListEventsRequest(model=MODEL, page_size=-5)): grpc.StatusCode.INVALID_ARGUMENT,
        stub.GetAnalysis(pb.GetAnalysisRequest(model="unknown")): grpc.StatusCode.NOT_FOUND,
        stub.DeleteSample(pb.DeleteSampleRequest(observation_id=1)): grpc.StatusCode.INVALID_ARGUMENT,
        stub.DeleteSample(
            pb.DeleteSampleRequest(observation_id=999, request_id="deletion-1")
        ): grpc.StatusCode.NOT_FOUND,
        stub.DeleteContributor(
            pb.DeleteContributorRequest(contributor="nobody", request_id="deletion-1")
        ): grpc.StatusCode.NOT_FOUND,
        stub.DeleteContributor(pb.DeleteContributorRequest(request_id="deletion-1")): grpc.StatusCode.INVALID_ARGUMENT,
        stub.GetDeletion(pb.GetDeletionRequest(id="deletion-1")): grpc.StatusCode.NOT_FOUND,
        stub.TracePrediction(pb.TracePredictionRequest(prediction_id="f" * 32)): grpc.StatusCode.NOT_FOUND,
        stub.TracePrediction(
            pb.TracePredictionRequest(prediction_id="f" * 32, nearest_count=101)
        ): grpc.StatusCode.INVALID_ARGUMENT,
    }

    for call, code in calls.items():
        assert (await refused(call))[0] is code


async def test_a_key_to_train_with_steers_no_traffic(stub: LoopServiceStub) -> None:
    for call in (
        stub.PromoteCandidate(pb.PromoteCandidateRequest(model=MODEL, version=1), metadata=TRAINER),
        stub.RejectCandidate(pb.RejectCandidateRequest(model=MODEL, version=1), metadata=TRAINER),
        stub.RollBack(pb.RollBackRequest(model=MODEL), metadata=TRAINER),
        stub.TracePrediction(pb.TracePredictionRequest(), metadata=TRAINER),
        stub.DeleteSample(pb.DeleteSampleRequest(), metadata=TRAINER),
        stub.DeleteContributor(pb.DeleteContributorRequest(), metadata=TRAINER),
        stub.GetDeletion(pb.GetDeletionRequest(), metadata=TRAINER),
    ):
        assert (await refused(call))[0] is grpc.StatusCode.PERMISSION_DENIED

    analysis = stub.GetAnalysis(pb.GetAnalysisRequest(model=MODEL), metadata=USER)
    assert (await refused(analysis))[0] is grpc.StatusCode.PERMISSION_DENIED
    assert TRAINER[0][0] == CALLER_KEY
    assert (await stub.GetLoop(pb.GetLoopRequest(model=MODEL), metadata=TRAINER)).policy_digest


async def test_what_nobody_heeds_is_kept(
    serve: Serve, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wishes, "ANSWER_SECONDS", 0.1)
    served = await serve(lambda stop: LoopComponent(home, tmp_path, stop, enabled=False))
    stub = LoopServiceStub(served.channel)

    code, _, sentence = await refused(stub.TriggerCycle(pb.TriggerCycleRequest(model=MODEL, request_id="by-hand-7")))

    assert code is grpc.StatusCode.UNAVAILABLE
    assert "TRAINER_LOOP is off" in sentence
    assert "ask again with the same request_id 'by-hand-7'" in sentence
    assert home.kinds == ["wish.trigger"]
    assert not (await stub.GetLoop(pb.GetLoopRequest(model=MODEL))).enabled


async def test_a_stream_of_events_ends_when_the_server_stops(stub: LoopServiceStub, served: Served) -> None:
    call = stub.WatchEvents(pb.WatchEventsRequest(model=MODEL))
    await anext(aiter(call))
    served.stop.set_drained()

    assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_keeps_a_loop_from_its_next_cycle_is_told(stub: LoopServiceStub, home: Home) -> None:
    with home.database.begin() as session:
        session.get_one(LoopModelRow, MODEL).base = ""
    without = await stub.GetLoop(pb.GetLoopRequest(model=MODEL))

    assert without.next_trigger.startswith("a hold-out")
    assert without.enabled

    policy = home.policy.retrain.model_copy(update={"strategies": (Strategy.SCRATCH,)})
    home.policy = home.policy.model_copy(update={"retrain": policy})
    home.erasing.versions = (1,)
    home.log.ask(MODEL, DeletionRequested(deletion_id="deletion-1", subject_digest="0", deadline=home.clock()))
    await events_until(stub, "deletion.stuck")
    stuck = await stub.GetLoop(pb.GetLoopRequest(model=MODEL))

    assert not stuck.enabled
    assert "deletion-1" in stuck.disabled_reason
    assert "NO_STRATEGY" in stuck.disabled_reason
