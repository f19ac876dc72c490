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
from gateway.access import BESIDE_KEYS, UNTOLD, Access, KeyBook
from services.common.errors import NotAllowed, NotReady, Unauthenticated
from services.common.identity import CALLER_KEY, LOCAL, OWNER, STRANGER, Caller, Scope, caller_metadata
from tests.end_to_end.pictures import plain
from tests.end_to_end.suite import eventually
from tests.gateway.door import LearningTrainer

EACH = [frozenset[Scope](), *(frozenset({scope}) for scope in Scope)]
"""What calls need: nothing, or one scope."""
NOTHING, PREDICT, FEEDBACK, TRAIN, ADMIN = EACH
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


async def test_the_first_keys_are_waited_for_a_moment(told):
    told.tells_keys = False
    book = KeyBook(lambda: told.WatchKeys(access_pb2.WatchKeysRequest(), None))
    book.start()
    waiting = asyncio.create_task(book.hear())
    await asyncio.sleep(0)  # now it waits
    told.tells_keys = True
    await told.wake()
    await waiting

    assert book.known
    await book.close()


@pytest.fixture
def empty():
    """A book that has heard of nothing yet."""
    return KeyBook(lambda: None)


@pytest.mark.parametrize("scopes", EACH)
async def test_where_no_key_administrates_who_calls_from_this_machine_needs_none(book, scopes):
    assert Access(book, "auto").caller(scopes, HERE) == LOCAL


@pytest.mark.parametrize("scopes", EACH)
def test_until_it_is_known_whether_a_key_administrates_nobody_is_taken_for_the_administrator(empty, scopes):
    access = Access(empty, "auto")

    if scopes in (TRAIN, ADMIN):
        with pytest.raises(NotReady, match="they say who may do this; try again in a moment"):
            access.caller(scopes, HERE)
    else:
        assert access.caller(scopes, HERE) == BESIDE_KEYS


@pytest.mark.parametrize(("peer", "forwarded"), [(THERE, False), (HERE, True)])
@pytest.mark.parametrize("scopes", EACH)
def test_who_calls_from_elsewhere_needs_one_for_all_but_predictions(empty, scopes, peer, forwarded):
    access = Access(empty, "auto")

    if scopes in (PREDICT, NOTHING):
        assert access.caller(scopes, peer, forwarded=forwarded) == STRANGER
    else:
        with pytest.raises(Unauthenticated, match="this needs a key with scope"):
            access.caller(scopes, peer, forwarded=forwarded)


@pytest.mark.parametrize("scopes", EACH)
def test_where_keys_are_required_nobody_goes_without_one(empty, scopes):
    access = Access(empty, "required")

    with pytest.raises(Unauthenticated, match="answers nobody without a key"):
        access.caller(scopes, HERE)


async def test_a_key_says_who_calls_wherever_that_is(book):
    anna = Caller("anna", frozenset({Scope.FEEDBACK}), trusted=True)

    for peer in (HERE, THERE):
        for authentication in ("auto", "required"):
            assert Access(book, authentication).caller(FEEDBACK, peer, "Bearer am_anna") == anna


async def test_a_key_gives_no_more_than_its_scopes_not_even_here(book):
    with pytest.raises(NotAllowed, match="the key of anna has the scopes feedback, and this needs admin"):
        Access(book, "auto").caller(ADMIN, HERE, "Bearer am_anna")


async def test_a_key_takes_away_nothing_that_is_open(book):
    assert Access(book, "auto").caller(PREDICT, THERE, "bearer am_anna").contributor == "anna"
    with pytest.raises(NotAllowed):
        Access(book, "required").caller(PREDICT, THERE, "Bearer am_anna")


@pytest.mark.parametrize("scopes", [PREDICT, FEEDBACK, NOTHING])
@pytest.mark.parametrize("authorization", ["Bearer am_anne", "Bearer ", "Bearer \udcff", "Bearer am_anna x"])
async def test_a_wrong_key_is_refused_and_never_anonymous(book, scopes, authorization):
    with pytest.raises(Unauthenticated, match="the key that was sent is not valid"):
        Access(book, "auto").caller(scopes, HERE, authorization)


