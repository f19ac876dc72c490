"""Shared memory: which regions are taken, how tensors lie in them, and who may use them."""

import os
from multiprocessing.shared_memory import SharedMemory as Memory

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.direct import DirectContext
from services.common.errors import Conflict, InvalidInput, NotFound, Overloaded
from services.common.peers import FORWARDED_PEER_KEY, check_same_machine, is_local
from services.common.tensors import to_raw
from services.inference.contracts import shared_memory
from services.inference.contracts.shared_memory import SharedMemory

TENSOR_BYTES = 10_000


@pytest.fixture
def memory():
    """A client's shared memory of one page."""
    memory = Memory(create=True, size=4096)
    yield memory
    memory.close()
    memory.unlink()


@pytest.fixture
def shared():
    return SharedMemory(TENSOR_BYTES)


@pytest.fixture
def stub(inference):
    return GRPCInferenceServiceStub(inference.channel)


@pytest.fixture
def register(stub, memory):
    """A function that registers the client's memory with the service."""

    async def register(name: str = "region", offset: int = 0, byte_size: int = 4096) -> None:
        await stub.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(name=name, key=memory.name, offset=offset, byte_size=byte_size)
        )

    return register


def place(tensor, region: str = "region", byte_size: int | None = None, offset: int = 0) -> None:
    """Say on an input or a requested output that it lies in shared memory."""
    tensor.parameters["shared_memory_region"].string_param = region
    if byte_size is not None:
        tensor.parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


async def refusal(call) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


def test_region_is_read_and_written_where_it_lies(shared, memory):
    memory.buf[100:110] = b"0123456789"
    shared.register("a", f"/{memory.name}", 100, 10)
    part = shared.slice("a", 3, 4)

    assert part.read() == b"3456"
    part.write("y", b"ab")
    assert bytes(memory.buf[100:110]) == b"012ab56789"


def test_region_outlives_its_name_for_as_long_as_a_request_uses_it(shared, memory):
    descriptors = len(os.listdir("/proc/self/fd"))
    shared.register("a", memory.name, 0, 10)
    part = shared.slice("a", 0, 10)
    shared.unregister("a")

    assert part.read() == bytes(10)
    del part
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("key", ["", "/", "..", "/..", ".", "a/b", "/../etc/passwd", "//a", "a\0b", "a" * 256])
def test_key_that_is_no_name_of_shared_memory_is_refused(shared, key):
    with pytest.raises(InvalidInput, match="is no name of shared memory"):
        shared.register("a", key, 0, 1)


def test_shared_memory_that_is_not_there_is_not_found(shared):
    with pytest.raises(NotFound, match=r"'/nobody_made_it' cannot be opened \(No such file"):
        shared.register("a", "/nobody_made_it", 0, 1)


def test_link_in_the_place_of_shared_memory_is_not_followed(shared, tmp_path, memory):
    link = f"/dev/shm/{memory.name}_link"
    os.symlink(tmp_path, link)
    try:
        with pytest.raises(NotFound, match="cannot be opened"):
            shared.register("a", f"{memory.name}_link", 0, 1)
    finally:
        os.unlink(link)


@pytest.mark.parametrize(("offset", "byte_size"), [(0, 4097), (4096, 1), (2**61, 1), (1, 4096)])
def test_region_that_reaches_out_of_its_memory_is_refused(shared, memory, offset, byte_size):
    with pytest.raises(InvalidInput, match=f"ends at byte {offset + byte_size} .* which has 4096 bytes"):
        shared.register("a", memory.name, offset, byte_size)


@pytest.mark.parametrize(("name", "byte_size"), [("", 1), ("a", 0), ("a", 2**64 - 1)])
def test_region_without_a_name_or_of_no_size_is_refused(shared, memory, name, byte_size):
    with pytest.raises(InvalidInput, match="give it a name, 1 byte or more"):
        shared.register(name, memory.name, 0, byte_size)


def test_region_is_registered_once(shared, memory):
    shared.register("a", memory.name, 0, 1)

    with pytest.raises(Conflict, match="region 'a' is registered already; unregister it first"):
        shared.register("a", memory.name, 0, 2)
    shared.unregister("a")
    shared.register("a", memory.name, 0, 2)


def test_number_of_regions_is_bounded(shared, memory, monkeypatch):
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 2)
    shared.register("a", memory.name, 0, 1)
    shared.register("b", memory.name, 0, 1)

    with pytest.raises(Overloaded, match="2 regions are registered and more cannot be; unregister some"):
        shared.register("c", memory.name, 0, 1)


@pytest.mark.parametrize(("offset", "byte_size"), [(0, 11), (11, 0), (2**62, 2**62)])
def test_part_that_reaches_out_of_its_region_is_refused(shared, memory, offset, byte_size):
    shared.register("a", memory.name, 0, 10)

    with pytest.raises(InvalidInput, match="reach out of region 'a', which has 10 bytes"):
        shared.slice("a", offset, byte_size)


