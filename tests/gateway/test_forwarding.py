"""Services behind the public gRPC port, reached by stock clients."""

import asyncio
import queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from aimass.gateway.v1 import gateway_pb2
from aimass.inference.v1 import lifecycle_pb2
from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from aimass.starter import STARTER
from aimass.trainer.v1 import training_pb2
from aimass.trainer.v1.training_pb2_grpc import TrainingServiceStub
from gateway.forwarding import forwarded_service
from services.common.identity import OWNER, STRANGER, caller_metadata, caller_of
from services.common.manifest import DIGEST_PARAMETER
from services.common.server import Service
from tests.end_to_end.pictures import cifar, encode

OTHER_DIGEST = "sha256:" + 64 * "0"


@pytest.fixture
def channel(suite):
    with grpc.insecure_channel(suite.address) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return GRPCInferenceServiceStub(channel)


@pytest.fixture
def stock(suite):
    with triton.InferenceServerClient(suite.address) as client:
        yield client


def tensors(images):
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return [tensor]


def infer_request(images, **fields):
    fields = {"shape": images.shape, "datatype": "UINT8", "name": "image", "raw": images.tobytes()} | fields
    request = pb.ModelInferRequest(model_name=fields.get("model", "cifar10"), model_version=fields.get("version", ""))
    request.inputs.add(name=fields["name"], datatype=fields["datatype"], shape=fields["shape"])
    request.raw_input_contents.append(fields["raw"])
    return request


def probabilities_of(stub, image):
    """Return what `Predict` gives for the same pixels, by index."""
    request = gateway_pb2.PredictRequest(model="cifar10", images=[encode(image)], top=10)
    names = next(m for m in stub.ListModels(gateway_pb2.ListModelsRequest()).models if m.name == "cifar10").labels
    labels = stub.Predict(request).results[0].prediction.labels
    by_name = {each.label: each.probability for each in labels}
    return np.array([by_name[name] for name in names], np.float32)


def test_a_stock_client_finds_server_and_model_ready(stock):
    assert stock.is_server_live()
    assert stock.is_server_ready()
    assert stock.is_model_ready("cifar10")
    assert stock.is_model_ready("cifar10", "1")
    assert not stock.is_model_ready("nothing")


def test_a_stock_client_reads_metadata_and_configuration(stock):
    server, model = stock.get_server_metadata(), stock.get_model_metadata("cifar10")
    config = stock.get_model_config("cifar10").config

    assert server.name == "aimass"
    assert "statistics" in server.extensions
    assert model.versions == ["1"]
    assert [(each.name, each.datatype, list(each.shape)) for each in model.inputs] == [
        ("image", "UINT8", [-1, 32, 32, 3])
    ]
    assert config.max_batch_size == 32
    assert list(config.input[0].dims) == [32, 32, 3]


def test_a_stock_client_gets_the_probabilities_that_predict_gives(suite, stock):
    image = cifar()[0]
    output = stock.get_model_metadata("cifar10").outputs[0].name

    result = stock.infer("cifar10", tensors(image[None]), request_id="mine")

    with suite.stub() as stub:
        expected = probabilities_of(stub, image)
    assert result.get_response().id == "mine"
    assert result.as_numpy(output).tobytes() == expected.tobytes()


def test_a_stock_client_infers_asynchronously(stock):
    answers = queue.Queue()

    for number in range(4):
        stock.async_infer(
            "cifar10",
            tensors(cifar()[number : number + 1]),
            lambda result, error: answers.put((result, error)),
            request_id=str(number),
        )

    received = [answers.get(timeout=30) for _ in range(4)]
    assert [error for _, error in received] == [None] * 4
    assert {result.get_response().id for result, _ in received} == {"0", "1", "2", "3"}


async def test_a_stock_aio_client_reads_metadata_and_infers(suite):
    async with triton_aio.InferenceServerClient(suite.address) as client:
        metadata = await client.get_model_metadata("cifar10")
        result = await client.infer("cifar10", tensors(cifar()[:8]))

    scores = result.as_numpy(metadata.outputs[0].name)
    assert scores.shape == (8, 10)
    assert scores.sum(axis=1) == pytest.approx(np.ones(8), abs=1e-5)


def test_a_stock_client_asks_for_classes(stock):
    output = triton.InferRequestedOutput(stock.get_model_metadata("cifar10").outputs[0].name, class_count=2)

    result = stock.infer("cifar10", tensors(cifar()[:1]), outputs=[output])

    (classes,) = result.as_numpy(output.name())
    assert [len(each.split(b":")) for each in classes] == [3, 3]


