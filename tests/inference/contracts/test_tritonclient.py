"""Stock tritonclient against the service, unmodified."""

import asyncio
import queue
import uuid

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException, shared_memory


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
        ("other", "", "StatusCode.NOT_FOUND", "model 'other' is unknown; name one that this suite has: tiny"),
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


def request(module, name: str, array: np.ndarray, datatype: str) -> list:
    """Return the inputs of a request with one tensor."""
    tensor = module.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return [tensor]


async def test_aio_client_streams(client, tiny_classifier, images):
    async def requests():
        for count in (1, 3, 5):
            yield {
                "model_name": "tiny",
                "inputs": tensors(tritonclient.grpc.aio, images[:count]),
                "request_id": str(count),
            }
        yield {"model_name": "other", "inputs": tensors(tritonclient.grpc.aio, images), "request_id": "bad"}

    *answers, last = [answer async for answer in client.stream_infer(requests())]
    for count, (result, error) in zip((1, 3, 5), answers, strict=True):
        assert error is None
        assert (result.get_response().id, result.get_response().parameters["triton_final_response"].bool_param) == (
            str(count),
            True,
        )
        np.testing.assert_array_equal(result.as_numpy("probabilities"), tiny_classifier.infer(images[:count]))
    assert last[0] is None
    assert last[1].message() == "model 'other' is unknown; name one that this suite has: tiny"


async def test_synchronous_client_streams_and_goes_on_after_an_error(inference, tiny_classifier, images):
    def stream() -> list:
        answers: queue.SimpleQueue = queue.SimpleQueue()
        with tritonclient.grpc.InferenceServerClient(inference.address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for model in ("tiny", "other", "tiny"):
                client.async_stream_infer(
                    model,
                    tensors(tritonclient.grpc, images),
                    enable_empty_final_response=True,
                    priority=1,
                    timeout=10**7,
                )
            got = [answers.get(timeout=30) for _ in range(3)]
            client.stop_stream()
            return got

    first, refused, last = await asyncio.to_thread(stream)
    assert "model 'other' is unknown" in str(refused[1])
    for result, error in (first, last):
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("probabilities"), tiny_classifier.infer(images))


async def test_stream_of_a_client_that_wants_statuses_ends_with_one(inference, images):
    def stream() -> InferenceServerException:
        answers: queue.SimpleQueue = queue.SimpleQueue()
        with tritonclient.grpc.InferenceServerClient(inference.address) as client:
            headers = {"triton_grpc_error": "true"}
            client.start_stream(lambda result, error: answers.put(error), headers=headers)
            client.async_stream_infer("other", tensors(tritonclient.grpc, images))
            return answers.get(timeout=30)

    assert (await asyncio.to_thread(stream)).status() == "StatusCode.NOT_FOUND"


async def test_client_infers_through_shared_memory_and_keeps_it(inference, tiny_classifier, images):
    def infer() -> tuple[np.ndarray, dict]:
        key = f"/aimass_test_{uuid.uuid4().hex}"
        memory = shared_memory.create_shared_memory_region("memory", key, 1000)
        try:
            shared_memory.set_shared_memory_region(memory, [images])
            with tritonclient.grpc.InferenceServerClient(inference.address) as client:
                client.unregister_system_shared_memory()
                client.unregister_cuda_shared_memory()
                client.register_system_shared_memory("memory", key, 1000)
                status = client.get_system_shared_memory_status(as_json=True)
                given = tritonclient.grpc.InferInput("image", images.shape, "UINT8")
                given.set_shared_memory("memory", images.nbytes)
                wanted = tritonclient.grpc.InferRequestedOutput("probabilities")
                wanted.set_shared_memory("memory", 60, offset=400)
                result = client.infer("tiny", [given], outputs=[wanted])
                shape = result.get_output("probabilities").shape
                client.unregister_system_shared_memory("memory")
            return shared_memory.get_contents_as_numpy(memory, np.float32, shape, offset=400).copy(), status
        finally:
            shared_memory.destroy_shared_memory_region(memory)

    probabilities, status = await asyncio.to_thread(infer)
    np.testing.assert_array_equal(probabilities, tiny_classifier.infer(images))
    assert status["regions"]["memory"]["byte_size"] == "1000"