def test_memory_that_its_client_shrinks_ends_no_process(shared, memory):
    shared.register("a", memory.name, 0, 4096)
    part = shared.slice("a", 0, 4096)
    os.truncate(f"/dev/shm/{memory.name}", 100)

    with pytest.raises(InvalidInput, match="became smaller than its 4096 bytes; register it again"):
        part.read()
    with pytest.raises(InvalidInput, match="became smaller"):
        part.write("y", bytes(4096))
    os.truncate(f"/dev/shm/{memory.name}", 4096)


async def test_registered_regions_are_shown_and_forgotten(stub, register, memory):
    await register("a", offset=16, byte_size=8)
    await register("b")
    status = await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())
    (one,) = (await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name="a"))).regions.values()

    assert sorted(status.regions) == ["a", "b"]
    assert (one.name, one.key, one.offset, one.byte_size) == ("a", memory.name, 16, 8)
    await stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="a"))
    await stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="never was"))
    assert [*(await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())).regions] == ["b"]
    await stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
    assert not (await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())).regions
    code, words = await refusal(stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name="a")))
    assert (code, words) == ("NOT_FOUND", "region 'a' is not registered; register it first (registered are: none)")


async def test_input_is_read_from_and_output_written_to_shared_memory(
    stub, register, memory, tiny_classifier, images, infer_request
):
    await register(offset=64, byte_size=1000)
    request = infer_request(images, raw_input_contents=[])
    place(request.inputs[0], byte_size=images.nbytes, offset=8)
    place(request.outputs.add(name="probabilities"), byte_size=60, offset=400)
    memory.buf[72 : 72 + images.nbytes] = images.tobytes()
    response = await stub.ModelInfer(request)

    (output,) = response.outputs
    assert (output.datatype, [*output.shape]) == ("FP32", [5, 3])
    assert [*response.raw_output_contents] == [b""]  # a stock client indexes it for every output
    assert {name: str(value).strip() for name, value in output.parameters.items()} == {
        "shared_memory_region": 'string_param: "region"',
        "shared_memory_byte_size": "int64_param: 60",
        "shared_memory_offset": "int64_param: 400",
    }
    written = np.frombuffer(bytes(memory.buf[464:524]), np.float32).reshape(5, 3)
    np.testing.assert_array_equal(written, tiny_classifier.infer(images))


@pytest.mark.parametrize("typed", [True, False])
async def test_inputs_in_shared_memory_mix_with_others(start_inference, add_model, save_graph, memory, typed):
    pair = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("a", "b", "y")]
    add_model(save_graph([helper.make_node("Sub", ["a", "b"], ["y"])], pair[:2], pair[2:]), "pair")
    stub = GRPCInferenceServiceStub((await start_inference()).channel)
    registered = pb.SystemSharedMemoryRegisterRequest(name="region", key=memory.name, byte_size=8)
    await stub.SystemSharedMemoryRegister(registered)
    memory.buf[:8] = np.float32([10, 20]).tobytes()
    request = pb.ModelInferRequest(model_name="pair")
    place(request.inputs.add(name="a", datatype="FP32", shape=[2]), byte_size=8)
    other = request.inputs.add(name="b", datatype="FP32", shape=[2])
    if typed:
        other.contents.fp32_contents.extend([1, 2])
    else:
        request.raw_input_contents.append(np.float32([1, 2]).tobytes())

    (raw,) = (await stub.ModelInfer(request)).raw_output_contents
    assert np.frombuffer(raw, np.float32).tolist() == [9, 18]


async def test_text_and_classes_go_through_shared_memory(
    start_inference, add_model, one_node, memory, images, infer_request
):
    add_model(one_node("Identity", ["n", 1], datatype="STRING"), "text")
    stub = GRPCInferenceServiceStub((await start_inference()).channel)
    registered = pb.SystemSharedMemoryRegisterRequest(name="region", key=memory.name, byte_size=4096)
    await stub.SystemSharedMemoryRegister(registered)
    raw = to_raw(np.array([b"one", b"two"], np.object_))
    memory.buf[: len(raw)] = raw
    request = pb.ModelInferRequest(model_name="text")
    place(request.inputs.add(name="x", datatype="BYTES", shape=[2, 1]), byte_size=len(raw))
    place(request.outputs.add(name="y"), byte_size=1000, offset=1000)
    classify = infer_request(images[:1])
    place(classify.outputs.add(name="probabilities"), byte_size=1000, offset=2000)
    classify.outputs[0].parameters["classification"].int64_param = 1

    (text,) = (await stub.ModelInfer(request)).outputs
    assert text.parameters["shared_memory_byte_size"].int64_param == len(raw)
    assert bytes(memory.buf[1000 : 1000 + len(raw)]) == raw
    (classes,) = (await stub.ModelInfer(classify)).outputs
    end = 2000 + classes.parameters["shared_memory_byte_size"].int64_param
    assert bytes(memory.buf[2004:end]).endswith(b":0:red")


