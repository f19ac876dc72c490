"""The loop over HTTP, before a trainer that writes down what it is asked."""

import pytest

from aimass.trainer.v1 import loop_pb2

LOOP = "/v1/models/tiny/loop"


def heard(door):
    (one,) = door.trainer.heard
    return one.request


async def test_how_the_loop_stands_is_told_in_words(door):
    document = (await door.http.get(LOOP)).json()

    assert heard(door) == loop_pb2.GetLoopRequest(model="tiny")
    assert (document["enabled"], document["cycle"]["stage"], document["last_cycle"]) == (True, "run", None)
    assert document["policy"] == {"a": 1}


async def test_events_come_after_a_number_with_what_they_hold(door):
    answer = await door.http.get(f"{LOOP}/events", params={"after": 7, "page_size": 3, "kind": "promoted"})

    assert heard(door) == loop_pb2.ListEventsRequest(model="tiny", after=7, page_size=3, kind="promoted")
    (event,) = answer.json()["events"]
    assert (event["number"], event["kind"], event["payload"]) == (8, "promoted", {"version": 3})


async def test_the_analysis_is_a_document_or_a_page(door):
    document = await door.http.get("/v1/models/tiny/analysis")
    page = await door.http.get("/v1/models/tiny/analysis", headers={"Accept": "text/html,*/*"})

    assert document.json() == {"accuracy": 1}
    assert page.text == "<p>fine</p>"
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "document", "request_", "member"),
    [
        (
            "trigger",
            {"reason": "now", "strategy": "refit", "request_id": "x"},
            loop_pb2.TriggerCycleRequest(model="tiny", reason="now", strategy="refit", request_id="x"),
            "cycle",
        ),
        ("trigger", None, loop_pb2.TriggerCycleRequest(model="tiny"), "cycle"),
        (
            "propose",
            {"version": 3, "goal": "not_worse", "request_id": "x"},
            loop_pb2.ProposeVersionRequest(model="tiny", version=3, goal=loop_pb2.Cycle.GOAL_NOT_WORSE, request_id="x"),
            "cycle",
        ),
        (
            "propose",
            {"version": 3, "request_id": "x"},
            loop_pb2.ProposeVersionRequest(model="tiny", version=3, goal=loop_pb2.Cycle.GOAL_BETTER, request_id="x"),
            "cycle",
        ),
        (
            "promote",
            {"version": 3, "request_id": "x"},
            loop_pb2.PromoteCandidateRequest(model="tiny", version=3, request_id="x"),
            "event",
        ),
        (
            "reject",
            {"version": 3, "reason": "no", "request_id": "x"},
            loop_pb2.RejectCandidateRequest(model="tiny", version=3, reason="no", request_id="x"),
            "event",
        ),
        (
            "reject",
            {"version": 0, "request_id": "x"},
            loop_pb2.RejectCandidateRequest(model="tiny", request_id="x"),
            "event",
        ),
        (
            "rollback",
            {"reason": "worse", "request_id": "x"},
            loop_pb2.RollBackRequest(model="tiny", reason="worse", request_id="x"),
            "stable_version",
        ),
    ],
)
async def test_a_hand_on_the_loop_reaches_the_trainer(door, path, document, request_, member):
    answer = (
        await door.http.post(f"{LOOP}/{path}", json=document) if document else await door.http.post(f"{LOOP}/{path}")
    )

    assert answer.status_code == 200
    assert member in answer.json()
    assert heard(door) == request_


@pytest.mark.parametrize(
    ("path", "document", "words"),
    [
        ("promote", {}, "'version' is missing; give an integer"),
        ("promote", {"version": 0}, "version is 0; give 1 to"),
        ("reject", {"version": -1}, "version is -1; give 0 to"),
        ("reject", {"version": "3"}, "'version' is \"3\"; give an integer"),
        ("propose", {"version": 0}, "version is 0; give 1 to"),
        ("propose", {"version": 3, "goal": "best"}, 'goal is "best"; give one of better, not_worse'),
        ("trigger", {"strategie": "refit"}, 'has the member "strategie", which is unknown; give reason, strategy'),
        ("rollback", {"version": 3}, 'has the member "version", which is unknown; give reason, request_id'),
        ("rollback", {"reason": 3}, "'reason' is 3; give a string"),
    ],
)
async def test_what_is_malformed_is_refused(door, path, document, words):
    answer = await door.http.post(f"{LOOP}/{path}", json=document)

    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert door.trainer.heard == []


async def test_a_prediction_is_followed_to_samples(door):
    answer = await door.http.get("/v1/predictions/abc/trace", params={"nearest_count": 3})

    assert heard(door) == loop_pb2.TracePredictionRequest(prediction_id="abc", nearest_count=3)
    (sample,) = answer.json()["samples"]
    assert (sample["sample_id"], sample["label"], sample["similarity"]) == (5, "red", 0.5)


@pytest.mark.parametrize(
    ("method", "path", "request_", "state"),
    [
        (
            "DELETE",
            "/v1/observations/4?request_id=x",
            loop_pb2.DeleteSampleRequest(observation_id=4, request_id="x"),
            "unspecified",
        ),
        (
            "DELETE",
            "/v1/contributors/anna@home.example?request_id=x",
            loop_pb2.DeleteContributorRequest(contributor="anna@home.example", request_id="x"),
            "unspecified",
        ),
        ("GET", "/v1/deletions/x", loop_pb2.GetDeletionRequest(id="x"), "completed"),
    ],
)
async def test_what_shall_be_forgotten_reaches_the_trainer(door, method, path, request_, state):
    answer = await door.http.request(method, path)

    assert heard(door) == request_
    assert (answer.json()["deletion"]["id"], answer.json()["deletion"]["state"]) == ("x", state)


@pytest.mark.parametrize("path", ["/v1/observations/4", "/v1/observations/0?request_id=x", "/v1/contributors/anna"])
async def test_a_deletion_without_what_it_needs_is_refused(door, path):
    answer = await door.http.delete(path)

    assert answer.status_code == 400
    assert door.trainer.heard == []