async def test_text_fp16_and_bf16_go_in_and_come_out(start_inference, add_model, one_node, save_graph):
    add_model(one_node("Identity", ["n", 2], datatype="STRING"), "text")
    add_model(one_node("Neg", ["n", 2], datatype="FLOAT16"), "half")
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n", 2]) for name in "xy")
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["wide"], ["negative"]),
        helper.make_node("Cast", ["negative"], ["y"], to=TensorProto.BFLOAT16),
    ]
    add_model(save_graph(nodes, [x], [y]), "brain")
    address = (await start_inference()).address
    text = np.array([["\u00e4".encode(), b""]], np.object_)
    half, brain = np.array([[0.5, -2]], np.float16), np.array([[0.5, -2]], ml_dtypes.bfloat16)

    module = tritonclient.grpc.aio
    async with module.InferenceServerClient(address) as client:
        assert (await client.infer("text", request(module, "x", text, "BYTES"))).as_numpy("y").tolist() == text.tolist()
        got = (await client.infer("half", request(module, "x", half, "FP16"))).as_numpy("y")
        assert (got.dtype, got.tolist()) == (np.float16, [[-0.5, 2]])
        got = (await client.infer("brain", request(module, "x", brain, "BF16"))).as_numpy("y")
        assert got.astype(np.float32).tolist() == [[-0.5, 2]]


CONFIG = '{"max_batch_size": 4}'
NUMBERS = np.float32([[1, -2]])


@pytest.fixture
def graph(one_node) -> dict[str, bytes]:
    """The file of a graph that negates, as a client sends it."""
    return {"file:1/model.onnx": one_node("Neg", ["n", 2]).read_bytes()}


async def test_aio_client_loads_a_model_that_it_brings_along(client, graph):
    await client.load_model("pushed", config=CONFIG, files=graph)
    result = await client.infer("pushed", request(tritonclient.grpc.aio, "x", NUMBERS, "FP32"))
    config = await client.get_model_config("pushed", as_json=True)
    await client.unload_model("pushed")

    np.testing.assert_array_equal(result.as_numpy("y"), -NUMBERS)
    assert config["config"]["max_batch_size"] == 4
    assert not await client.is_model_ready("pushed")


async def test_synchronous_client_loads_a_model_that_it_brings_along(inference, graph):
    def load() -> tuple[np.ndarray, dict, bool]:
        with tritonclient.grpc.InferenceServerClient(inference.address) as client:
            client.load_model("pushed", config=CONFIG, files=graph)
            result = client.infer("pushed", request(tritonclient.grpc, "x", NUMBERS, "FP32"))
            config = client.get_model_config("pushed", as_json=True)
            client.unload_model("pushed")
            return result.as_numpy("y"), config["config"], client.is_model_ready("pushed")

    negated, config, ready = await asyncio.to_thread(load)
    np.testing.assert_array_equal(negated, -NUMBERS)
    assert (config["max_batch_size"], ready) == (4, False)


async def test_client_overrides_the_config_of_a_model_until_the_next_load(client):
    await client.load_model("tiny", config='{"max_batch_size": 2}')
    overridden = await client.get_model_config("tiny", as_json=True)
    await client.load_model("tiny")
    restored = await client.get_model_config("tiny", as_json=True)

    assert [each["config"]["max_batch_size"] for each in (overridden, restored)] == [2, 32]


async def test_trace_and_log_settings_are_read_and_written(client):
    assert (await client.get_trace_settings(as_json=True))["settings"]["trace_level"]["value"] == ["OFF"]
    changed = await client.update_trace_settings(
        "tiny", {"trace_level": ["TIMESTAMPS"], "trace_rate": "5"}, as_json=True
    )
    assert changed["settings"]["trace_rate"]["value"] == ["5"]
    cleared = await client.update_trace_settings("tiny", {"trace_level": None, "trace_rate": None}, as_json=True)
    assert cleared["settings"]["trace_rate"]["value"] == ["1000"]
    logs = await client.update_log_settings({"log_verbose_level": 1, "log_warning": False}, as_json=True)
    assert logs["settings"]["log_verbose_level"]["uint32_param"] == 1
    assert (await client.get_log_settings(as_json=True)) == logs


async def test_everything_that_stock_clients_index_is_there(client, images):
    """Outputs raw, versions integers, statistics listed, equal compute counts, a queue count for each request."""
    for count in (1, 5):
        result = await client.infer("tiny", tensors(tritonclient.grpc.aio, images[:count]))
        assert len(result.get_response().raw_output_contents) == len(result.get_response().outputs)
        assert int(result.get_response().model_version) == 1
    metadata = await client.get_server_metadata()
    (stats,) = (await client.get_inference_statistics("tiny")).model_stats

    assert "statistics" in metadata.extensions
    assert (int(stats.version), stats.inference_stats.queue.count) == (1, 2)
    parts = [getattr(stats.inference_stats, f"compute_{each}").count for each in ("input", "infer", "output")]
    assert parts == [2, 2, 2]
    assert [(stats.inference_stats.HasField(f"cache_{each}")) for each in ("hit", "miss")] == [True, True]
    names = {tensor.name for tensor in (await client.get_model_metadata("tiny")).inputs}
    assert {each.name for each in (await client.get_model_config("tiny")).config.input} == names
