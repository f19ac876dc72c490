"""Who calls, by which key or from where, and what they may: alone, and at a real gateway."""

import asyncio

import grpc
import pytest

from aimass.gateway.v1 import gateway_pb2
from aimass.open_inference import grpc_service_pb2 as oip
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from aimass.trainer.v1 import access_pb2, data_pb2, feedback_pb2, loop_pb2
from aimass.trainer.v1.access_pb2_grpc import AccessServiceStub
from aimass.trainer.v1.data_pb2_grpc import DataServiceStub
from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceStub
from aimass.trainer.v1.loop_pb2_grpc import LoopServiceStub
from gateway.access import UNTOLD, Access, KeyBook
from services.common.errors import NotAllowed, NotReady, Unauthenticated
from services.common.identity import CALLER_KEY, LOCAL, OWNER, STRANGER, Caller, Scope, caller_metadata
from tests.end_to_end.pictures import plain
from tests.end_to_end.suite import eventually
from tests.gateway.door import LearningTrainer

HERE, THERE = "ipv4:127.0.0.1:4000", "ipv4:192.0.2.7:4000"
ELSEWHERE = (("x-forwarded-for", "192.0.2.7"),)
RED = plain((255, 0, 0))


def bearing(secret):
    return (("authorization", f"Bearer {secret}"),)


@pytest.fixture
async def told():
    """A trainer that tells of the key of anna, who may send feedback and is trusted."""
    trainer = LearningTrainer()
    await trainer.give("am_anna", "anna", "feedback", trusted=True)
    return trainer


@pytest.fixture
async def book(told):
    """A book that knows the keys of *told*."""
    book = KeyBook(lambda: told.WatchKeys(access_pb2.WatchKeysRequest(), None))
    book.start()
    await eventually(lambda: book.known)
    yield book
    await book.close()


async def test_a_key_that_is_made_this_moment_is_waited_for(book, told):
    looking = asyncio.create_task(book.look_up("am_ben"))
    await asyncio.sleep(0)  # now it waits

    await told.give("am_ben", "ben", "feedback")
    await looking

    assert book.find("am_ben").contributor == "ben"


@pytest.fixture
def empty():
    """A book that has heard of nothing yet."""
    return KeyBook(lambda: None)


@pytest.mark.parametrize("scope", [*Scope, None])
def test_who_calls_from_this_machine_needs_no_key(empty, scope):
    assert Access(empty, "auto").caller(scope, HERE) == LOCAL


@pytest.mark.parametrize(("peer", "forwarded"), [(THERE, False), (HERE, True)])
@pytest.mark.parametrize("scope", [*Scope, None])
def test_who_calls_from_elsewhere_needs_one_for_all_but_predictions(empty, scope, peer, forwarded):
    access = Access(empty, "auto")

    if scope in (Scope.PREDICT, None):
        assert access.caller(scope, peer, forwarded=forwarded) == STRANGER
    else:
        with pytest.raises(Unauthenticated, match="this needs a key with scope"):
            access.caller(scope, peer, forwarded=forwarded)


@pytest.mark.parametrize("scope", [*Scope, None])
def test_where_keys_are_required_nobody_goes_without_one(book, scope):
    access = Access(book, "required")

    with pytest.raises(Unauthenticated, match="answers nobody without a key"):
        access.caller(scope, HERE)


async def test_a_key_says_who_calls_wherever_that_is(book):
    anna = Caller("anna", frozenset({Scope.FEEDBACK}), trusted=True)

    for peer in (HERE, THERE):
        for authentication in ("auto", "required"):
            assert Access(book, authentication).caller(Scope.FEEDBACK, peer, "Bearer am_anna") == anna


async def test_a_key_gives_no_more_than_its_scopes_not_even_here(book):
    with pytest.raises(NotAllowed, match="the key of anna has the scopes feedback, and this needs admin"):
        Access(book, "auto").caller(Scope.ADMIN, HERE, "Bearer am_anna")


async def test_a_key_takes_away_nothing_that_is_open(book):
    assert Access(book, "auto").caller(Scope.PREDICT, THERE, "bearer am_anna").contributor == "anna"
    with pytest.raises(NotAllowed):
        Access(book, "required").caller(Scope.PREDICT, THERE, "Bearer am_anna")


@pytest.mark.parametrize("scope", [Scope.PREDICT, Scope.FEEDBACK, None])
@pytest.mark.parametrize("authorization", ["Bearer am_anne", "Bearer ", "Bearer \udcff", "Bearer am_anna x"])
async def test_a_wrong_key_is_refused_and_never_anonymous(book, scope, authorization):
    with pytest.raises(Unauthenticated, match="the key that was sent is not valid"):
        Access(book, "auto").caller(scope, HERE, authorization)