def test_statistics_count_every_request(stock):
    def count():
        (statistics,) = stock.get_inference_statistics("sums").model_stats
        return statistics.inference_stats.success.count, statistics.inference_count

    values = np.ones((3, 4), np.float32)
    inputs = [triton.InferInput(name, [3, 4], "FP32") for name in ("a", "b")]
    for each in inputs:
        each.set_data_from_numpy(values)
    requests, samples = count()

    result = stock.infer("sums", inputs)

    assert (result.as_numpy("sum") == 2).all()
    assert count() == (requests + 1, samples + 3)


def test_a_tensor_of_another_spec_is_refused_and_both_digests_are_named(suite, stub):
    own = _digest_of_the_starter(suite)
    request = infer_request(cifar()[:1])
    request.parameters[DIGEST_PARAMETER].string_param = OTHER_DIGEST

    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert OTHER_DIGEST in caught.value.details()
    assert own in caught.value.details()


def test_a_tensor_of_the_same_spec_is_accepted(suite, stub):
    request = infer_request(cifar()[:1])
    request.parameters[DIGEST_PARAMETER].string_param = _digest_of_the_starter(suite)

    assert stub.ModelInfer(request).model_version == "1"


def _digest_of_the_starter(suite):
    from services.common.manifest import Manifest

    manifest = suite.folder / "models" / "cifar10" / "1" / "model.json"
    return Manifest.from_json(manifest.read_bytes(), manifest.name).preprocess.digest


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"shape": (1, 32, 32)}, "INVALID_ARGUMENT", "shape [1, 32, 32]"),
        ({"shape": (1, 31, 32, 3)}, "INVALID_ARGUMENT", "send [-1, 32, 32, 3]"),
        ({"shape": (-1, 32, 32, 3)}, "INVALID_ARGUMENT", "-1"),
        ({"datatype": "FP32"}, "INVALID_ARGUMENT", "'FP32'; send UINT8"),
        ({"datatype": "PIXELS"}, "INVALID_ARGUMENT", "'PIXELS'"),
        ({"raw": bytes(10)}, "INVALID_ARGUMENT", "holds 10 bytes"),
        ({"raw": b""}, "INVALID_ARGUMENT", "holds 0 bytes"),
        ({"name": "picture"}, "INVALID_ARGUMENT", "['picture']"),
        ({"version": "two"}, "INVALID_ARGUMENT", "'two'"),
        ({"version": "9"}, "NOT_FOUND", "no version 9"),
        ({"model": "nothing"}, "NOT_FOUND", "'nothing' is unknown"),
    ],
    ids=lambda value: str(value).replace(" ", "_"),
)
def test_a_wrong_tensor_is_refused_with_a_sentence_and_the_suite_goes_on(stub, fields, code, words):
    images = cifar()[:1]

    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(infer_request(images, **fields))

    assert caught.value.code().name == code
    assert words in caught.value.details()
    assert stub.ModelInfer(infer_request(images)).model_name == "cifar10"


def test_a_deadline_that_has_passed_ends_a_forwarded_call(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(infer_request(cifar()[:1]), timeout=0)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    "method",
    [
        "/aimass.gateway.v1.GatewayService/Predict",
        "/aimass.gateway.v1.GatewayService/PredictStream",
        "/inference.GRPCInferenceService/ModelInfer",
    ],
)
def test_a_request_that_is_no_message_is_an_invalid_argument(suite, channel, method):
    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(method)(iter([b"\xff\xff"]))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the request is not a message of the method's type; send one of that type"


def test_an_unknown_method_is_unimplemented(channel):
    call = channel.unary_unary("/inference.GRPCInferenceService/Guess")

    with pytest.raises(grpc.RpcError) as caught:
        call(b"")

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_what_is_not_served_is_unimplemented(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="region"))

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "this server takes no CUDA shared memory; use system shared memory"


def test_a_stock_client_pushes_lists_and_unloads_a_model(own_suite):
    graph = (STARTER / "cifar10" / "1" / "model.onnx").read_bytes()
    with own_suite.client() as http, triton.InferenceServerClient(own_suite.address) as stock:
        stock.load_model("pushed", config='{"max_batch_size": 8}', files={"file:4/model.onnx": graph})
        ready = stock.is_model_ready("pushed", "4")
        answer = stock.infer("pushed", tensors(cifar()[:8]))
        stock.unload_model("pushed")
        gone = not stock.is_model_ready("pushed")
        index = {(each.name, each.version): each for each in stock.get_model_repository_index().models}
        with pytest.raises(triton.InferenceServerException, match="failed to load 'nothing'"):
            stock.load_model("nothing")

        assert (ready, gone) == (True, True)
        assert answer.as_numpy("probabilities").shape == (8, 10)
        assert (index["cifar10", "1"].state, index["pushed", "4"].state) == ("READY", "UNAVAILABLE")
        assert "unloaded by request" in index["pushed", "4"].reason
        assert http.get("/v2/health/ready").status_code == 200  # what somebody unloaded on purpose is not missed
        assert stock.is_server_ready()


