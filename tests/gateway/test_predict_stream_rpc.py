"""`PredictStream` of running suites, in both modes."""

import grpc
import pytest

from aimass.gateway.v1 import gateway_pb2 as pb
from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from tests.end_to_end.pictures import cat, cifar, encode, large


@pytest.fixture
async def stub(suite):
    async with grpc.aio.insecure_channel(suite.address) as channel:
        yield GatewayServiceStub(channel)


def ask(identity, *images, model="cifar10", top=1):
    return pb.PredictStreamRequest(id=identity, request=pb.PredictRequest(model=model, images=images, top=top))


async def test_answers_come_in_the_order_of_the_requests(stub):
    requests = [ask(str(number), encode(image)) for number, image in enumerate(cifar()[:40])]
    requests.insert(0, ask("large", *[large()] * 4))  # takes longer than those behind it
    requests.insert(20, ask("also large", *[large()] * 4))

    answers = [answer async for answer in stub.PredictStream(iter(requests))]

    assert [answer.id for answer in answers] == [request.id for request in requests]
    assert {answer.WhichOneof("outcome") for answer in answers} == {"response"}


async def test_a_failing_request_is_answered_with_its_error_and_the_stream_goes_on(stub):
    requests = [
        ask("good", cat()),
        ask("unknown model", cat(), model="nothing"),
        ask("no image"),
        ask("tensors only", cat(), model="sums"),
        pb.PredictStreamRequest(id="empty"),
        ask("good again", cat()),
    ]

    answers = [answer async for answer in stub.PredictStream(iter(requests))]

    assert [answer.error.code for answer in answers] == [
        "",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "INVALID_ARGUMENT",
        "",
    ]
    assert answers[1].error.reason == "MODEL_NOT_FOUND"
    assert "nothing" in answers[1].error.message
    assert answers[-1].response.results[0].prediction.labels[0].label == "cat"


async def test_a_bad_image_is_an_error_of_its_result_only(stub):
    (answer,) = [each async for each in stub.PredictStream(iter([ask("mixed", cat(), b"text")]))]

    assert [each.WhichOneof("outcome") for each in answer.response.results] == ["prediction", "error"]


async def test_each_answer_comes_without_waiting_for_the_next_request(stub):
    call = stub.PredictStream()

    for identity in ("first", "second"):
        await call.write(ask(identity, cat()))
        assert (await call.read()).id == identity
    await call.done_writing()

    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_what_was_sent_before_the_half_close_is_answered(stub):
    call = stub.PredictStream()
    for number in range(30):
        await call.write(ask(str(number), cat()))
    await call.done_writing()

    answers = [answer.id async for answer in call]

    assert answers == [str(number) for number in range(30)]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_without_requests_ends_well(stub):
    assert [answer async for answer in stub.PredictStream(iter([]))] == []


async def test_a_stream_of_which_nothing_is_read_can_be_cancelled_at_any_time(stub):
    call = stub.PredictStream()
    for number in range(50):
        await call.write(ask(str(number), cat()))

    assert call.cancel()

    assert await call.code() is grpc.StatusCode.CANCELLED
    assert (await stub.ListModels(pb.ListModelsRequest())).models


async def test_a_stream_ends_when_its_deadline_passes(stub):
    call = stub.PredictStream(timeout=0.3)
    await call.write(ask("only", cat()))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