@pytest.mark.parametrize(
    ("input_place", "output_place", "code", "words"),
    [
        (
            {"region": "other", "byte_size": 240},
            None,
            "NOT_FOUND",
            "'other' is not registered; register it first (registered are: region)",
        ),
        ({"region": "", "byte_size": 240}, None, "INVALID_ARGUMENT", "give shared_memory_region a name"),
        ({"byte_size": None}, None, "INVALID_ARGUMENT", "-1 bytes from byte 0; give"),
        ({"byte_size": 240, "offset": -1}, None, "INVALID_ARGUMENT", "240 bytes from byte -1; give"),
        ({"byte_size": 239}, None, "INVALID_ARGUMENT", "holds 239 bytes; send 240 for shape [5, 4, 4, 3] of UINT8"),
        ({"byte_size": 4097}, None, "INVALID_ARGUMENT", "reach out of region 'region', which has 4096 bytes"),
        ({"byte_size": 240, "offset": 4000}, None, "INVALID_ARGUMENT", "240 bytes from byte 4000 reach out"),
        ({"byte_size": 240}, {"byte_size": 59}, "INVALID_ARGUMENT", "has 60 bytes, but its shared memory has 59"),
        ({"byte_size": 240}, {"byte_size": 60, "region": "x"}, "NOT_FOUND", "region 'x' is not registered"),
    ],
)
async def test_place_that_does_not_fit_its_tensor_is_refused(
    stub, register, images, infer_request, input_place, output_place, code, words
):
    await register()
    request = infer_request(images, raw_input_contents=[])
    place(request.inputs[0], **input_place)
    if output_place:
        place(request.outputs.add(name="probabilities"), **output_place)

    refused_code, refused_words = await refusal(stub.ModelInfer(request))
    assert refused_code == code
    assert words in refused_words


async def test_input_with_two_contents_is_refused(stub, register, images, infer_request):
    await register()
    raw, typed = infer_request(images), infer_request(images, raw_input_contents=[])
    for request in (raw, typed):
        place(request.inputs[0], byte_size=images.nbytes)
    typed.inputs[0].contents.uint_contents.append(1)

    assert "has 0 inputs outside of shared memory but 1 raw_input_contents" in (await refusal(stub.ModelInfer(raw)))[1]
    assert "and no other contents" in (await refusal(stub.ModelInfer(typed)))[1]


async def test_input_larger_than_a_message_may_be_is_refused(start_inference, memory, images, infer_request):
    stub = GRPCInferenceServiceStub((await start_inference(max_message_bytes=1000)).channel)
    registered = pb.SystemSharedMemoryRegisterRequest(name="region", key=memory.name, byte_size=4096)
    await stub.SystemSharedMemoryRegister(registered)
    request = infer_request(images, raw_input_contents=[])
    place(request.inputs[0], byte_size=1001)

    assert "give at most 1000 (INFERENCE_MAX_MESSAGE_BYTES)" in (await refusal(stub.ModelInfer(request)))[1]


REMOTE = [(FORWARDED_PEER_KEY, "ipv4:192.0.2.7:4000")]


@pytest.mark.parametrize("method", ["Status", "Register", "Unregister"])
async def test_client_of_another_machine_behind_a_proxy_gets_no_shared_memory(stub, method):
    request = getattr(pb, f"SystemSharedMemory{method}Request")()
    code, words = await refusal(getattr(stub, f"SystemSharedMemory{method}")(request, metadata=REMOTE))

    assert code == "FAILED_PRECONDITION"
    assert "ipv4:192.0.2.7:4000; connect to 127.0.0.1 on the server's machine, or send tensors" in words


async def test_client_of_another_machine_cannot_name_regions_of_this_one(stub, register, images, infer_request):
    await register()
    request = infer_request(images)
    place(request.outputs.add(name="probabilities"), byte_size=60)

    assert (await refusal(stub.ModelInfer(request, metadata=REMOTE)))[0] == "FAILED_PRECONDITION"
    assert (await stub.ModelInfer(request, metadata=[(FORWARDED_PEER_KEY, "unix:")])).model_name == "tiny"


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:1234", True),
        ("ipv4:127.8.0.1:1234", True),
        ("ipv6:[::1]:1234", True),
        ("ipv6:%5B::1%5D:1234", True),
        ("ipv6:[::ffff:127.0.0.1]:1234", True),
        ("unix:/run/aimass.sock", True),
        ("unix:", True),
        ("ipv4:10.0.0.1:1234", False),
        ("ipv6:[fe80::1%25eth0]:1234", False),
        ("ipv6:[::ffff:10.0.0.1]:1234", False),
        ("127.0.0.1", False),
        ("", False),
    ],
)
def test_peer_is_of_this_machine_by_its_address(peer, local):
    assert is_local(peer) is local


async def test_call_within_the_process_says_for_whom_it_is_made():
    check_same_machine(DirectContext(None, [(FORWARDED_PEER_KEY, "ipv4:127.0.0.1:5000")]))

    with pytest.raises(Conflict, match="came from nowhere"):
        check_same_machine(DirectContext(None, None))
