"""The stock clients over HTTP, which nobody here wrote, against running suites in both modes."""

import asyncio
import os
import subprocess
import sys
from multiprocessing import shared_memory
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from tests.end_to_end.pictures import cifar

PERF = Path(sys.prefix) / "perf"
ENCODINGS = [None, "gzip", "deflate"]


def server(suite):
    return f"127.0.0.1:{suite.ports.http}"


@pytest.fixture
def stock(suite):
    with triton.InferenceServerClient(server(suite)) as client:
        yield client


def tensors(module, arrays, **options):
    inputs = []
    for name, array in arrays.items():
        datatype = {"uint8": "UINT8", "float32": "FP32"}[array.dtype.name]
        tensor = module.InferInput(name, list(array.shape), datatype)
        inputs.append(tensor.set_data_from_numpy(array, **options))
    return inputs


def addends(rows=2):
    numbers = np.random.default_rng(0).normal(size=(2, rows, 4)).astype(np.float32)
    return {"a": numbers[0], "b": numbers[1]}


def over_grpc(suite, model, arrays, output):
    with triton_grpc.InferenceServerClient(suite.address) as client:
        return client.infer(model, tensors(triton_grpc, arrays)).as_numpy(output)


@pytest.mark.parametrize("binary_output", [True, False], ids=["binary answer", "JSON answer"])
@pytest.mark.parametrize("binary_input", [True, False], ids=["binary request", "JSON request"])
@pytest.mark.parametrize(
    ("model", "output", "arrays"),
    [("cifar10", "probabilities", {"image": cifar()[:3]}), ("sums", "sum", addends())],
    ids=["uint8", "two float inputs"],
)
def test_both_forms_give_the_bits_that_grpc_gives(suite, stock, model, output, arrays, binary_input, binary_output):
    inputs = tensors(triton, arrays, binary_data=binary_input)
    outputs = [triton.InferRequestedOutput(output, binary_data=binary_output)]

    answer = stock.infer(model, inputs, outputs=outputs).as_numpy(output)

    assert answer.dtype == np.float32
    assert answer.tobytes() == over_grpc(suite, model, arrays, output).tobytes()


def test_a_client_that_names_no_output_gets_all_of_them_binary(stock):
    arrays = addends()

    result = stock.infer("sums", tensors(triton, arrays), request_id="order-66")

    np.testing.assert_array_equal(result.as_numpy("sum"), arrays["a"] + arrays["b"])
    assert result.get_response()["id"] == "order-66"
    assert result.get_response()["model_version"] == "1"
    assert "data" not in result.get_output("sum")


def test_requests_that_run_side_by_side_get_their_own_answers(suite):
    sums = [addends(rows) for rows in range(1, 9)]

    with triton.InferenceServerClient(server(suite), concurrency=8) as client:
        results = [client.async_infer("sums", tensors(triton, arrays)) for arrays in sums]
        answers = [result.get_result().as_numpy("sum") for result in results]

    for arrays, answer in zip(sums, answers, strict=True):
        np.testing.assert_array_equal(answer, arrays["a"] + arrays["b"])


async def test_the_asynchronous_client_infers_and_asks(suite):
    arrays = addends()

    async with triton_aio.InferenceServerClient(server(suite)) as client:
        results = await asyncio.gather(*[client.infer("sums", tensors(triton_aio, arrays)) for _ in range(4)])
        metadata = await client.get_model_metadata("sums")
        ready = await client.is_model_ready("sums")
        with pytest.raises(InferenceServerException, match="model 'nothing' is unknown"):
            await client.infer("nothing", tensors(triton_aio, arrays))

    for result in results:
        np.testing.assert_array_equal(result.as_numpy("sum"), arrays["a"] + arrays["b"])
    assert metadata["outputs"] == [{"name": "sum", "datatype": "FP32", "shape": [-1, 4]}]
    assert ready


@pytest.mark.parametrize("answer", ENCODINGS)
@pytest.mark.parametrize("request_", ENCODINGS)
def test_both_directions_may_be_compressed(stock, request_, answer):
    arrays = addends(rows=32)

    result = stock.infer(
        "sums",
        tensors(triton, arrays),
        request_compression_algorithm=request_,
        response_compression_algorithm=answer,
    )

    np.testing.assert_array_equal(result.as_numpy("sum"), arrays["a"] + arrays["b"])


async def test_the_asynchronous_client_compresses_too(suite):
    arrays = addends(rows=32)

    async with triton_aio.InferenceServerClient(server(suite)) as client:
        result = await client.infer(
            "sums",
            tensors(triton_aio, arrays),
            request_compression_algorithm="gzip",
            response_compression_algorithm="deflate",
        )

    np.testing.assert_array_equal(result.as_numpy("sum"), arrays["a"] + arrays["b"])


