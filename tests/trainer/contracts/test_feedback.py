"""The feedback contract over a real server: words, imports, exports, the queue, reviews."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from aimass.trainer.v1 import feedback_pb2 as pb
from aimass.trainer.v1.feedback_pb2_grpc import FeedbackServiceStub
from services.common.identity import LOCAL, Scope, caller_metadata
from services.trainer.contracts import feedback
from services.trainer.feedback.contributors import create_key, set_contributor
from services.trainer.feedback.policy import TrustPolicy
from tests.conftest import Serve
from tests.trainer.contracts.collecting import Component, called_by, delete_contributor, refused
from tests.trainer.feedback.conftest import Groups, captured, pictures, prediction_id

ANN, BEN = called_by("ann", Scope.FEEDBACK), called_by("ben", Scope.FEEDBACK)
REX = called_by("rex", Scope.FEEDBACK, trusted=True)
Parts = tuple[Component, FeedbackServiceStub]


@pytest.fixture
async def parts(serve: Serve, tmp_path: Path) -> Parts:
    """With three captured pictures."""
    made: list[Component] = []

    def make(stop: Any) -> Component:
        made.append(Component(tmp_path, stop))
        return made[0]

    served = await serve(make)
    made[0].intake.take([captured(number, image) for number, image in enumerate(pictures(3))])
    create_key(made[0].database, "rex", [Scope.FEEDBACK], trusted=True)
    return made[0], FeedbackServiceStub(served.channel)


def word(number: int, label: str = "dog", **more: Any) -> pb.SendFeedbackRequest:
    return pb.SendFeedbackRequest(prediction_id=prediction_id(number), label=label, **more)


def header(model: str = "pets") -> pb.ImportFeedbackRequest:
    return pb.ImportFeedbackRequest(header=pb.ImportFeedbackHeader(model=model))


def imported(request: pb.SendFeedbackRequest) -> pb.ImportFeedbackRequest:
    return pb.ImportFeedbackRequest(feedback=request)


async def listed(stub: FeedbackServiceStub, **fields: Any) -> pb.ListObservationsResponse:
    return await stub.ListObservations(pb.ListObservationsRequest(model="pets", **fields))


async def test_words_of_two_make_a_sample_and_wake_the_loop_once_each(parts: Parts) -> None:
    component, stub = parts
    first = await stub.SendFeedback(word(0), metadata=ANN)
    again = await stub.SendFeedback(word(0), metadata=ANN)
    second = await stub.SendFeedback(word(0), metadata=BEN)

    assert (first.state, first.state_reason, first.observation_id, first.created) == (
        pb.Observation.STATE_PENDING, "NEEDS_VOTES", 1, True,
    )  # fmt: skip
    assert (again.created, second.state) == (False, pb.Observation.STATE_ACCEPTED)
    assert component.woken == ["pets", "pets"]
    blind = (await listed(stub, states=[pb.Observation.STATE_ACCEPTED])).observations[0]
    assert (blind.blind, len(blind.votes), blind.label, blind.predicted_label, blind.drawn) == (True, 0, "", "", True)
    review = pb.ReviewObservationRequest(id=1, label="dog")
    shown = (await stub.ReviewObservation(review, metadata=REX)).observation
    assert (shown.blind, shown.label, shown.predicted_label, shown.version, shown.drawn) == (
        False, "dog", "cat", 1, True,
    )  # fmt: skip
    assert [(each.contributor, each.label, each.trusted) for each in shown.votes] == [
        ("ann", "dog", False), ("ben", "dog", False), ("rex", "dog", True),
    ]  # fmt: skip
    assert (shown.role, shown.sample_id > 0, shown.create_time.seconds > 0) == (pb.Observation.ROLE_TRAIN, True, True)
    assert shown.content_digest.startswith("sha256:")


async def test_correct_and_not_correct_are_told_apart(parts: Parts) -> None:
    _, stub = parts
    right = pb.SendFeedbackRequest(prediction_id=prediction_id(0), correct=True)
    wrong = pb.SendFeedbackRequest(prediction_id=prediction_id(1), correct=False)

    assert (await stub.SendFeedback(right, metadata=REX)).state == pb.Observation.STATE_ACCEPTED
    assert (await stub.SendFeedback(wrong, metadata=REX)).state_reason == "NEEDS_LABEL"
    elsewhere = pb.SendFeedbackRequest(correct=False, model="pets", image=pictures(1, 5)[0])
    code, sentence = await refused(stub.SendFeedback(elsewhere, metadata=REX))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "correct says nothing of a picture whose answer was not captured; send the label" in sentence


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.SendFeedbackRequest(prediction_id=prediction_id(0)), grpc.StatusCode.INVALID_ARGUMENT),
        (word(9), grpc.StatusCode.NOT_FOUND),
        (pb.SendFeedbackRequest(model="birds", label="owl", image=b"x"), grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_word_about_nothing_is_refused(
    parts: Parts, request_: pb.SendFeedbackRequest, code: grpc.StatusCode
) -> None:
    assert (await refused(parts[1].SendFeedback(request_, metadata=ANN)))[0] is code


async def test_who_says_too_much_learns_when_to_go_on(parts: Parts) -> None:
    component, stub = parts
    component.policy = Groups(trust=TrustPolicy(votes_per_minute=1))
    await stub.SendFeedback(word(0), metadata=ANN)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SendFeedback(word(1), metadata=ANN)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in rpc_status.from_call(caught.value).details)
    assert 0 < retry.retry_delay.ToSeconds() <= 60


async def test_an_import_takes_what_it_can(parts: Parts) -> None:
    _, stub = parts
    task = {
        "data": {"observation": 3},
        "annotations": [{"result": [{"type": "choices", "value": {"choices": ["cow"]}}]}],
    }
    far = task | {"data": {"observation": 2**63}}
    requests = [
        header(),
        imported(word(0)),
        imported(word(0)),
        imported(word(7)),
        pb.ImportFeedbackRequest(label_studio_json=json.dumps([far, 5, task, far]).encode()),
        pb.ImportFeedbackRequest(label_studio_json=json.dumps(task).encode()),
        pb.ImportFeedbackRequest(label_studio_json=b"\xff"),
        imported(word(1, model="birds")),
    ]

    done = await stub.ImportFeedback(iter(requests), metadata=REX)

    assert (done.accepted_count, done.duplicate_count, done.rejected_count) == (2, 2, 6)
    assert [(each.index, each.reason) for each in done.rejections] == [
        (2, "PREDICTION_NOT_FOUND"), (3, "MALFORMED"), (3, "MALFORMED"), (3, "MALFORMED"), (5, "MALFORMED"),
        (6, "OTHER_MODEL"),
    ]  # fmt: skip
    assert "observation of task 1 is 9223372036854775808; give 1 to" in done.rejections[1].message
    assert [each.label for each in (await listed(stub)).observations] == ["cow", "", "dog"]


async def test_an_import_says_nothing_more_once_its_contributor_is_deleted(parts: Parts) -> None:
    component, stub = parts

    async def requests() -> AsyncIterator[pb.ImportFeedbackRequest]:
        yield header()
        yield imported(word(0))
        while not component.woken:
            await listed(stub)  # until the first word is written
        delete_contributor(component.database, "rex")
        yield imported(word(1))

    done = await stub.ImportFeedback(requests(), metadata=REX)

    assert (done.accepted_count, [each.reason for each in done.rejections]) == (1, ["CONTRIBUTOR_DELETED"])
    assert [len(each.votes) for each in (await listed(stub)).observations] == [0, 0, 1]


@pytest.mark.parametrize(
    ("requests", "code", "words"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "the first message of an import must be its header; a message with not"),
        ([imported(word(0))], grpc.StatusCode.INVALID_ARGUMENT, "a message with feedback came: send the header first"),
        ([header("birds")], grpc.StatusCode.NOT_FOUND, "model 'birds' is unknown"),
    ],
)
async def test_an_import_out_of_order_is_refused(
    parts: Parts, requests: list[pb.ImportFeedbackRequest], code: grpc.StatusCode, words: str
) -> None:
    found = await refused(parts[1].ImportFeedback(iter(requests), metadata=REX))

    assert found[0] is code
    assert words in found[1]


async def test_an_export_comes_in_pieces_that_make_a_file(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "_CHUNK_BYTES", 100)
    _, stub = parts
    await stub.SendFeedback(word(0), metadata=ANN)
    await stub.SendFeedback(word(2), metadata=ANN)

    async def text(format_: int, **more: Any) -> str:
        call = stub.ExportFeedback(pb.ExportFeedbackRequest(model="pets", format=format_, **more))
        chunks = [response.chunk async for response in call]
        assert all(len(each) <= 100 for each in chunks)
        return b"".join(chunks).decode()

    lines = (await text(pb.ExportFeedbackRequest.FORMAT_JSON_LINES)).splitlines()
    tasks = json.loads(await text(pb.ExportFeedbackRequest.FORMAT_LABEL_STUDIO, with_images=True))
    later = await text(pb.ExportFeedbackRequest.FORMAT_JSON_LINES, after_observation_id=3)

    assert [json.loads(each)["observation"] for each in lines] == [1, 3]
    assert [each["data"]["observation"] for each in tasks] == [1, 3]
    assert tasks[0]["data"]["image"].startswith("data:image/png")
    assert later == ""


async def test_a_reviewer_goes_through_the_queue(parts: Parts) -> None:
    component, stub = parts
    order = pb.ListObservationsRequest.ORDER_DRAWN
    page = await listed(stub, order=order, page_size=1)
    rest = await listed(stub, order=order, page_size=5, page_token=page.next_page_token)
    image = await stub.GetObservationImage(pb.GetObservationImageRequest(id=1))
    done = await stub.ReviewObservation(pb.ReviewObservationRequest(id=1, label="cow"), metadata=REX)

    assert ([each.id for each in page.observations], page.waiting_count) == ([1], 3)
    assert ([each.id for each in rest.observations], rest.next_page_token) == ([2, 3], "")
    assert (image.format, image.orientation, image.image[:4]) == ("PNG", 1, b"\x89PNG")
    assert (done.observation.state, done.observation.label) == (pb.Observation.STATE_ACCEPTED, "cow")
    assert [each.id for each in (await listed(stub, order=order)).observations] == [2, 3]
    assert component.woken == ["pets"]
    undecidable = await stub.ReviewObservation(pb.ReviewObservationRequest(id=2, undecidable=True), metadata=REX)
    assert undecidable.observation.state_reason == "UNDECIDABLE"


@pytest.mark.parametrize(
    ("method", "request_", "code", "words"),
    [
        ("ReviewObservation", pb.ReviewObservationRequest(id=1), grpc.StatusCode.INVALID_ARGUMENT, "has no verdict"),
        (
            "ReviewObservation",
            pb.ReviewObservationRequest(id=1, reject=False),
            grpc.StatusCode.INVALID_ARGUMENT,
            "has reject",
        ),
        (
            "ReviewObservation",
            pb.ReviewObservationRequest(id=9, reject=True),
            grpc.StatusCode.NOT_FOUND,
            "picture 9 is",
        ),
        ("GetObservationImage", pb.GetObservationImageRequest(id=9), grpc.StatusCode.NOT_FOUND, "picture 9 is unknown"),
        ("ListObservations", pb.ListObservationsRequest(model="x"), grpc.StatusCode.NOT_FOUND, "model 'x' is unknown"),
        (
            "ListObservations",
            pb.ListObservationsRequest(model="pets", states=[0]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "state 0 is",
        ),
        (
            "ListObservations",
            pb.ListObservationsRequest(model="pets", role=9),
            grpc.StatusCode.INVALID_ARGUMENT,
            "role 9 is",
        ),
        (
            "ListObservations",
            pb.ListObservationsRequest(model="pets", order=9),
            grpc.StatusCode.INVALID_ARGUMENT,
            "order 9 is",
        ),
    ],
)
async def test_what_cannot_be_is_refused(
    parts: Parts, method: str, request_: object, code: grpc.StatusCode, words: str
) -> None:
    found = await refused(getattr(parts[1], method)(request_, metadata=REX))

    assert found[0] is code
    assert words in found[1]


async def test_each_method_asks_for_its_scope(parts: Parts) -> None:
    _, stub = parts
    stranger, user = called_by("", Scope.PREDICT), called_by("ann", Scope.PREDICT)
    review = pb.ReviewObservationRequest(id=1, label="cow")
    export = pb.ExportFeedbackRequest(model="pets", format=pb.ExportFeedbackRequest.FORMAT_JSON_LINES)

    codes = [
        (await refused(stub.SendFeedback(word(0), metadata=stranger)))[0],
        (await refused(stub.SendFeedback(word(0), metadata=user)))[0],
        (await refused(stub.ListObservations(pb.ListObservationsRequest(model="pets"), metadata=user)))[0],
        (await refused(stub.GetObservationImage(pb.GetObservationImageRequest(id=1), metadata=user)))[0],
        (await refused(stub.ImportFeedback(iter([header()]), metadata=user)))[0],
        (await refused(stub.ReviewObservation(review, metadata=ANN)))[0],
        (await refused(stub.ExportFeedback(export, metadata=REX).read()))[0],
    ]

    denied = grpc.StatusCode.PERMISSION_DENIED
    assert codes == [grpc.StatusCode.UNAUTHENTICATED, *[denied] * 6]


async def test_an_export_in_no_format_is_refused(parts: Parts) -> None:
    code, words = await refused(parts[1].ExportFeedback(pb.ExportFeedbackRequest(model="pets")).read())

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "format 0 is none that is written here; name JSON lines or Label Studio" in words


async def test_only_the_trusted_and_administrators_see_what_others_have_sent(parts: Parts) -> None:
    component, stub = parts
    create_key(component.database, "ada", [Scope.FEEDBACK, Scope.ADMIN], trusted=False)
    local = (caller_metadata(LOCAL),)
    beside_keys = called_by("anonymous", Scope.PREDICT, Scope.FEEDBACK)
    ada, strict = called_by("ada", Scope.FEEDBACK, Scope.ADMIN), called_by("zoe", Scope.FEEDBACK, trusted=True)
    create_key(component.database, "zoe", [Scope.FEEDBACK], trusted=True)
    set_contributor(component.database, "zoe", blocked=True)

    def calls(metadata: Any) -> list[Any]:
        listing = stub.ListObservations(pb.ListObservationsRequest(model="pets"), metadata=metadata)
        return [listing, stub.GetObservationImage(pb.GetObservationImageRequest(id=1), metadata=metadata)]

    for metadata in (ANN, beside_keys, strict):
        for call in calls(metadata):
            code, sentence = await refused(call)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "is not trusted to see the pictures of others; ask the owner for a key that is trusted" in sentence
    for metadata in (REX, ada, local, ()):
        for call in calls(metadata):
            await call
