"""`ModelStreamInfer`: order, errors in the stream, the last response of each request, and how a stream ends."""

import asyncio

import grpc
import numpy as np
import pytest

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.streaming import answer_in_order
from services.inference.contracts import open_inference


@pytest.fixture
def stub(inference):
    return GRPCInferenceServiceStub(inference.channel)


def scores(response: pb.ModelStreamInferResponse) -> np.ndarray:
    """Return the probabilities in a response, shape (batch, 3)."""
    assert response.error_message == ""
    return np.frombuffer(response.infer_response.raw_output_contents[0], np.float32).reshape(-1, 3)


async def test_stream_answers_each_request_in_order_with_its_id(stub, tiny_classifier, images, infer_request):
    sizes = [1, 5, 2, 4, 3] * 20
    requests = [infer_request(images[:size], id=str(number)) for number, size in enumerate(sizes)]
    responses = [response async for response in stub.ModelStreamInfer(iter(requests))]

    assert [response.infer_response.id for response in responses] == [request.id for request in requests]
    for size, response in zip(sizes, responses, strict=True):
        np.testing.assert_array_equal(scores(response), tiny_classifier.infer(images[:size]))


async def test_stream_works_on_several_requests_at_once(start_inference, add_model, one_node):
    """Each batch waits until it is full, which it can only become from requests that are in flight together."""
    patient = "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 10000000 }"
    add_model(one_node("Neg", ["n", 1]), "patient", config=patient)
    stub = GRPCInferenceServiceStub((await start_inference()).channel)
    request = pb.ModelInferRequest(model_name="patient", raw_input_contents=[bytes(4)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    async for response in stub.ModelStreamInfer(iter([request] * 16)):
        assert response.error_message == ""

    (found,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="patient"))).model_stats
    assert found.inference_count == 16
    assert found.execution_count < 16


async def test_error_is_a_message_with_the_id_and_the_stream_goes_on(stub, images, infer_request):
    requests = [infer_request(images, id="1"), infer_request(images, id="2", model_name="other"), infer_request(images)]
    call = stub.ModelStreamInfer(iter(requests))
    good, bad, last = [response async for response in call]

    assert len(scores(good)) == len(scores(last)) == len(images)
    assert bad.error_message == "model 'other' is unknown; name one that this suite has: tiny"
    assert bad.infer_response == pb.ModelInferResponse(id="2")
    assert await call.code() is grpc.StatusCode.OK


async def test_error_is_a_status_that_ends_the_stream_where_the_client_asked_for_it(stub, images, infer_request):
    requests = [infer_request(images), infer_request(images, model_name="other"), infer_request(images)]
    responses = aiter(stub.ModelStreamInfer(iter(requests), metadata=[("triton_grpc_error", "true")]))

    assert len(scores(await anext(responses))) == len(images)
    with pytest.raises(
        grpc.aio.AioRpcError, match="model 'other' is unknown; name one that this suite has: tiny"
    ) as caught:
        await anext(responses)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_error_stays_a_message_where_the_client_asked_for_no_status(stub, images, infer_request):
    request = infer_request(images, model_name="other")
    call = stub.ModelStreamInfer(iter([request]), metadata=[("triton_grpc_error", "false")])

    assert [response.error_message != "" async for response in call] == [True]


@pytest.mark.parametrize("asked", [True, False])
async def test_only_response_of_a_request_is_its_final_one(stub, images, infer_request, asked):
    request = infer_request(images)
    request.parameters["triton_enable_empty_final_response"].bool_param = asked
    (response,) = [response async for response in stub.ModelStreamInfer(iter([request]))]

    assert response.infer_response.parameters["triton_final_response"].bool_param
    assert "triton_final_response" not in (await stub.ModelInfer(request)).parameters


async def test_stream_tells_each_request_that_asks_where_its_time_went(stub, images, infer_request):
    timed = infer_request(images, parameters={"aimass_timings": {"bool_param": True}})
    with_timings, without = [
        each.infer_response async for each in stub.ModelStreamInfer(iter([timed, infer_request(images)]))
    ]

    assert with_timings.parameters["batch_size"].int64_param >= len(images)
    assert without.parameters.keys() == {"triton_final_response", "traffic_generation"}