@pytest.mark.parametrize("binary", [True, False])
def test_classes_come_by_falling_score(stock, binary):
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=3)]

    classes = stock.infer("cifar10", tensors(triton, {"image": cifar()[:2]}), outputs=outputs).as_numpy("probabilities")

    rows = [[each.decode() if isinstance(each, bytes) else each for each in row] for row in classes]
    scores = [[float(each.split(":")[0]) for each in row] for row in rows]
    assert classes.shape == (2, 3)
    assert scores == [sorted(row, reverse=True) for row in scores]
    assert all(len(each.split(":")) == 3 for row in rows for each in row)


def test_the_client_reads_everything_about_server_and_model(stock):
    assert stock.is_server_live()
    assert stock.is_server_ready()
    assert stock.is_model_ready("cifar10")
    assert stock.is_model_ready("cifar10", "1")
    assert not stock.is_model_ready("cifar10", "7")
    assert not stock.is_model_ready("nothing")
    assert stock.get_server_metadata()["name"] == "aimass"
    assert "binary_tensor_data" in stock.get_server_metadata()["extensions"]
    assert stock.get_model_metadata("cifar10", "1")["inputs"][0]["shape"][0] == -1
    assert stock.get_model_config("cifar10")["max_batch_size"] > 1
    assert stock.get_model_config("cifar10")["input"][0]["data_type"] == "TYPE_UINT8"


def test_statistics_count_what_was_asked(stock):
    def successes(*asked):
        (counters,) = (each for each in stock.get_inference_statistics(*asked)["model_stats"] if each["name"] == "sums")
        return counters["inference_stats"]["success"]["count"]

    before = successes()
    stock.infer("sums", tensors(triton, addends()))

    assert successes("sums", "1") == successes("sums") == before + 1


def test_trace_and_log_settings_can_be_read_and_written_back(stock):
    trace, log = stock.get_trace_settings(), stock.get_log_settings()

    assert stock.update_trace_settings(settings=trace) == trace
    assert stock.get_trace_settings("sums").keys() == trace.keys()
    assert stock.update_log_settings(log) == log


def outcome(call):
    try:
        return call()
    except InferenceServerException as error:
        return error.message()


@pytest.mark.parametrize("action", ["load_model", "unload_model"])
def test_the_repository_answers_as_over_grpc(suite, stock, action):
    with triton_grpc.InferenceServerClient(suite.address) as client:
        listed = outcome(lambda: client.get_model_repository_index(as_json=True)["models"])
        refused = outcome(lambda: getattr(client, action)("nothing"))

    assert outcome(stock.get_model_repository_index) == listed
    assert outcome(lambda: getattr(stock, action)("nothing")) == refused


def test_a_model_can_be_sent_with_the_request_to_load_it(own_suite, save_graph):
    graph = save_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    files = {"file:1/model.onnx": graph.read_bytes()}
    numbers = np.float32([[1, -2]])

    with triton.InferenceServerClient(server(own_suite)) as client:
        client.load_model("pushed", config='{"max_batch_size": 4}', files=files)
        answer = client.infer("pushed", tensors(triton, {"x": numbers})).as_numpy("y")
        config = client.get_model_config("pushed")
        client.unload_model("pushed")
        ready = client.is_model_ready("pushed")

    np.testing.assert_array_equal(answer, -numbers)
    assert config["max_batch_size"] == 4
    assert not ready


def test_tensors_may_lie_in_shared_memory(stock):
    arrays, size = addends(), 2 * 4 * 4
    memory = shared_memory.SharedMemory(create=True, size=3 * size)
    try:
        np.ndarray((2, 2, 4), np.float32, memory.buf)[:] = [arrays["a"], arrays["b"]]
        stock.register_system_shared_memory("sums_http", f"/{memory.name}", 3 * size)
        inputs = [triton.InferInput(name, [2, 4], "FP32") for name in arrays]
        for position, tensor in enumerate(inputs):
            tensor.set_shared_memory("sums_http", size, position * size)
        output = triton.InferRequestedOutput("sum")
        output.set_shared_memory("sums_http", size, 2 * size)

        result = stock.infer("sums", inputs, outputs=[output])

        assert stock.get_system_shared_memory_status("sums_http")[0]["byte_size"] == 3 * size
        assert result.get_output("sum").keys() == {"name", "datatype", "shape"}
        written = np.ndarray((2, 4), np.float32, memory.buf, 2 * size).copy()
        np.testing.assert_array_equal(written, arrays["a"] + arrays["b"])
        stock.unregister_system_shared_memory("sums_http")
        assert "sums_http" not in {each["name"] for each in stock.get_system_shared_memory_status()}
    finally:
        memory.close()
        memory.unlink()


