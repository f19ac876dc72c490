"""Feedback and reviews at a real gateway, over gRPC and HTTP, before a trainer that writes down what it is asked."""

import grpc
import pytest

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.trainer.v1 import feedback_pb2
from services.common.identity import LOCAL
from tests.end_to_end.pictures import plain

RED = plain((255, 0, 0))
FEEDBACK, REVIEW = "/v1/predictions/abc/feedback", "/v1/observations/4/review"


def heard(door):
    (one,) = door.trainer.heard
    return one.request


@pytest.mark.parametrize("message", ["SendFeedbackRequest"])
def test_the_gateways_messages_have_the_trainers_fields(message):
    ours, theirs = getattr(pb, message).DESCRIPTOR, getattr(feedback_pb2, message).DESCRIPTOR

    assert [(each.name, each.number, each.type) for each in ours.fields] == [
        (each.name, each.number, each.type) for each in theirs.fields
    ]


@pytest.mark.parametrize("verdict", [{"label": "blue"}, {"correct": True}, {"correct": False}, {}])
async def test_a_verdict_reaches_the_trainer_as_it_was_sent(door, verdict):
    request = pb.SendFeedbackRequest(prediction_id="abc", comment="hm", image=b"image", model="tiny", **verdict)

    response = await door.stub.SendFeedback(request)

    assert heard(door) == feedback_pb2.SendFeedbackRequest(
        prediction_id="abc", comment="hm", image=b"image", model="tiny", **verdict
    )
    assert response == pb.SendFeedbackResponse(state="pending", state_reason="NEEDS_VOTES", created=True)
    assert door.trainer.heard[0].caller == LOCAL


async def test_the_trainers_refusal_is_the_callers(door):
    with pytest.raises(grpc.aio.AioRpcError, match="was not captured; send its image and model") as caught:
        await door.stub.SendFeedback(pb.SendFeedbackRequest(prediction_id="unknown", correct=True))
    answer = await door.http.post("/v1/predictions/unknown/feedback", json={"correct": True})

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert answer.status_code == 404
    assert "send its image and model" in answer.json()["error"]["message"]


async def test_a_trainer_that_is_away_is_told_and_ends_nothing_else(door):
    await door.trainer.stop()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.SendFeedback(pb.SendFeedbackRequest(prediction_id="abc", correct=True))
    over_http = await door.http.post(FEEDBACK, json={"correct": True})

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert over_http.status_code == 503
    assert (await door.http.post("/v1/models/tiny/predict", content=RED)).status_code == 200


@pytest.mark.parametrize(
    ("document", "fields"),
    [
        ({"label": "blue"}, {"label": "blue"}),
        ({"correct": False, "comment": "blurred"}, {"correct": False, "comment": "blurred"}),
        ({"label": "blue", "model": "tiny"}, {"label": "blue", "model": "tiny"}),
    ],
)
async def test_feedback_is_json_over_http(door, document, fields):
    answer = await door.http.post(FEEDBACK, json=document)

    assert answer.json() == {"state": "pending", "state_reason": "NEEDS_VOTES", "created": True}
    assert heard(door) == feedback_pb2.SendFeedbackRequest(prediction_id="abc", **fields)


@pytest.mark.parametrize(("field", "verdict"), [("label", "blue"), ("correct", "true"), ("correct", "false")])
async def test_a_form_brings_the_image_again(door, field, verdict):
    answer = await door.http.post(FEEDBACK, data={field: verdict, "model": "tiny"}, files={"image": ("a.png", RED)})

    value = verdict if field == "label" else verdict == "true"
    assert answer.status_code == 200
    assert heard(door) == feedback_pb2.SendFeedbackRequest(
        prediction_id="abc", model="tiny", image=RED, **{field: value}
    )


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"json": {}}, "the feedback has neither label nor correct; give one of them"),
        ({"json": {"label": "a", "correct": True}}, "the feedback has both label and correct; give one"),
        ({"json": {"label": "a", "image": "aaaa"}}, 'has the member "image", which is unknown; give label, correct'),
        ({"json": {"label": 3}}, "'label' is 3; give a string"),
        ({"json": {"correct": "yes"}}, "'correct' is \"yes\"; give true or false"),
        ({"content": b"[]"}, "the feedback is a list; send a JSON object"),
        ({"data": {"correct": "yes"}, "files": {"image": ("a", b"a")}}, 'of the form is "yes"; give true or false'),
        ({"data": {"label": "a"}, "files": [("image", ("a", b"a"))] * 2}, "Maximum number of files is 1"),
    ],
)
async def test_feedback_that_is_malformed_is_refused(door, sent, words):
    answer = await door.http.post(FEEDBACK, **sent)

    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert door.trainer.heard == []


async def test_observations_are_listed_with_words_and_times(door):
    query = {"order": "disagreement", "state": ["pending", "quarantined"], "role": "judge", "page_size": 7}

    answer = await door.http.get("/v1/models/tiny/observations", params=query)

    request = heard(door)
    states = feedback_pb2.Observation
    assert (request.model, request.page_size, request.role) == ("tiny", 7, states.ROLE_JUDGE)
    assert list(request.states) == [states.STATE_PENDING, states.STATE_QUARANTINED]
    assert request.order == feedback_pb2.ListObservationsRequest.ORDER_DISAGREEMENT
    (observation,) = answer.json()["observations"]
    assert (observation["id"], observation["state"], observation["role"]) == (4, "quarantined", "unspecified")
    assert observation["create_time"] == "2023-11-14T22:13:20Z"
    assert answer.json()["waiting_count"] == 1


@pytest.mark.parametrize("query", ["order=best", "state=lost", "role=both", "page_size=201"])
async def test_a_list_that_is_malformed_is_refused(door, query):
    answer = await door.http.get(f"/v1/models/tiny/observations?{query}")

    assert answer.status_code == 400
    assert query.split("=")[0] in answer.json()["error"]["message"]


async def test_the_picture_of_an_observation_is_shown_and_kept_nowhere(door):
    answer = await door.http.get("/v1/observations/4/image")

    assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/jpeg")
    assert answer.headers["image-orientation"] == "6"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("decision", [{"label": "red"}, {"undecidable": True}, {"reject": True}, {"release": True}])
async def test_a_review_reaches_the_trainer(door, decision):
    answer = await door.http.post(REVIEW, json=decision)

    assert answer.json()["observation"]["id"] == 4
    assert heard(door) == feedback_pb2.ReviewObservationRequest(id=4, **decision)


@pytest.mark.parametrize(
    "decision", [{}, {"label": "red", "reject": True}, {"reject": 1}, {"label": True}, {"label": "red", "by": 1}]
)
async def test_a_review_that_is_malformed_is_refused(door, decision):
    answer = await door.http.post(REVIEW, json=decision)

    assert answer.status_code == 400
    assert door.trainer.heard == []
