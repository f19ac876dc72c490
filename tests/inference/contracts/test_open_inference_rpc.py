"""The Open Inference Protocol over a real channel, with our own stub."""

import asyncio

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status
from onnx import TensorProto, helper

from aimass.open_inference import grpc_service_pb2 as pb
from aimass.open_inference import model_config_pb2
from aimass.open_inference.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from services.common.direct import direct_call
from services.common.errors import DeadlineExceeded
from services.common.tensors import to_array


@pytest.fixture
def stub(inference):
    return GRPCInferenceServiceStub(inference.channel)


def output(response: pb.ModelInferResponse, position: int = 0) -> np.ndarray:
    tensor = response.outputs[position]
    assert not tensor.HasField("contents")
    return to_array(tensor.name, tensor.datatype, tensor.shape, response.raw_output_contents[position])


async def refusal(call) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details()


async def test_server_and_model_are_ready(stub):
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready
    assert (await stub.ModelReady(pb.ModelReadyRequest(name="tiny", version="1"))).ready


async def test_server_with_a_model_that_cannot_serve_is_live_but_not_ready(start_inference, model_repository):
    (model_repository / "tiny" / "1" / "model.onnx").unlink()
    stub = GRPCInferenceServiceStub((await start_inference()).channel)

    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert not (await stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready
    assert await refusal(stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))) == (
        "UNAVAILABLE",
        "model 'tiny' has no version that is ready; version 1: 1/model.onnx is missing; put the graph there",
    )


async def test_server_whose_stable_version_cannot_serve_is_not_ready_though_another_could(
    start_inference, tiny_classifier, model_repository
):
    tiny_classifier.install(model_repository, "tiny", 2)
    (model_repository / "tiny" / "traffic.json").write_text('{"generation": 1, "stable_version": 1}')
    (model_repository / "tiny" / "1" / "model.onnx").unlink()
    stub = GRPCInferenceServiceStub((await start_inference()).channel)

    assert (await stub.ModelReady(pb.ModelReadyRequest(name="tiny", version="2"))).ready
    assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready


@pytest.mark.parametrize("request_fields", [{"name": "other"}, {"name": "tiny", "version": "2"}])
async def test_what_does_not_exist_is_not_ready(stub, request_fields):
    assert not (await stub.ModelReady(pb.ModelReadyRequest(**request_fields))).ready


async def test_server_metadata_lists_only_what_is_there(stub):
    metadata = await stub.ServerMetadata(pb.ServerMetadataRequest())

    assert metadata.name == "aimass"
    listed = {"classification", "statistics", "model_configuration", "system_shared_memory", "trace", "logging"}
    assert listed | {"model_repository", "model_repository(unload_dependents)"} <= set(metadata.extensions)
    assert not {"sequence", "cuda_shared_memory"} & set(metadata.extensions)


async def test_cuda_shared_memory_has_no_region_and_takes_none_but_can_be_unregistered(stub):
    assert not (await stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest())).regions
    await stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
    await stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(name="any"))

    code, words = await refusal(stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="any")))
    assert (code, words) == (
        "UNIMPLEMENTED",
        "this server takes no CUDA shared memory; use system shared memory",
    )
    code, _ = await refusal(stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name="any")))
    assert code == "NOT_FOUND"


async def test_metadata_has_the_batch_dimension_and_config_has_not(stub):
    metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
    config = (await stub.ModelConfig(pb.ModelConfigRequest(name="tiny"))).config

    assert (metadata.name, [*metadata.versions], metadata.platform) == ("tiny", ["1"], "onnxruntime_onnx")
    (image,), (scores,) = metadata.inputs, metadata.outputs
    assert (image.name, image.datatype, [*image.shape]) == ("image", "UINT8", [-1, 4, 4, 3])
    assert (scores.name, scores.datatype, [*scores.shape]) == ("probabilities", "FP32", [-1, 3])
    assert (config.name, config.max_batch_size, config.HasField("dynamic_batching")) == ("tiny", 32, True)
    assert (config.input[0].data_type, [*config.input[0].dims]) == (model_config_pb2.TYPE_UINT8, [4, 4, 3])
    assert [*config.output[0].dims] == [3]


@pytest.mark.parametrize("count", [1, 5])
async def test_infer_gives_what_the_graph_gives(stub, tiny_classifier, images, infer_request, count):
    response = await stub.ModelInfer(infer_request(images[:count], id="request 7"))

    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "request 7")
    assert [(tensor.name, tensor.datatype) for tensor in response.outputs] == [("probabilities", "FP32")]
    np.testing.assert_array_equal(output(response), tiny_classifier.infer(images[:count]))


