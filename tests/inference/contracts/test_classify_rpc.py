"""Typed classification over a real channel."""

import grpc
import numpy as np
import pytest
from onnx import TensorProto

from aimass.inference.v1 import inference_pb2 as pb
from aimass.inference.v1.inference_pb2_grpc import InferenceServiceStub
from aimass.inference.v1.lifecycle_pb2 import SetTrafficRequest
from aimass.inference.v1.lifecycle_pb2_grpc import ModelLifecycleServiceStub
from aimass.open_inference import grpc_service_pb2


@pytest.fixture
def classify(inference, infer_request):
    """A function that classifies pictures with the tiny classifier."""
    stub = InferenceServiceStub(inference.channel)

    def classify(images: np.ndarray, top: int = 0, **fields):
        return stub.Classify(pb.ClassifyRequest(request=infer_request(images, **fields), top=top))

    return classify


@pytest.mark.parametrize(("top", "classes"), [(0, 3), (1, 1), (2, 2), (3, 3), (1000, 3)])
async def test_top_classes_come_best_first_with_their_labels(classify, tiny_classifier, images, top, classes):
    response = await classify(images, top)
    probabilities = tiny_classifier.infer(images)

    assert (response.model, response.version, response.traffic_generation) == ("tiny", 1, 0)
    assert [each.classes[0].label for each in response.classifications[:3]] == ["red", "green", "blue"]
    for found, row in zip(response.classifications, probabilities, strict=True):
        assert [each.index for each in found.classes] == np.argsort(-row, kind="stable").tolist()[:classes]
        assert [each.probability for each in found.classes] == [row[each.index] for each in found.classes]


async def test_equal_classes_are_ordered_by_index(classify, images):
    (black,) = (await classify(images[3:4])).classifications

    assert [each.label for each in black.classes] == ["red", "green", "blue"]
    assert len({each.probability for each in black.classes}) == 1


async def test_timings_say_where_the_time_went(classify, images):
    timings = (await classify(images)).timings

    assert (timings.batch_size, timings.batch_requests) == (5, 1)
    assert timings.compute_infer.ToNanoseconds() > 0
    assert all(timings.HasField(stage) for stage in ("queue", "compute_input", "compute_infer", "compute_output"))


async def test_more_images_than_a_batch_takes_are_answered_in_order(classify, images):
    many = np.concatenate([images] * 20)
    response = await classify(many, top=1)
    once = await classify(images, top=1)

    assert [each.classes[0].label for each in response.classifications] == [
        each.classes[0].label for each in once.classifications
    ] * 20
    assert response.timings.batch_size <= 32


@pytest.mark.parametrize("shape", [[1, 3], ["n", 3]], ids=["takes one", "mixes its batch"])
async def test_graph_that_cannot_batch_classifies_many_images_one_by_one(start_inference, add_model, one_node, shape):
    add_model(one_node("Softmax", shape, axis=1 if shape[0] == 1 else 0), "single")
    scores = np.random.default_rng(0).random((7, 3), np.float32)
    request = grpc_service_pb2.ModelInferRequest(model_name="single", raw_input_contents=[scores.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=scores.shape)
    stub = InferenceServiceStub((await start_inference()).channel)
    response = await stub.Classify(pb.ClassifyRequest(request=request, top=1))

    best = scores.argmax(1) if shape[0] == 1 else [0] * 7  # alone in its batch, each score is 1
    assert [each.classes[0].index for each in response.classifications] == list(best)
    assert response.timings.batch_size == 1


async def test_request_larger_than_the_queue_does_not_stand_in_its_own_way(start_inference, images, infer_request):
    stub = InferenceServiceStub((await start_inference(max_queue_samples=8, max_batch_size=4)).channel)
    response = await stub.Classify(pb.ClassifyRequest(request=infer_request(np.concatenate([images] * 20)), top=1))

    assert len(response.classifications) == 100


async def test_scores_of_bfloat16_are_classified_with_the_labels_of_their_output(start_inference, add_model, one_node):
    cast = one_node("Cast", ["n", 3], out_datatype="BFLOAT16", to=TensorProto.BFLOAT16)
    labelled = 'output { name: "y" data_type: TYPE_BF16 dims: 3 label_filename: "labels.txt" }'
    folder = add_model(cast, "brain", config=f"max_batch_size: 4 {labelled}")
    (folder.parent / "labels.txt").write_text("cat\ndog\nowl\n")
    scores = np.float32([[0.25, 0.5, -1], [3, 1, 2]])
    request = grpc_service_pb2.ModelInferRequest(model_name="brain", raw_input_contents=[scores.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=scores.shape)
    stub = InferenceServiceStub((await start_inference()).channel)
    response = await stub.Classify(pb.ClassifyRequest(request=request, top=2))

    assert [[(one.label, one.probability) for one in each.classes] for each in response.classifications] == [
        [("dog", 0.5), ("cat", 0.25)],
        [("cat", 3), ("owl", 2)],
    ]


async def test_answer_tells_the_generation_of_the_traffic(classify, inference, images):
    await ModelLifecycleServiceStub(inference.channel).SetTraffic(SetTrafficRequest(model="tiny", stable_version=1))

    assert (await classify(images)).traffic_generation == 1


@pytest.mark.parametrize(
    ("top", "fields", "code", "words"),
    [
        (-1, {}, "INVALID_ARGUMENT", "top is -1; ask for 1 or more, or 0 for all classes"),
        (1, {"model_name": "other"}, "NOT_FOUND", "model 'other' is unknown"),
        (1, {"model_version": "v1"}, "INVALID_ARGUMENT", "'v1' is not a version"),
        (1, {"raw_input_contents": [b""]}, "INVALID_ARGUMENT", "holds 0 bytes"),
        (1, {"parameters": {"preprocess_digest": {"string_param": "x"}}}, "FAILED_PRECONDITION", "preprocess spec x"),
    ],
)
async def test_request_that_cannot_be_answered_is_refused(classify, images, top, fields, code, words):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await classify(images, top, **fields)

    assert caught.value.code().name == code
    assert words in caught.value.details()


async def test_empty_request_is_refused(inference):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await InferenceServiceStub(inference.channel).Classify(pb.ClassifyRequest())

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(("datatype", "shape"), [("FLOAT", ["n", 2, 2]), ("FLOAT", ["n"]), ("STRING", ["n", 2])])
async def test_model_that_is_no_classifier_is_refused(start_inference, add_model, one_node, datatype, shape):
    add_model(one_node("Identity", shape, datatype=datatype), "plain")
    request = grpc_service_pb2.ModelInferRequest(model_name="plain")
    sizes = [1, *shape[1:]]
    raw = b"\0\0\0\0" * int(np.prod(sizes))  # zeros, or texts of length 0
    request.inputs.add(name="x", datatype="BYTES" if datatype == "STRING" else "FP32", shape=sizes)
    request.raw_input_contents.append(raw)
    stub = InferenceServiceStub((await start_inference()).channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(pb.ClassifyRequest(request=request))

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "model 'plain' is not a classifier" in caught.value.details()
