"""Stock tritonclient against the service, unmodified."""

import asyncio
import queue

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException


@pytest.fixture
async def client(inference):
    """The asynchronous client."""
    async with tritonclient.grpc.aio.InferenceServerClient(inference.address) as client:
        yield client


def tensors(client_module, images: np.ndarray) -> list:
    tensor = client_module.InferInput("image", images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    return [tensor]


async def test_aio_client_reads_everything_about_a_model(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("tiny", "1")
    assert not await client.is_model_ready("other")
    assert (await client.get_server_metadata(as_json=True))["name"] == "aimass"
    assert (await client.get_model_metadata("tiny", as_json=True))["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": ["-1", "4", "4", "3"]}
    ]
    assert (await client.get_model_config("tiny", as_json=True))["config"]["max_batch_size"] == 32


async def test_aio_client_infers(client, tiny_classifier, images):
    outputs = [tritonclient.grpc.aio.InferRequestedOutput("probabilities")]
    result = await client.infer("tiny", tensors(tritonclient.grpc.aio, images), outputs=outputs, request_id="7")

    np.testing.assert_array_equal(result.as_numpy("probabilities"), tiny_classifier.infer(images))
    assert result.get_response().id == "7"


async def test_aio_client_classifies(client, images):
    outputs = [tritonclient.grpc.aio.InferRequestedOutput("probabilities", class_count=1)]
    result = await client.infer("tiny", tensors(tritonclient.grpc.aio, images[:3]), outputs=outputs)

    best = [text.decode().split(":")[1:] for (text,) in result.as_numpy("probabilities")]
    assert best == [["0", "red"], ["1", "green"], ["2", "blue"]]


async def test_statistics_find_the_version_that_ran(client, images):
    await client.infer("tiny", tensors(tritonclient.grpc.aio, images))
    (stats,) = (await client.get_inference_statistics("tiny", as_json=True))["model_stats"]

    assert (stats["version"], stats["inference_count"], stats["execution_count"]) == ("1", "5", "1")
    assert {stats["inference_stats"][each]["count"] for each in ("success", "queue", "compute_infer")} == {"1"}


@pytest.mark.parametrize(
    ("model", "version", "status", "words"),
    [
        ("other", "", "StatusCode.NOT_FOUND", "model 'other' is unknown; this suite has: tiny"),
        ("tiny", "2", "StatusCode.NOT_FOUND", "has no version 2"),
        ("tiny", "v1", "StatusCode.INVALID_ARGUMENT", "is not a version"),
    ],
)
async def test_client_is_told_what_was_wrong(client, images, model, version, status, words):
    with pytest.raises(InferenceServerException, match=words) as caught:
        await client.infer(model, tensors(tritonclient.grpc.aio, images), model_version=version)

    assert caught.value.status() == status


async def test_synchronous_client_infers_in_both_its_forms(inference, tiny_classifier, images):
    def infer() -> list[np.ndarray]:
        answers: queue.SimpleQueue = queue.SimpleQueue()
        with tritonclient.grpc.InferenceServerClient(inference.address) as client:
            answers.put((client.infer("tiny", tensors(tritonclient.grpc, images)), None))
            client.async_infer(
                "tiny", tensors(tritonclient.grpc, images), lambda result, error: answers.put((result, error))
            )
            return [result.as_numpy("probabilities") for result, _ in (answers.get(), answers.get())]

    for probabilities in await asyncio.to_thread(infer):
        np.testing.assert_array_equal(probabilities, tiny_classifier.infer(images))