async def test_typed_contents_are_answered_raw(stub, tiny_classifier, images):
    request = pb.ModelInferRequest(model_name="tiny")
    contents = pb.InferTensorContents(uint_contents=images[0].ravel().tolist())
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 4, 4, 3], contents=contents)

    np.testing.assert_array_equal(output(await stub.ModelInfer(request)), tiny_classifier.infer(images[:1]))


async def test_named_outputs_come_in_the_order_of_the_request(start_inference, add_model, save_graph):
    x, minus, plus = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in ("x", "-x", "+x"))
    nodes = [helper.make_node("Neg", ["x"], ["-x"]), helper.make_node("Abs", ["x"], ["+x"])]
    add_model(save_graph(nodes, [x], [minus, plus]), "pair")
    stub = GRPCInferenceServiceStub((await start_inference()).channel)
    request = pb.ModelInferRequest(model_name="pair", raw_input_contents=[np.float32([3]).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    both = await stub.ModelInfer(request)
    for name in ("+x", "-x"):
        request.outputs.add(name=name)
    named = await stub.ModelInfer(request)

    assert [(each.name, output(both, i).item()) for i, each in enumerate(both.outputs)] == [("-x", -3), ("+x", 3)]
    assert [(each.name, output(named, i).item()) for i, each in enumerate(named.outputs)] == [("+x", 3), ("-x", -3)]


async def test_text_goes_in_and_comes_out(start_inference, add_model, one_node):
    add_model(one_node("Identity", ["n", 2], datatype="STRING"), "text")
    stub = GRPCInferenceServiceStub((await start_inference()).channel)
    contents = pb.InferTensorContents(bytes_contents=["ä".encode(), b""])
    request = pb.ModelInferRequest(model_name="text")
    request.inputs.add(name="x", datatype="BYTES", shape=[1, 2], contents=contents)

    assert output(await stub.ModelInfer(request)).tolist() == [["ä".encode(), b""]]
    request.inputs[0].contents.bytes_contents[0] = b"\xff"
    assert await refusal(stub.ModelInfer(request)) == (
        "INVALID_ARGUMENT",
        "input 'x' holds text that is not UTF-8; send it as UTF-8",
    )


async def test_parameters_that_are_not_ours_are_ignored(stub, images, infer_request):
    request = infer_request(images)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters["binary_data_output"].bool_param = False
    request.parameters["sequence_id"].string_param = "a"
    request.parameters["sequence_start"].bool_param = True
    request.parameters["no_one_knows"].double_param = 1.5

    assert len(output(await stub.ModelInfer(request))) == len(images)


async def test_request_may_have_a_priority_and_time_enough(stub, images, infer_request):
    request = infer_request(images)
    request.parameters["priority"].uint64_param = 1
    request.parameters["timeout"].int64_param = 60_000_000

    assert len(output(await stub.ModelInfer(request))) == len(images)


@pytest.fixture
def start_waiting(start_inference, add_model, one_node):
    """A function that starts the model `waiting`, each batch of which waits for two samples, and returns its infer."""

    async def start(policy: str = ""):
        batching = f"max_queue_delay_microseconds: 600000000 {policy}"
        config = f"max_batch_size: 2 dynamic_batching {{ {batching} }}"
        add_model(one_node("Neg", ["n", 1]), "waiting", config=config)
        stub = GRPCInferenceServiceStub((await start_inference()).channel)

        def infer(name: str, **value):
            parameters = {name: pb.InferParameter(**value)}
            request = pb.ModelInferRequest(model_name="waiting", raw_input_contents=[bytes(4)], parameters=parameters)
            request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
            return stub.ModelInfer(request)

        return infer

    return start


@pytest.mark.parametrize("policy", ["", "default_queue_policy { allow_timeout_override: true }"])
async def test_request_may_shorten_its_wait_unless_the_queue_policy_forbids_it(start_waiting, policy):
    infer = await start_waiting(policy)

    code, words = await refusal(infer("timeout", int64_param=1000))
    assert code == "DEADLINE_EXCEEDED"
    assert "the request waited 0.001 s, which is the longest that it may" in words


async def test_queue_policy_that_allows_no_override_decides_alone_how_long_a_request_waits(start_waiting):
    infer = await start_waiting("default_queue_policy { allow_timeout_override: false }")
    hasty = infer("timeout", int64_param=1)
    answers = await asyncio.gather(hasty, infer("priority", int64_param=0))

    assert [each.model_name for each in answers] == ["waiting"] * 2


async def test_requests_that_share_a_batch_are_told_so_with_their_timings(start_waiting):
    infer = await start_waiting()
    answers = await asyncio.gather(infer("aimass_timings", bool_param=True), infer("aimass_timings", bool_param=True))

    for answer in answers:
        figures = {name: figure.int64_param for name, figure in answer.parameters.items()}
        del figures["traffic_generation"]
        assert (figures.pop("batch_size"), figures.pop("batch_requests")) == (2, 2)
        assert figures.keys() == {"queue_ns", "compute_input_ns", "compute_infer_ns", "compute_output_ns"}
        assert min(figures.values()) >= 0
        assert figures["compute_infer_ns"] > 0


@pytest.mark.parametrize("parameters", [{}, {"aimass_timings": pb.InferParameter(bool_param=False)}])
async def test_answer_tells_the_generation_of_the_traffic_and_no_timings_where_none_were_asked_for(
    stub, images, infer_request, parameters
):
    answer = await stub.ModelInfer(infer_request(images, parameters=parameters))

    assert {name: value.int64_param for name, value in answer.parameters.items()} == {"traffic_generation": 0}


async def test_parameters_of_the_suite_are_refused_with_values_of_another_kind(stub, images, infer_request):
    for name, wanted in (("aimass_timings", "true or false"), ("routing_key", "a string")):
        code, words = await refusal(stub.ModelInfer(infer_request(images, parameters={name: {"int64_param": 7}})))
        assert (code, words) == ("INVALID_ARGUMENT", f"parameter {name!r} is int64_param: 7; give {wanted}")


async def test_classification_of_an_output_uses_its_own_labels(start_inference, add_model, save_graph):
    x, minus, plus = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "-x", "+x"))
    nodes = [helper.make_node("Neg", ["x"], ["-x"]), helper.make_node("Abs", ["x"], ["+x"])]
    output_configs = " ".join(
        f'output {{ name: "{name}" data_type: TYPE_FP32 dims: 2 label_filename: "{file}" }}'
        for name, file in (("-x", "low.txt"), ("+x", "high.txt"))
    )
    folder = add_model(save_graph(nodes, [x], [minus, plus]), "pair", config=f"max_batch_size: 4 {output_configs}")
    (folder.parent / "low.txt").write_text("cold\ncool\n")
    (folder.parent / "high.txt").write_text("warm\nhot\n")
    stub = GRPCInferenceServiceStub((await start_inference()).channel)
    request = pb.ModelInferRequest(model_name="pair", raw_input_contents=[np.float32([1, 2]).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    for name in ("-x", "+x"):
        request.outputs.add(name=name).parameters["classification"].int64_param = 1
    response = await stub.ModelInfer(request)

    assert [output(response, position).item() for position in range(2)] == [b"-1.000000:0:cold", b"2.000000:1:hot"]


async def test_classification_gives_strings_with_labels(stub, tiny_classifier, images, infer_request):
    request = infer_request(images)
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
    response = await stub.ModelInfer(request)
    best = tiny_classifier.infer(images)[1].max()

    assert (response.outputs[0].datatype, [*response.outputs[0].shape]) == ("BYTES", [5, 2])
    assert output(response)[:3, 0].tolist() == [
        f"{best:f}:{i}:{name}".encode() for i, name in enumerate(["red", "green", "blue"])
    ]
    assert output(response)[3].tolist() == [b"0.333333:0:red", b"0.333333:1:green"]


@pytest.mark.parametrize("parameter", [{"int64_param": 0}, {"int64_param": -1}, {"string_param": "2"}])
async def test_classification_into_no_classes_is_refused(stub, images, infer_request, parameter):
    request = infer_request(images)
    request.outputs.add(name="probabilities").parameters["classification"].MergeFrom(pb.InferParameter(**parameter))

    code, words = await refusal(stub.ModelInfer(request))
    assert code == "INVALID_ARGUMENT"
    assert "ask for 1 or more of a numeric output" in words


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model_name": "other"}, "NOT_FOUND", "model 'other' is unknown; name one that this suite has: tiny"),
        ({"model_name": ""}, "NOT_FOUND", "model '' is unknown"),
        ({"model_version": "2"}, "NOT_FOUND", "model 'tiny' has no version 2; name one that it has: 1"),
        ({"model_version": "v1"}, "INVALID_ARGUMENT", "model_version 'v1' is not a version"),
        ({"outputs": [{"name": "scores"}]}, "INVALID_ARGUMENT", "wants outputs ['scores']"),
        ({"raw_input_contents": []}, "INVALID_ARGUMENT", "input 'image' holds 0 values"),
        (
            {"raw_input_contents": [b"short"]},
            "INVALID_ARGUMENT",
            "send 240 for shape [5, 4, 4, 3] of UINT8",
        ),
        ({"raw_input_contents": [b""] * 2}, "INVALID_ARGUMENT", "has 1 inputs but 2 raw_input_contents"),
        (
            {"parameters": {"preprocess_digest": {"string_param": "sha256:other"}}},
            "FAILED_PRECONDITION",
            "sha256:other",
        ),
    ],
)
async def test_request_that_cannot_be_answered_is_refused(stub, images, infer_request, change, code, words):
    refused_code, refused_words = await refusal(stub.ModelInfer(infer_request(images, **change)))

    assert refused_code == code
    assert words in refused_words


