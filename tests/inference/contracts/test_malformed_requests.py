"""Whatever a client sends, the answer has a status that tells it what to change, and others get their own answers."""

import asyncio
import json
from multiprocessing.shared_memory import SharedMemory

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimass.inference.v1 import inference_pb2, lifecycle_pb2
from aimass.inference.v1.inference_pb2_grpc import InferenceServiceStub
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub

ACCEPTABLE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}
TOO_LATE = {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
"""What a request with a `timeout` of its own may end in, too."""
LONG, HUGE = "long " * 100, "huge " * 200_000
SIDES = st.one_of(st.integers(-2, 5), st.sampled_from([-(2**63), 2**31, 2**62, 2**63 - 1]))
TEXTS = st.one_of(st.sampled_from(["", "x", "image", "probabilities", "y", LONG]), st.text(max_size=3))
DATATYPES = st.one_of(
    st.sampled_from(["UINT8", "FP32", "BYTES", "INT64", "FP16", "BF16", "", LONG]), st.text(max_size=3)
)
RAW = st.one_of(st.binary(max_size=16), st.integers(0, 5).map(lambda samples: bytes(48 * samples)))

contents = st.builds(
    pb.InferTensorContents,
    uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=4),
    fp32_contents=st.lists(st.floats(width=32), max_size=4),
    bytes_contents=st.lists(st.binary(max_size=4), max_size=4),
)
parameters = st.dictionaries(
    st.sampled_from(
        [
            "preprocess_digest",
            "classification",
            "shared_memory_region",
            "shared_memory_byte_size",
            "shared_memory_offset",
            "sequence_id",
            "timeout",
            "priority",
            "x",
        ]
    ),
    st.one_of(
        st.builds(pb.InferParameter, string_param=st.sampled_from(["region", LONG])),
        st.builds(pb.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
        st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(pb.InferParameter, string_param=st.text(max_size=3)),
        st.builds(pb.InferParameter, bool_param=st.booleans()),
    ),
    max_size=3,
)
inputs = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=TEXTS,
    datatype=DATATYPES,
    shape=st.one_of(st.lists(SIDES, max_size=5), st.integers(0, 5).map(lambda samples: [samples, 4, 4, 3])),
    contents=st.one_of(st.none(), contents),
    parameters=parameters,
)
outputs = st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=TEXTS, parameters=parameters)
requests = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from(["tiny", "free", "text", "other", "", LONG]),
    model_version=st.one_of(st.sampled_from(["", "1", "2", "v1", "-1", "0" * 50, LONG]), st.text(max_size=3)),
    id=st.one_of(st.just(LONG), st.text(max_size=3)),
    inputs=st.lists(inputs, max_size=2),
    outputs=st.lists(outputs, max_size=2),
    parameters=parameters,
    raw_input_contents=st.lists(RAW, max_size=2),
)


@pytest.fixture
async def channel(start_inference, add_model, one_node):
    """A service with the tiny classifier, a graph with three free dimensions, one of text and 100 shared bytes."""
    add_model(one_node("Neg", ["n", "h", "w"]), "free")
    add_model(one_node("Identity", ["n", "k"], datatype="STRING"), "text")
    channel = (await start_inference()).channel
    region = SharedMemory(create=True, size=100)
    registered = pb.SystemSharedMemoryRegisterRequest(name="region", key=region.name, byte_size=100)
    await GRPCInferenceServiceStub(channel).SystemSharedMemoryRegister(registered)
    yield channel
    region.close()
    region.unlink()


@pytest.fixture
def good(channel, images, infer_request, tiny_classifier):
    """A function that sends a good request for each picture, to be awaited; each must get its own answer."""
    expected = tiny_classifier.infer(images)

    async def send() -> None:
        stub = GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer(infer_request(image[np.newaxis], id=f"{at}")) for at, image in enumerate(images)]
        for at, answer in enumerate(await asyncio.gather(*calls)):
            assert answer.id == f"{at}"
            scores = np.frombuffer(answer.raw_output_contents[0], np.float32)
            np.testing.assert_allclose(scores, expected[at], atol=1e-6)

    return send