async def test_beside_a_key_that_administrates_this_machine_is_no_administrator(book, told):
    access = Access(book, "auto")
    assert access.caller(ADMIN, HERE) == LOCAL
    await told.give("am_root", "root", "admin")
    await eventually(lambda: book.has_administrator)

    for scopes in (PREDICT, FEEDBACK, FEEDBACK | TRAIN, NOTHING):
        caller = access.caller(scopes, HERE)
        assert (caller.contributor, caller.scopes) == ("anonymous", {Scope.PREDICT, Scope.FEEDBACK})
    for scope in (Scope.TRAIN, Scope.ADMIN):
        with pytest.raises(Unauthenticated, match=f"needs a key with scope {scope} on this machine too; send one as"):
            access.caller(frozenset({scope}), HERE)
    assert access.caller(ADMIN, HERE, "Bearer am_root").contributor == "root"
    await told.revoke("am_root")
    await eventually(lambda: not book.has_administrator)
    assert access.caller(ADMIN, HERE) == LOCAL


def test_another_scheme_is_for_somebody_else(empty):
    assert Access(empty, "auto").caller(PREDICT, HERE, "Basic abc") == BESIDE_KEYS


def test_a_key_that_cannot_be_looked_up_keeps_nobody_from_a_prediction(empty):
    for peer in (HERE, THERE):
        assert Access(empty, "auto").caller(PREDICT, peer, "Bearer am_anna") is UNTOLD
    for authentication, scopes in (("auto", FEEDBACK), ("required", PREDICT)):
        with pytest.raises(NotReady, match="has not told of its keys yet, and"):
            Access(empty, authentication).caller(scopes, THERE, "Bearer am_anna")


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


async def test_whoever_works_on_a_model_may_see_its_loop_and_who_only_asks_it_may_not(door):
    for name in ("predict", "feedback", "train", "admin"):
        await door.trainer.give(f"am_{name}", name, name)
    await eventually(lambda: door.access_knows("am_admin"))
    loop = LoopServiceStub(door.channel)
    calls = [
        lambda sent: loop.GetLoop(loop_pb2.GetLoopRequest(), metadata=sent),
        lambda sent: loop.ListEvents(loop_pb2.ListEventsRequest(), metadata=sent),
        lambda sent: loop.WatchEvents(loop_pb2.WatchEventsRequest(), metadata=sent).read(),
    ]

    for call in calls:
        assert await refused(call(ELSEWHERE)) == "UNAUTHENTICATED"
        assert await refused(call((*ELSEWHERE, *bearing("am_predict")))) == "PERMISSION_DENIED"
        for sent in ((), *((*ELSEWHERE, *bearing(f"am_{name}")) for name in ("feedback", "train", "admin"))):
            await call(sent)
    assert len(door.trainer.heard) == 12


async def test_before_the_trainer_has_told_of_keys_only_training_and_administration_are_refused(
    open_gateway, monkeypatch
):
    monkeypatch.setattr("gateway.access.FIRST_KEYS_SECONDS", 0.0)
    trainer = LearningTrainer()
    trainer.tells_keys = False
    door = await open_gateway(trainer)
    access, loop = AccessServiceStub(door.channel), LoopServiceStub(door.channel)

    async def promoted():
        return (await door.http.post("/v1/models/tiny/loop/promote", json={"version": 1})).status_code

    predicted = await door.stub.Predict(gateway_pb2.PredictRequest(model="tiny", images=[RED]))
    await FeedbackServiceStub(door.channel).SendFeedback(feedback_pb2.SendFeedbackRequest(correct=True))
    await loop.GetLoop(loop_pb2.GetLoopRequest())

    assert predicted.results[0].prediction.labels
    assert {each.caller for each in trainer.heard} == {BESIDE_KEYS}
    assert await refused(access.CreateKey(access_pb2.CreateKeyRequest())) == "UNAVAILABLE"
    assert await refused(loop.TriggerCycle(loop_pb2.TriggerCycleRequest())) == "UNAVAILABLE"
    assert await promoted() == 503
    trainer.tells_keys = True
    await trainer.wake()
    await eventually(lambda: door.component._keys.known)
    assert await promoted() == 200


async def test_what_is_free_needs_none(door):
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
        ("GET", "/v1/models/tiny/loop", 401),
        ("GET", "/v1/models/tiny/loop/events", 401),
        ("GET", "/v2/models/tiny", 200),
        ("POST", "/v1/predictions/a/feedback", 401),
        ("GET", "/v1/models/tiny/observations", 401),
        ("GET", "/v1/observations/4/image", 401),
        ("POST", "/v1/observations/4/review", 401),
        ("GET", "/v1/models/tiny/analysis", 401),
        ("POST", "/v1/models/tiny/loop/trigger", 401),
        ("POST", "/v1/models/tiny/loop/propose", 401),
        ("GET", "/v1/predictions/a/trace", 401),
        ("DELETE", "/v1/observations/4", 401),
        ("DELETE", "/v1/contributors/anna", 401),
        ("GET", "/v1/deletions/x", 401),
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