async def test_batch_over_the_limit_is_refused(stub, images, infer_request):
    code, words = await refusal(stub.ModelInfer(infer_request(np.concatenate([images] * 7))))

    assert (code, words) == (
        "INVALID_ARGUMENT",
        "the request holds 35 samples; this model takes 1 to 32 at once; send fewer",
    )


async def test_tensor_of_another_spec_is_refused_with_both_digests(stub, tiny_classifier, images, infer_request):
    own, other = tiny_classifier.manifest.preprocess.digest, "sha256:" + "0" * 64
    request = infer_request(images)
    request.parameters["preprocess_digest"].string_param = own
    assert len(output(await stub.ModelInfer(request))) == len(images)

    request.parameters["preprocess_digest"].string_param = other
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request)

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert own in caught.value.details()
    assert other in caught.value.details()
    assert b"PREPROCESS_MISMATCH" in rpc_status.from_call(caught.value).details[0].value


async def test_value_that_the_graph_refuses_spoils_no_other_request(start_inference, add_model, one_node):
    add_model(one_node("Gather", ["n"], datatype="INT64", before=np.arange(5)), "table")
    stub = GRPCInferenceServiceStub((await start_inference()).channel)

    def lookup(index: int):
        request = pb.ModelInferRequest(model_name="table", raw_input_contents=[np.int64([index]).tobytes()])
        request.inputs.add(name="x", datatype="INT64", shape=[1])
        return stub.ModelInfer(request)

    answers = await asyncio.gather(*(lookup(index) for index in [1, 2, 99, 3, 4] * 10), return_exceptions=True)

    assert [output(each).item() for each in answers if not isinstance(each, Exception)] == [1, 2, 3, 4] * 10
    refused = [each for each in answers if isinstance(each, Exception)]
    assert {each.code() for each in refused} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert len(refused) == 10