async def test_beside_a_key_that_administrates_this_machine_is_no_administrator(book, told):
    access = Access(book, "auto")
    assert access.caller(Scope.ADMIN, HERE) == LOCAL
    await told.give("am_root", "root", "admin")
    await eventually(lambda: book.has_administrator)

    for scope in (Scope.PREDICT, Scope.FEEDBACK, None):
        caller = access.caller(scope, HERE)
        assert (caller.contributor, caller.scopes) == ("anonymous", {Scope.PREDICT, Scope.FEEDBACK})
    for scope in (Scope.TRAIN, Scope.ADMIN):
        with pytest.raises(Unauthenticated, match=f"needs a key with scope {scope} on this machine too; send one as"):
            access.caller(scope, HERE)
    assert access.caller(Scope.ADMIN, HERE, "Bearer am_root").contributor == "root"
    await told.revoke("am_root")
    await eventually(lambda: not book.has_administrator)
    assert access.caller(Scope.ADMIN, HERE) == LOCAL


def test_another_scheme_is_for_somebody_else(empty):
    assert Access(empty, "auto").caller(Scope.PREDICT, HERE, "Basic abc") == LOCAL


def test_a_key_that_cannot_be_looked_up_keeps_nobody_from_a_prediction(empty):
    for peer in (HERE, THERE):
        assert Access(empty, "auto").caller(Scope.PREDICT, peer, "Bearer am_anna") is UNTOLD
    for authentication, scope in (("auto", Scope.FEEDBACK), ("required", Scope.PREDICT)):
        with pytest.raises(NotReady, match="has not told of its keys yet; try again"):
            Access(empty, authentication).caller(scope, THERE, "Bearer am_anna")


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name


async def test_keys_come_and_go_while_the_gateway_runs(door):
    feedback = FeedbackServiceStub(door.channel)
    request = feedback_pb2.SendFeedbackRequest(prediction_id="a", correct=True)

    assert await refused(feedback.SendFeedback(request, metadata=bearing("am_ben"))) == "UNAUTHENTICATED"
    await door.trainer.give("am_ben", "ben", "feedback")
    await eventually(lambda: door.access_knows("am_ben"))
    await feedback.SendFeedback(request, metadata=bearing("am_ben"))
    await door.trainer.revoke("am_ben")
    await eventually(lambda: not door.access_knows("am_ben"))

    assert await refused(feedback.SendFeedback(request, metadata=bearing("am_ben"))) == "UNAUTHENTICATED"
    assert [each.caller.contributor for each in door.trainer.heard] == ["ben"]


async def test_keys_stay_known_while_the_trainer_is_away(door):
    await door.trainer.give("am_ben", "ben", "predict")
    await eventually(lambda: door.access_knows("am_ben"))
    await door.trainer.stop()

    request = gateway_pb2.PredictRequest(model="tiny", images=[RED])
    answer = await door.stub.Predict(request, metadata=(*ELSEWHERE, *bearing("am_ben")))

    assert answer.results[0].prediction.labels


async def test_each_method_needs_its_scope(door):
    names = {"feedback", "train", "admin"}
    for name in names:
        await door.trainer.give(f"am_{name}", name, name)
    await eventually(lambda: all(door.access_knows(f"am_{name}") for name in names))
    feedback, data, loop = (
        FeedbackServiceStub(door.channel),
        DataServiceStub(door.channel),
        LoopServiceStub(door.channel),
    )
    access = AccessServiceStub(door.channel)
    calls = {
        "feedback": [
            lambda sent: door.stub.SendFeedback(gateway_pb2.SendFeedbackRequest(correct=True), metadata=sent),
            lambda sent: feedback.ListObservations(feedback_pb2.ListObservationsRequest(), metadata=sent),
            lambda sent: feedback.ReviewObservation(feedback_pb2.ReviewObservationRequest(), metadata=sent),
        ],
        "train": [
            lambda sent: data.ListSamples(data_pb2.ListSamplesRequest(), metadata=sent),
            lambda sent: loop.TriggerCycle(loop_pb2.TriggerCycleRequest(), metadata=sent),
            lambda sent: loop.GetAnalysis(loop_pb2.GetAnalysisRequest(), metadata=sent),
        ],
        "admin": [
            lambda sent: access.CreateKey(access_pb2.CreateKeyRequest(), metadata=sent),
            lambda sent: loop.PromoteCandidate(loop_pb2.PromoteCandidateRequest(), metadata=sent),
            lambda sent: loop.RollBack(loop_pb2.RollBackRequest(), metadata=sent),
        ],
    }

    for needed, each in calls.items():
        for call in each:
            assert await refused(call(ELSEWHERE)) == "UNAUTHENTICATED"
            for name in names - {needed}:
                assert await refused(call((*ELSEWHERE, *bearing(f"am_{name}")))) == "PERMISSION_DENIED"
            await call((*ELSEWHERE, *bearing(f"am_{needed}")))
    assert {each.caller.contributor for each in door.trainer.heard} == names