# One service answers all examples: what one of them breaks, the next ones find.
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests, top=st.integers(-(2**31), 2**31 - 1))
async def test_malformed_request_ends_in_a_status_and_spoils_no_others_answer(
    channel, good, images, infer_request, request, top
):
    stub = GRPCInferenceServiceStub(channel)
    calls = [
        stub.ModelInfer(request),
        InferenceServiceStub(channel).Classify(inference_pb2.ClassifyRequest(request=request, top=top)),
    ]
    others = asyncio.create_task(good())

    for call in calls:
        code = await call.code()
        assert code.name in ACCEPTABLE | TOO_LATE, f"{code}: {await call.details()}"
    stream = stub.ModelStreamInfer(iter([request, infer_request(images)]))
    first, second = [response async for response in stream]
    assert first.infer_response.id == request.id
    assert "internal error" not in first.error_message
    assert second.infer_response.model_name == "tiny"
    await others


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.sampled_from(["free", "text"]),
    shape=st.lists(SIDES, min_size=2, max_size=3),
    raw=RAW,
    top=st.integers(0, 3),
)
async def test_any_shape_of_a_graph_that_takes_any_ends_with_an_answer_or_a_reason(channel, model, shape, raw, top):
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    request.inputs.add(name="x", datatype="FP32" if model == "free" else "BYTES", shape=shape)
    if top:
        request.outputs.add(name="y").parameters["classification"].int64_param = top
    call = GRPCInferenceServiceStub(channel).ModelInfer(request)

    assert (await call.code()).name in ACCEPTABLE, await call.details()


SERVICES = [
    pb.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    lifecycle_pb2.DESCRIPTOR.services_by_name["ModelLifecycleService"],
]
METHODS = [method for service in SERVICES for method in service.methods]