async def test_the_asynchronous_client_uses_shared_memory_too(suite):
    arrays, size = addends(), 2 * 4 * 4
    memory = shared_memory.SharedMemory(create=True, size=3 * size)
    try:
        np.ndarray((2, 2, 4), np.float32, memory.buf)[:] = [arrays["a"], arrays["b"]]
        async with triton_aio.InferenceServerClient(server(suite)) as client:
            await client.register_system_shared_memory("sums_aio", f"/{memory.name}", 3 * size)
            inputs = [triton_aio.InferInput(name, [2, 4], "FP32") for name in arrays]
            for position, tensor in enumerate(inputs):
                tensor.set_shared_memory("sums_aio", size, position * size)
            output = triton_aio.InferRequestedOutput("sum")
            output.set_shared_memory("sums_aio", size, 2 * size)

            await client.infer("sums", inputs, outputs=[output])

            assert (await client.get_system_shared_memory_status("sums_aio"))[0]["byte_size"] == 3 * size
            await client.unregister_system_shared_memory("sums_aio")
            assert "sums_aio" not in {each["name"] for each in await client.get_system_shared_memory_status()}
        written = np.ndarray((2, 4), np.float32, memory.buf, 2 * size).copy()
        np.testing.assert_array_equal(written, arrays["a"] + arrays["b"])
    finally:
        memory.close()
        memory.unlink()


def identity(save_graph, datatype):
    """Return the bytes of a graph that gives back what it is given."""
    tensors = [helper.make_tensor_value_info(name, datatype, ["batch", 2]) for name in "xy"]
    return save_graph([helper.make_node("Identity", ["x"], ["y"])], tensors[:1], tensors[1:]).read_bytes()


def echo(client, model, array, datatype, **forms):
    """Return what *model* gives back; *forms* say whether request and answer are binary."""
    tensor = triton.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=forms.get("request", True))
    output = triton.InferRequestedOutput("y", binary_data=forms.get("answer", True))
    return client.infer(model, [tensor], outputs=[output]).as_numpy("y")


def test_text_and_bfloat16_go_in_and_come_out(own_suite, save_graph):
    text = np.array([['\u00e4"\\'.encode(), b""]], np.object_)
    numbers = np.array([[0.5, -2]], ml_dtypes.bfloat16)

    with triton.InferenceServerClient(server(own_suite)) as client:
        for model, datatype in (("text", TensorProto.STRING), ("brain", TensorProto.BFLOAT16)):
            files = {"file:1/model.onnx": identity(save_graph, datatype)}
            client.load_model(model, config='{"max_batch_size": 4}', files=files)
        texts = [
            echo(client, "text", text, "BYTES", request=request, answer=answer)
            for request in (True, False)
            for answer in (True, False)
        ]
        brain = echo(client, "brain", numbers, "BF16")

    said = [[each if isinstance(each, bytes) else each.encode() for each in got.flat] for got in texts]
    assert said == [list(text.flat)] * 4
    assert (brain.dtype, brain.tolist()) == (numbers.dtype, numbers.tolist())


@pytest.mark.parametrize(
    ("model", "version", "arrays", "status", "words"),
    [
        ("nothing", "", addends(), "404", "model 'nothing' is unknown"),
        ("sums", "7", addends(), "404", "model 'sums' has no version 7"),
        ("sums", "v1", addends(), "400", "model_version 'v1' is not a version"),
        ("sums", "", {"a": addends()["a"]}, "400", r"send exactly \['a', 'b'\]"),
        ("sums", "", addends(rows=4096), "400", "samples"),
    ],
    ids=["no such model", "no such version", "no version", "an input missing", "too many samples"],
)
def test_a_client_is_told_what_is_wrong_in_one_sentence(stock, model, version, arrays, status, words):
    with pytest.raises(InferenceServerException, match=words) as caught:
        stock.infer(model, tensors(triton, arrays), model_version=version)

    assert caught.value.status() == status


@pytest.mark.skipif(
    not (PERF / "perf_analyzer").exists(), reason="the stock load generator is missing; `make perf-analyzer` gets it"
)
@pytest.mark.parametrize(
    "form",
    [
        (),
        ("--input-tensor-format", "json", "--output-tensor-format", "json"),
        ("--shared-memory", "system"),
    ],
    ids=["binary", "JSON", "shared memory"],
)
def test_perf_analyzer_measures_the_starter_model_over_http(suite, form):
    # Short windows of any spread: that it runs through is what is asked here, not how fast.
    quick = ("--concurrency-range", "2", "-p", "200", "-s", "999", "-r", "3")

    done = subprocess.run(
        [PERF / "perf_analyzer", "-i", "http", "-m", "cifar10", "-u", server(suite), *quick, *form],
        env={**os.environ, "LD_LIBRARY_PATH": str(PERF)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("Concurrency: 2, throughput: ")], done.stdout
    assert "compute infer" in done.stdout, "no server-side breakdown"
