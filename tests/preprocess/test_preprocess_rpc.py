"""`Preprocess` over a real server, fed with specs by a real inference service; and the bounds behind it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from onnx import TensorProto, helper
from PIL import Image

from aimass.inference.v1 import lifecycle_pb2
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from aimass.preprocess.v1 import preprocess_pb2 as pb
from aimass.preprocess.v1.preprocess_pb2_grpc import PreprocessServiceStub
from services.common.errors import InvalidInput, Overloaded
from services.common.manifest import DIGEST_PARAMETER, Manifest, PreprocessSpec
from services.common.pixels import transform
from services.preprocess.decoding import DecodeLimits
from services.preprocess.preparation import MemoryBudget, Preparer, join_tensors
from services.preprocess.service import PreprocessComponent
from services.preprocess.settings import PreprocessSettings

NOISE = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
FLOATS = PreprocessSpec(
    input="picture",
    width=6,
    height=5,
    mode="crop",
    filter="bicubic",
    color="BGR",
    layout="NCHW",
    datatype="FP32",
    scale=1 / 255,
    mean=(0.4, 0.45, 0.5),
    std=(0.2, 0.25, 0.3),
)


def encoded(pixels, format="PNG"):
    file = BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


NOISE_PNG, SMALL_PNG = encoded(NOISE), encoded(NOISE[:4, :4])
SMALL = PreprocessSpec(input="image", width=4, height=4)
LARGE_JPEG = encoded(np.zeros((3000, 3000, 3), np.uint8), "JPEG")
TOTAL = 10**9


@pytest.fixture
def model_repository(model_repository, save_graph):
    """Beside `tiny`: `floats`, which takes normalised NCHW, and `bare`, a graph of which nothing is known."""
    graph = save_graph(
        [helper.make_node("ReduceMean", ["picture", "sides"], ["means"], keepdims=0)],
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 3, 5, 6])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["batch", 3])],
        {"sides": np.array([2, 3])},
    )
    for model in ("floats", "bare"):
        folder = model_repository / model / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(graph.read_bytes())
    (model_repository / "floats" / "1" / "model.json").write_text(Manifest(preprocess=FLOATS).to_json())
    return model_repository


@pytest.fixture
def watch(inference):
    lifecycle = ModelLifecycleServiceStub(inference.channel)
    return lambda: lifecycle.WatchTraffic(lifecycle_pb2.WatchTrafficRequest())


@pytest.fixture
async def start(serve, watch):
    """A function that serves preprocess with the given settings and returns its stub."""

    async def start(**settings):
        settings = PreprocessSettings(**settings)
        served = await serve(lambda stop: PreprocessComponent(settings, watch))
        return PreprocessServiceStub(served.channel)

    return start


@pytest.fixture
async def stub(start):
    return await start(max_images=8, max_image_bytes=500_000, max_image_pixels=200_000)


def ask(*images, model="tiny", version=1):
    return pb.PreprocessRequest(model=model, version=version, images=images)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def tensor_of(response):
    (tensor,) = response.request.inputs
    (raw,) = response.request.raw_input_contents
    return np.frombuffer(raw, {"UINT8": np.uint8, "FP32": np.float32}[tensor.datatype]).reshape(tensor.shape)


async def test_preprocess_answers_with_a_request_that_is_ready_to_be_sent(stub, tiny_classifier):
    response = await stub.Preprocess(ask(NOISE_PNG))

    spec = tiny_classifier.manifest.preprocess
    (tensor,) = response.request.inputs
    assert (response.request.model_name, response.request.model_version) == ("tiny", "1")
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("image", "UINT8", [1, 4, 4, 3])
    assert response.request.parameters[DIGEST_PARAMETER].string_param == spec.digest
    assert (tensor_of(response)[0] == transform(Image.fromarray(NOISE), spec)).all()
    assert response.duration.ToNanoseconds() > 0


async def test_inference_takes_what_preprocess_answers(stub, inference, tiny_classifier):
    prepared = await stub.Preprocess(ask(NOISE_PNG, encoded(NOISE[::-1].copy())))

    answer = await GRPCInferenceServiceStub(inference.channel).ModelInfer(prepared.request)

    probabilities = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 3)
    assert probabilities.tobytes() == tiny_classifier.infer(tensor_of(prepared)).tobytes()


async def test_a_foreign_model_gets_normalised_floats_in_its_layout(stub):
    response = await stub.Preprocess(ask(NOISE_PNG, model="floats"))

    assert response.request.parameters[DIGEST_PARAMETER].string_param == FLOATS.digest
    assert (tensor_of(response)[0] == transform(Image.fromarray(NOISE), FLOATS)).all()
    assert tensor_of(response).shape == (1, 3, 5, 6)


async def test_bad_images_among_good_ones_have_errors_in_their_places(stub):
    images = [NOISE_PNG, b"", encoded(NOISE[:100]), b"a text", NOISE_PNG[:-500], encoded(NOISE[:200])]

    response = await stub.Preprocess(ask(*images))

    assert [each.WhichOneof("outcome") for each in response.results] == [
        "index",
        "error",
        "index",
        "error",
        "error",
        "index",
    ]
    assert [each.index for each in response.results if each.HasField("index")] == [0, 1, 2]
    assert [each.error.reason for each in response.results if each.HasField("error")] == [
        "EMPTY_IMAGE",
        "NOT_AN_IMAGE",
        "TRUNCATED_IMAGE",
    ]
    for position, pixels in enumerate((NOISE, NOISE[:100], NOISE[:200])):
        (alone,) = tensor_of(await stub.Preprocess(ask(encoded(pixels))))
        assert (tensor_of(response)[position] == alone).all()


async def test_bad_images_only_make_no_request(stub):
    response = await stub.Preprocess(ask(b"", b"a text"))

    assert not response.HasField("request")
    assert len(response.results) == 2


@pytest.mark.parametrize(
    ("image", "reason", "limit"),
    [
        (NOISE_PNG + bytes(500_000), "TOO_MANY_BYTES", "500,000"),
        (encoded(np.zeros((500, 401), np.uint8)), "TOO_MANY_PIXELS", "200,000"),
    ],
    ids=["bytes", "pixels"],
)
async def test_an_image_over_a_limit_is_refused_by_name_of_the_limit(stub, image, reason, limit):
    response = await stub.Preprocess(ask(image))

    assert response.results[0].error.reason == reason
    assert limit in response.results[0].error.message


@pytest.mark.parametrize(
    ("request_", "code", "reason", "words"),
    [
        (ask(), "INVALID_ARGUMENT", "INVALID_INPUT", "holds 0 images; send 1 to 8"),
        (ask(*[b""] * 9), "INVALID_ARGUMENT", "INVALID_INPUT", "holds 9 images; send 1 to 8"),
        (
            ask(b"", model="dogs"),
            "NOT_FOUND",
            "MODEL_NOT_FOUND",
            "'dogs' is unknown; name one that this suite has: bare, floats",
        ),
        (ask(b"", version=2), "NOT_FOUND", "VERSION_NOT_FOUND", "no version 2"),
        (ask(b"", version=0), "NOT_FOUND", "VERSION_NOT_FOUND", "no version 0"),
        (ask(b"", model="bare"), "FAILED_PRECONDITION", "NO_PREPROCESS_SPEC", "add preprocess to its model.json"),
    ],
    ids=["no images", "too many images", "unknown model", "unknown version", "no version", "no spec"],
)
async def test_a_wrong_request_is_refused_with_a_sentence(stub, request_, code, reason, words):
    error = await refusal(stub.Preprocess(request_))

    info = error_details_pb2.ErrorInfo()
    assert error.code().name == code
    assert words in error.details()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    assert info.reason == reason


async def test_a_version_that_is_published_later_is_waited_for(stub, inference, tiny_classifier):
    """The gateway may hear of a version a moment before preprocess does."""
    waiting = asyncio.ensure_future(stub.Preprocess(ask(NOISE_PNG, version=2), timeout=20))
    lifecycle = ModelLifecycleServiceStub(inference.channel)

    async def parts():
        manifest = tiny_classifier.manifest.to_json().encode()
        yield lifecycle_pb2.PublishVersionRequest(
            header=lifecycle_pb2.PublishVersionHeader(model="tiny", manifest=manifest)
        )
        yield lifecycle_pb2.PublishVersionRequest(chunk=tiny_classifier.path.read_bytes())

    await lifecycle.PublishVersion(parts())

    assert (await waiting).request.model_version == "2"


@pytest.mark.parametrize("setting", [{"max_waiting_images": 30}, {"max_waiting_bytes": 30 * len(LARGE_JPEG)}])
async def test_more_images_than_may_wait_are_refused_with_a_time_to_come_back(start, setting):
    stub = await start(threads=1, **setting)
    images = [LARGE_JPEG] * 20  # so that the first request is still at work when the second comes

    one, other = await asyncio.gather(
        stub.Preprocess(ask(*images)), stub.Preprocess(ask(*images)), return_exceptions=True
    )

    answer, error = (one, other) if isinstance(other, grpc.aio.AioRpcError) else (other, one)
    retry = error_details_pb2.RetryInfo()
    assert len(answer.results) == 20
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"the limit of {next(iter(setting.values())):,}; try again, or send fewer images" in error.details()
    assert any(detail.Unpack(retry) for detail in rpc_status.from_call(error).details)
    assert (await stub.Preprocess(ask(NOISE_PNG))).HasField("request")


async def test_a_request_larger_than_the_waiting_room_is_accepted_when_nobody_waits(start):
    stub = await start(max_waiting_images=2)

    response = await stub.Preprocess(ask(*[NOISE_PNG] * 4))

    assert len(response.results) == 4


async def test_a_tensor_that_no_message_would_carry_is_refused_before_anything_is_decoded(start):
    stub = await start(max_message_bytes=1024 * 1024 + 100)  # leaves 100 bytes for pixels, of which an image has 48

    assert len((await stub.Preprocess(ask(*[NOISE_PNG] * 2))).results) == 2
    error = await refusal(stub.Preprocess(ask(*[NOISE_PNG] * 3)))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "has 144 bytes; the limit is 100; send at most 2 images at once" in error.details()


async def test_an_image_that_wants_more_than_all_memory_is_decoded_alone(start):
    stub = await start(max_decode_bytes=1)

    response = await stub.Preprocess(ask(*[NOISE_PNG] * 4))

    assert [each.index for each in response.results] == [0, 1, 2, 3]


async def test_preprocess_is_unavailable_until_the_specs_have_arrived(serve):
    async def nothing():
        await asyncio.Event().wait()
        yield

    class Unconnected(PreprocessComponent):
        async def start(self):
            """Do not wait for specs, as a server that has only just begun to listen."""

    served = await serve(lambda stop: Unconnected(PreprocessSettings(), nothing))

    error = await refusal(PreprocessServiceStub(served.channel).Preprocess(ask(NOISE_PNG)))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "has not arrived from inference" in error.details()


class WatchedBudget(MemoryBudget):
    """A budget that tells who has come to take from it: every image does before it is decoded."""

    def __init__(self, total):
        super().__init__(total)
        self.takers, self.image_came = 0, threading.Event()

    def taking(self, wanted):
        self.takers += 1
        self.image_came.set()
        return super().taking(wanted)


@pytest.fixture
def one_thread():
    """A function that makes a preparer of one thread with the given budget and room for 100 images of 1 MB in all."""
    with ExitStack() as stack:

        def make(budget):
            limits = DecodeLimits(max_image_bytes=10**6, max_image_pixels=10**6)
            preparer = Preparer(limits, 1, budget, max_waiting_images=100, max_waiting_bytes=10**6)
            stack.callback(preparer.close)
            return preparer

        yield make


async def test_a_cancelled_call_leaves_the_images_that_have_not_begun(one_thread):
    budget = WatchedBudget(TOTAL)
    preparer = one_thread(budget)

    with MemoryBudget.taking(budget, TOTAL):  # so the first image begins and gets no further
        many = asyncio.create_task(preparer.prepare([SMALL_PNG] * 100, SMALL))
        assert await asyncio.to_thread(budget.image_came.wait, 30)
        many.cancel()
        await asyncio.wait([many])
    await preparer.prepare([SMALL_PNG], SMALL)  # the one thread takes it after whatever is left of the others

    assert many.cancelled()
    assert budget.takers == 2  # the first of the many, and the last image


@pytest.mark.parametrize(
    ("waiting", "more", "words"),
    [
        ([SMALL_PNG] * 60, [SMALL_PNG] * 41, "60 images wait to be decoded, and with the 41 of this request"),
        (
            [SMALL_PNG, bytes(600_000 - len(SMALL_PNG))],
            [bytes(400_001)],
            "600,000 bytes of images wait to be decoded, and with the 400,001 of",
        ),
    ],
    ids=["images", "bytes"],
)
async def test_what_does_not_fit_beside_what_waits_is_refused_until_there_is_room(one_thread, waiting, more, words):
    budget = WatchedBudget(TOTAL)
    preparer = one_thread(budget)

    with MemoryBudget.taking(budget, TOTAL):
        first = asyncio.create_task(preparer.prepare(waiting, SMALL))
        assert await asyncio.to_thread(budget.image_came.wait, 30)
        second = asyncio.create_task(preparer.prepare(more, SMALL))  # its turn comes before the first's end
    _, refused = await asyncio.gather(first, second, return_exceptions=True)

    assert isinstance(refused, Overloaded)
    assert words in refused.message
    assert refused.retry_after_seconds == 1
    assert len(await preparer.prepare(more, SMALL)) == len(more)


async def test_a_request_of_more_bytes_than_may_wait_is_accepted_when_nobody_waits(one_thread):
    preparer = one_thread(MemoryBudget(TOTAL))

    prepared = await preparer.prepare([SMALL_PNG, *[bytes(400_000)] * 3], SMALL)

    assert isinstance(prepared[0].outcome, np.ndarray)
    assert len(prepared) == 4


@pytest.mark.parametrize("side", [3, 700], ids=["at once", "in a thread"])
async def test_tensors_are_joined_in_their_order(side):
    tensors = np.random.default_rng(2).random((3, side, side, 1), np.float32)

    assert await join_tensors(list(tensors)) == tensors.tobytes()


def test_threads_never_hold_more_than_the_budget():
    budget, lock = MemoryBudget(100), threading.Lock()
    held, most = 0, 0

    def hold(wanted):
        nonlocal held, most
        with budget.taking(wanted):
            with lock:
                held += min(wanted, 100)
                most = max(most, held)
            for _ in range(200):  # give the others their chance
                pass
            with lock:
                held -= min(wanted, 100)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, [60, 70, 10, 100, 250, 30, 1, 99] * 50))

    assert held == 0
    assert 60 <= most <= 100


def test_a_second_big_image_waits_until_the_first_gives_its_memory_back():
    budget = MemoryBudget(100)
    first_has, let_go = threading.Event(), threading.Event()
    order = []

    def first():
        with budget.taking(80):
            first_has.set()
            assert let_go.wait(30)
            order.append("first done")

    def second():
        assert first_has.wait(30)
        let_go.set()
        with budget.taking(80):
            order.append("second has memory")

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(first), threads.submit(second)]:
            done.result()

    assert order == ["first done", "second has memory"]


def test_small_images_that_come_later_do_not_overtake_a_big_one():
    budget = MemoryBudget(100)
    order = []

    def take(name, wanted):
        with budget.taking(wanted):
            order.append(name)

    with ThreadPoolExecutor(2) as threads:
        with budget.taking(50):
            big = threads.submit(take, "big", 100)
            while not budget._turn.locked():  # until it waits
                pass
            small = threads.submit(take, "small", 10)
            assert not small.done()
        big.result()
        small.result()

    assert order == ["big", "small"]


def test_memory_comes_back_when_an_image_fails():
    budget = MemoryBudget(10)

    for _ in range(3):
        with pytest.raises(InvalidInput), budget.taking(10):
            raise InvalidInput("damaged")

    with budget.taking(10):
        pass