async def test_what_is_free_needs_none(door):
    await LoopServiceStub(door.channel).GetLoop(loop_pb2.GetLoopRequest(), metadata=ELSEWHERE)
    models = await door.stub.ListModels(gateway_pb2.ListModelsRequest(), metadata=ELSEWHERE)

    assert [each.name for each in models.models] == ["tiny"]


async def test_strangers_may_infer_and_may_not_load_models(door):
    stub = GRPCInferenceServiceStub(door.channel)

    assert (await stub.ServerLive(oip.ServerLiveRequest(), metadata=ELSEWHERE)).live
    request = oip.RepositoryModelLoadRequest(model_name="tiny")
    assert await refused(stub.RepositoryModelLoad(request, metadata=ELSEWHERE)) == "UNAUTHENTICATED"


async def test_a_caller_cannot_say_who_they_are_and_no_key_leaves_the_gateway(door):
    await door.trainer.give("am_ben", "ben", "feedback")
    await eventually(lambda: door.access_knows("am_ben"))
    feedback = FeedbackServiceStub(door.channel)

    for metadata in ((), bearing("am_ben")):
        await feedback.ListObservations(
            feedback_pb2.ListObservationsRequest(), metadata=(*metadata, caller_metadata(OWNER))
        )

    assert [each.caller for each in door.trainer.heard] == [LOCAL, Caller("ben", frozenset({Scope.FEEDBACK}))]
    for each in door.trainer.heard:
        assert "authorization" not in each.metadata
        assert CALLER_KEY in each.metadata


async def test_what_is_spoken_behind_the_gateway_is_not_offered(door):
    watch = AccessServiceStub(door.channel).WatchKeys(access_pb2.WatchKeysRequest())
    assert await refused(watch.read()) == "PERMISSION_DENIED"

    captures = door.channel.stream_stream("/aimass.trainer.v1.CaptureService/Capture")()
    assert await refused(captures.read()) == "UNIMPLEMENTED"


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/openapi.json", "/v2/health/live", "/v2/health/ready"])
async def test_where_keys_are_required_the_page_and_health_are_still_there(open_gateway, path):
    door = await open_gateway(authentication="required")

    assert (await door.http.get(path)).status_code == 200


async def test_where_keys_are_required_every_door_asks_for_one(open_gateway):
    door = await open_gateway(authentication="required")
    await door.trainer.give("am_ben", "ben", "predict")
    await eventually(lambda: door.access_knows("am_ben"))
    request = gateway_pb2.PredictRequest(model="tiny", images=[RED])

    assert await refused(door.stub.Predict(request)) == "UNAUTHENTICATED"
    assert await refused(door.stub.ListModels(gateway_pb2.ListModelsRequest())) == "UNAUTHENTICATED"
    assert (await door.stub.Predict(request, metadata=bearing("am_ben"))).results[0].prediction.labels
    for method, path in (("POST", "/v1/models/tiny/predict"), ("GET", "/v1/models"), ("GET", "/v2/models/tiny")):
        without = await door.http.request(method, path, content=RED)
        assert (without.status_code, "without a key" in without.text) == (401, True)
        keyed = await door.http.request(method, path, content=RED, headers=dict(bearing("am_ben")))
        assert keyed.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("POST", "/v1/models/tiny/predict", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/tiny/loop", 200),
        ("GET", "/v1/models/tiny/loop/events", 200),
        ("GET", "/v2/models/tiny", 200),
        ("POST", "/v1/predictions/a/feedback", 401),
        ("GET", "/v1/models/tiny/observations", 401),
        ("GET", "/v1/observations/4/image", 401),
        ("POST", "/v1/observations/4/review", 401),
        ("GET", "/v1/models/tiny/analysis", 401),
        ("POST", "/v1/models/tiny/loop/trigger", 401),
        ("POST", "/v1/models/tiny/loop/promote", 401),
        ("POST", "/v1/models/tiny/loop/promote%0A", 401),
        ("POST", "/v1/models/tiny/loop/rollback", 401),
        ("POST", "/v2/repository/models/tiny/load", 401),
        ("DELETE", "/v1/models/tiny/predict", 401),
        ("GET", "/v1/whatever", 401),
    ],
)
async def test_strangers_reach_over_http_what_they_reach_over_grpc(door, method, path, code):
    answer = await door.http.request(method, path, content=RED, headers=dict(ELSEWHERE))

    assert answer.status_code == code


async def test_a_key_is_taken_over_http_and_a_wrong_one_refused(door):
    await door.trainer.give("am_ben", "ben", "feedback")
    await eventually(lambda: door.access_knows("am_ben"))

    async def listed(secret):
        headers = {**dict(ELSEWHERE), "Authorization": f"Bearer {secret}"}
        return await door.http.get("/v1/models/tiny/observations", headers=headers)

    assert (await listed("am_ben")).status_code == 200
    wrong = await listed("am_bob")
    assert (wrong.status_code, wrong.json()["error"]["reason"]) == (401, "UNAUTHENTICATED")
    assert [each.caller.contributor for each in door.trainer.heard] == ["ben"]