async def test_stream_without_requests_ends_well(stub):
    call = stub.ModelStreamInfer(iter([]))

    assert [response async for response in call] == []
    assert await call.code() is grpc.StatusCode.OK


async def test_open_stream_ends_unavailable_when_the_server_stops_after_what_was_sent(inference, images, infer_request):
    call = GRPCInferenceServiceStub(inference.channel).ModelStreamInfer()
    await call.write(infer_request(images))
    inference.stop.set_drained()

    assert len(scores(await call.read())) == len(images)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert await call.details() == "the server is stopping; send what was not answered again"


async def test_half_closed_stream_ends_well_though_the_server_stops(inference, images, infer_request):
    call = GRPCInferenceServiceStub(inference.channel).ModelStreamInfer(iter([infer_request(images)] * 3))
    responses = aiter(call)
    await anext(responses)
    inference.stop.set_drained()

    assert len([response async for response in responses]) == 2
    assert await call.code() is grpc.StatusCode.OK


async def tasks_of(module_function: str) -> int:
    return sum(module_function in repr(task.get_coro()) for task in asyncio.all_tasks())


@pytest.mark.parametrize("read", [0, 1])
async def test_cancelled_stream_leaves_nothing_behind(stub, images, infer_request, read):
    call = stub.ModelStreamInfer()
    for _ in range(100):  # more than are worked on at once; nobody reads the answers
        await call.write(infer_request(images[:1]))
    for _ in range(read):
        await call.read()
    call.cancel()

    while await tasks_of("answer_in_order") or await tasks_of("ModelStreamInfer"):
        await asyncio.wait((asyncio.ensure_future(stub.ServerLive(pb.ServerLiveRequest())),))
    assert len((await stub.ModelInfer(infer_request(images))).raw_output_contents) == 1


async def test_thousand_open_streams_hold_no_unary_call_up(stub, images, infer_request):
    streams = [stub.ModelStreamInfer() for _ in range(1000)]
    await asyncio.gather(*(stream.write(infer_request(images[:1])) for stream in streams))
    for stream in streams:
        assert len(scores(await stream.read())) == 1

    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(stub.ModelInfer(infer_request(images)) for _ in range(50)))
    assert len(answers) == 50
    for stream in streams:
        stream.cancel()


async def test_window_bounds_what_is_worked_on(monkeypatch, stub, images, infer_request):
    monkeypatch.setattr(open_inference, "STREAM_WINDOW", 1)
    requests = [infer_request(images[:1])] * 20

    assert len([response async for response in stub.ModelStreamInfer(iter(requests))]) == 20
    (found,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny"))).model_stats
    assert found.execution_count == 20


async def numbers(count: int):
    for number in range(count):
        yield number


async def test_no_more_requests_are_taken_than_the_window_holds_while_nobody_reads():
    started: list[int] = []

    async def answer(number: int) -> int:
        started.append(number)
        return number

    answers = answer_in_order(numbers(100), answer, window=4)
    assert await anext(answers) == 0
    for _ in range(50):  # turns of the loop, in which more would be taken if they were
        await asyncio.sleep(0)

    assert started == [0, 1, 2, 3]
    assert [number async for number in answers] == list(range(1, 100))


async def test_answers_keep_the_order_whichever_is_ready_first():
    ready = [asyncio.Event() for _ in range(3)]

    async def answer(number: int) -> int:
        await ready[number].wait()
        if number:
            ready[number - 1].set()
        return number

    ready[2].set()
    assert [number async for number in answer_in_order(numbers(3), answer, window=3)] == [0, 1, 2]


async def test_what_fails_ends_the_answers_after_those_before_it():
    async def answer(number: int) -> int:
        if number == 2:
            raise ValueError(number)
        return number

    answers = answer_in_order(numbers(5), answer, window=5)
    assert [await anext(answers), await anext(answers)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        await anext(answers)