def test_reflection_lists_and_describes_what_the_public_port_offers(channel):
    database = ProtoReflectionDescriptorDatabase(channel)

    assert set(database.get_services()) == {
        "aimass.gateway.v1.GatewayService",
        "aimass.trainer.v1.AccessService",
        "aimass.trainer.v1.DataService",
        "aimass.trainer.v1.FeedbackService",
        "aimass.trainer.v1.LoopService",
        "aimass.trainer.v1.TrainingService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    assert file.name == "grpc_service.proto"


def test_the_trainers_recipes_and_runs_are_reached_through_the_gateway(channel):
    trainer = TrainingServiceStub(channel)

    recipes = trainer.ListRecipes(training_pb2.ListRecipesRequest()).recipes
    runs = trainer.ListRuns(training_pb2.ListRunsRequest()).runs

    assert {"quick", "fast"} <= {recipe.name for recipe in recipes}
    assert [(run.id, run.state) for run in runs] == [("starter", training_pb2.Run.STATE_SUCCEEDED)]


def test_an_unknown_run_is_not_found_through_the_gateway(channel):
    with pytest.raises(grpc.RpcError) as caught:
        TrainingServiceStub(channel).GetRun(training_pb2.GetRunRequest(id="nothing"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'nothing'" in caught.value.details()


class Offering:
    """A component that offers one service."""

    collectors = ()

    def __init__(self, service: Service) -> None:
        self.services = (service,)

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
async def serve_forwarded(serve):
    """A function that serves a method as bytes and a gateway before it: the latter's channel and StopSignal."""

    async def start(descriptor, method, handler):
        generic = grpc.method_handlers_generic_handler(descriptor.full_name, {method: handler})
        offered = Service(descriptor.full_name, lambda server: server.add_generic_rpc_handlers((generic,)))
        behind = await serve(lambda _stop: Offering(offered))
        front = await serve(lambda stop: Offering(forwarded_service(behind.channel, descriptor, stop)))
        return front.channel, front.stop

    return start


async def test_whoever_is_not_known_at_the_door_is_a_stranger_behind_it(serve_forwarded):
    heard = []

    async def hear(request, context):
        heard.append(caller_of(context))
        return b""

    descriptor = training_pb2.DESCRIPTOR.services_by_name["TrainingService"]
    channel, _ = await serve_forwarded(descriptor, "ListRuns", grpc.unary_unary_rpc_method_handler(hear))
    call = channel.unary_unary(f"/{descriptor.full_name}/ListRuns")
    await call(b"")
    await call(b"", metadata=[caller_metadata(OWNER)])

    assert heard == [STRANGER, STRANGER]


async def test_a_stream_is_ended_in_order_when_the_gateway_stops(serve_forwarded):
    ended = asyncio.Event()

    async def answers(requests, context):
        seen = [await anext(requests)]
        yield b"first"
        seen += [each async for each in requests]
        ended.set()
        for each in seen:
            yield each

    descriptor = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    handler = grpc.stream_stream_rpc_method_handler(answers)
    channel, stop = await serve_forwarded(descriptor, "ModelStreamInfer", handler)
    stream = channel.stream_stream(f"/{descriptor.full_name}/ModelStreamInfer")()
    await stream.write(b"request")
    assert await stream.read() == b"first"
    stop.set_drained()

    await ended.wait()
    assert await stream.read() == b"request"
    assert await stream.code() is grpc.StatusCode.UNAVAILABLE
    assert await stream.details() == "the server is stopping; send what was not answered again"


async def test_what_arrived_by_the_stop_does_not_pass_for_the_whole(serve_forwarded):
    arrived = asyncio.Event()

    async def collect(requests, context):
        async for _ in requests:
            arrived.set()
        return b"complete"

    descriptor = lifecycle_pb2.DESCRIPTOR.services_by_name["ModelLifecycleService"]
    handler = grpc.stream_unary_rpc_method_handler(collect)
    channel, stop = await serve_forwarded(descriptor, "PublishVersion", handler)
    call = channel.stream_unary(f"/{descriptor.full_name}/PublishVersion")()
    await call.write(b"part")
    await arrived.wait()
    stop.set_drained()

    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert await call.details() == "the server is stopping; send what was not answered again"