async def code_of(channel, method, message: bytes) -> str:
    """Send *message* as it is, and return the status; OK where an answer came."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    call = kinds[method.client_streaming, method.server_streaming](path)
    running = call(iter([message]) if method.client_streaming else message, timeout=10)
    try:
        await (running.read() if method.server_streaming else running)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    finally:
        running.cancel()  # a stream that follows something has no end
    return "OK"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.one_of(st.sampled_from([b"\xff", b"\x0a\xff\xff\xff\xff\x0f", bytes(100)]), st.binary(max_size=100)))
async def test_bytes_that_are_no_message_end_in_a_status_whatever_the_method(channel, good, message):
    codes = await asyncio.gather(good(), *(code_of(channel, method, message) for method in METHODS))

    assert set(codes[1:]) <= ACCEPTABLE | {"UNIMPLEMENTED"}, dict(
        zip([each.name for each in METHODS], codes[1:], strict=True)
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), change=st.one_of(st.none(), st.binary(min_size=1, max_size=4)))
async def test_good_message_that_was_damaged_ends_in_a_status(channel, good, images, infer_request, place, change):
    message = infer_request(images, id="damaged").SerializeToString()
    place %= len(message)
    damaged = message[:place] + (b"" if change is None else change + message[place + len(change) :])
    methods = [method for method in METHODS if method.name in ("ModelInfer", "ModelStreamInfer")]

    codes = await asyncio.gather(good(), *(code_of(channel, method, damaged) for method in methods))

    assert set(codes[1:]) <= ACCEPTABLE


enum_values = st.sampled_from(["TYPE_FP32", "TYPE_NONE", "KIND_CPU", "KIND_GPU", "DELAY", "", 0, 1, 2, 99, -1, 2**31])
numbers = st.sampled_from([-1, 0, 1, 2, 8, 2**31 - 1, 2**31, "8", "x", None, 1.5, [], {}])
documents = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["free", "tiny", "", LONG, 5]),
        "platform": st.sampled_from(["onnxruntime_onnx", "", LONG]),
        "max_batch_size": numbers,
        "input": st.lists(
            st.fixed_dictionaries(
                {}, optional={"name": TEXTS, "data_type": enum_values, "dims": st.lists(SIDES, max_size=3)}
            ),
            max_size=2,
        ),
        "instance_group": st.lists(
            st.fixed_dictionaries({}, optional={"kind": enum_values, "count": numbers}), max_size=2
        ),
        "dynamic_batching": st.fixed_dictionaries(
            {},
            optional={
                "preferred_batch_size": st.lists(numbers, max_size=2),
                "max_queue_delay_microseconds": numbers,
                "priority_levels": numbers,
                "default_priority_level": numbers,
                "default_queue_policy": st.fixed_dictionaries({}, optional={"timeout_action": enum_values}),
            },
        ),
        "parameters": st.dictionaries(TEXTS, st.fixed_dictionaries({}, optional={"string_value": TEXTS}), max_size=2),
        "optimization": st.fixed_dictionaries({}, optional={"graph": st.fixed_dictionaries({"level": numbers})}),
        "unheard_of": numbers,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=documents)
async def test_any_config_that_a_load_brings_along_is_honoured_or_refused(channel, good, document):
    request = pb.RepositoryModelLoadRequest(model_name="free")
    request.parameters["config"].string_param = json.dumps(document)
    call = GRPCInferenceServiceStub(channel).RepositoryModelLoad(request, timeout=20)

    code, _ = await asyncio.gather(call.code(), good())

    assert code.name in ACCEPTABLE | {"UNIMPLEMENTED"}, await call.details()


HUGE_STRINGS = {
    "model": lambda request: setattr(request, "model_name", HUGE),
    "version": lambda request: setattr(request, "model_version", HUGE),
    "input": lambda request: setattr(request.inputs[0], "name", HUGE),
    "datatype": lambda request: setattr(request.inputs[0], "datatype", HUGE),
    "output": lambda request: request.outputs.add(name=HUGE),
    "digest": lambda request: setattr(request.parameters["preprocess_digest"], "string_param", HUGE),
    "timeout": lambda request: setattr(request.parameters["timeout"], "string_param", HUGE),
    "region": lambda request: setattr(request.inputs[0].parameters["shared_memory_region"], "string_param", HUGE),
}


@pytest.mark.parametrize("where", HUGE_STRINGS)
async def test_huge_string_ends_in_a_short_error(channel, good, images, infer_request, where):
    request = infer_request(images)
    HUGE_STRINGS[where](request)
    call = GRPCInferenceServiceStub(channel).ModelInfer(request)

    code, _ = await asyncio.gather(call.code(), good())

    assert code.name in ACCEPTABLE - {"OK"}
    assert len(await call.details()) <= 1024


async def test_error_about_many_long_names_still_reaches_the_client(channel):
    request = pb.ModelInferRequest(model_name="tiny")
    for number in range(10_000):
        request.inputs.add(name=f"input {number}")

    call = GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await call.details()).startswith("the request has inputs ['input 0', 'input 1'")


names = st.one_of(st.sampled_from(["", "region", "/", "..", "a/b", "../../etc/passwd"]), st.text(max_size=5))
sizes = st.one_of(st.integers(0, 200), st.sampled_from([2**62, 2**63, 2**64 - 1]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names, key=names, offset=sizes, byte_size=sizes)
async def test_any_registration_of_shared_memory_ends_with_an_answer_or_a_reason(channel, name, key, offset, byte_size):
    stub = GRPCInferenceServiceStub(channel)
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size)
    call = stub.SystemSharedMemoryRegister(request)

    assert (await call.code()).name in ACCEPTABLE, await call.details()
    assert "region" in (await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())).regions
