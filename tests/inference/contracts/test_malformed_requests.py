"""Whatever a client sends, the answer has a status that tells it what to change, and the service goes on."""

from multiprocessing.shared_memory import SharedMemory

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimass.inference.v1 import inference_pb2
from aimass.inference.v1.inference_pb2_grpc import InferenceServiceStub
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub

ACCEPTABLE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}
TOO_LATE = {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
"""What a request with a `timeout` of its own may end in, too."""
SIDES = st.one_of(st.integers(-2, 5), st.sampled_from([-(2**63), 2**31, 2**62, 2**63 - 1]))
TEXTS = st.one_of(st.sampled_from(["", "x", "image", "probabilities", "y"]), st.text(max_size=3))
DATATYPES = st.one_of(st.sampled_from(["UINT8", "FP32", "BYTES", "INT64", "FP16", "BF16", ""]), st.text(max_size=3))
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
        st.builds(pb.InferParameter, string_param=st.just("region")),
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
    model_name=st.sampled_from(["tiny", "free", "text", "other", ""]),
    model_version=st.one_of(st.sampled_from(["", "1", "2", "v1", "-1", "0" * 50]), st.text(max_size=3)),
    id=st.text(max_size=3),
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


# One service answers all examples: what one of them breaks, the next ones find.
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests, top=st.integers(-(2**31), 2**31 - 1))
async def test_malformed_request_never_ends_in_an_internal_error(channel, images, infer_request, request, top):
    stub = GRPCInferenceServiceStub(channel)
    calls = [
        stub.ModelInfer(request),
        InferenceServiceStub(channel).Classify(inference_pb2.ClassifyRequest(request=request, top=top)),
    ]

    for call in calls:
        code = await call.code()
        assert code.name in ACCEPTABLE | TOO_LATE, f"{code}: {await call.details()}"
    stream = stub.ModelStreamInfer(iter([request, infer_request(images)]))
    first, second = [response async for response in stream]
    assert first.infer_response.id == request.id
    assert "internal error" not in first.error_message
    assert second.infer_response.model_name == "tiny"
    assert (await stub.ModelInfer(infer_request(images))).model_name == "tiny"


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


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", bytes(100)])
async def test_bytes_that_are_no_message_end_in_a_status(channel, images, infer_request, message):
    path = "/inference.GRPCInferenceService/ModelInfer"
    code = await channel.unary_unary(path)(message).code()

    assert code is not grpc.StatusCode.OK
    response = await GRPCInferenceServiceStub(channel).ModelInfer(infer_request(images))
    assert np.frombuffer(response.raw_output_contents[0], np.float32).size == 15


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