@pytest.mark.parametrize("name", ["", "tiny"])
async def test_statistics_count_every_request_once_and_alike(stub, images, infer_request, name):
    for count in (1, 5, 5):
        await stub.ModelInfer(infer_request(images[:count]))
    await refusal(stub.ModelInfer(infer_request(images, raw_input_contents=[b""])))
    (found,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name=name))).model_stats
    stats = found.inference_stats

    assert (found.name, found.version, found.inference_count, found.execution_count) == ("tiny", "1", 11, 3)
    counts = [getattr(stats, each) for each in ("success", "queue", "compute_input", "compute_infer", "compute_output")]
    assert [each.count for each in counts] == [3] * 5
    assert stats.fail.count == 1
    assert stats.success.ns > sum(each.ns for each in counts[1:])
    assert {each.batch_size: each.compute_infer.count for each in found.batch_stats} == {1: 1, 5: 2}
    assert found.last_inference > 1_500_000_000_000


async def test_statistics_of_what_does_not_exist_are_not_found(stub):
    for fields in ({"name": "other"}, {"name": "tiny", "version": "9"}):
        assert (await refusal(stub.ModelStatistics(pb.ModelStatisticsRequest(**fields))))[0] == "NOT_FOUND"


async def test_request_whose_deadline_is_past_is_not_run(inference, stub, images, infer_request):
    infer = direct_call(inference.component.open_inference.ModelInfer)
    with pytest.raises((TimeoutError, DeadlineExceeded)):
        await infer(infer_request(images), timeout=0)

    (found,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny"))).model_stats
    assert (found.execution_count, found.inference_stats.fail.count) == (0, 1)
    assert len(output(await infer(infer_request(images), timeout=60))) == len(images)
