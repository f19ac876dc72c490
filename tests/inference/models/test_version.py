"""What a version must prove before it serves."""

import asyncio
import json
import math

import numpy as np
import pytest
from onnx import TensorProto, helper

from services.common.errors import InvalidInput
from services.common.manifest import Golden, GoldenTensor, Manifest, PreprocessSpec
from services.inference import engine
from services.inference.config.model_config import read_config
from services.inference.models.version import load_version, read_manifest


@pytest.fixture
def load(settings, model_repository):
    """A function that loads a version of the repository, as the service does."""

    def load(model: str, version: int = 1, **fields):
        folder = model_repository / model
        config = read_config(folder / "config.pbtxt", model)
        number = folder / str(version)
        return load_version(model, number, config, settings(**fields), read_manifest(number))

    return load


@pytest.fixture
def edit_manifest(model_repository):
    """A function that changes the manifest of the tiny classifier on disk."""

    def edit(**fields) -> None:
        path = model_repository / "tiny" / "1" / "model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def test_good_version_is_loaded_with_all_that_its_manifest_says(load, tiny_classifier):
    version = load("tiny", max_batch_size=8)

    assert version.labels == ("red", "green", "blue")
    assert version.preprocess_digest == tiny_classifier.manifest.preprocess.digest
    assert version.graph_digest == tiny_classifier.manifest.graph.sha256
    assert version.signature.max_batch_size == 8


def test_bare_graph_is_loaded_with_all_that_it_says_itself(load, add_model, tiny_classifier):
    add_model(tiny_classifier.path, "bare")
    version = load("bare")

    assert (version.labels, version.preprocess_digest) == ((), "")
    assert version.graph_digest == tiny_classifier.manifest.graph.sha256
    assert [tensor.name for tensor in version.config.input] == ["image"]


def test_missing_graph_is_named(load, model_repository):
    (model_repository / "tiny" / "1" / "model.onnx").unlink()

    with pytest.raises(InvalidInput, match=r"1/model\.onnx is missing"):
        load("tiny")


def test_graph_with_another_digest_is_refused_with_both(load, model_repository, tiny_classifier):
    with (model_repository / "tiny" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")

    with pytest.raises(InvalidInput, match=r"has digest sha256:\w+, but model.json states sha256:\w+") as caught:
        load("tiny")
    assert tiny_classifier.manifest.graph.sha256 in caught.value.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": "pixels"}, r"makes input 'pixels' alone, and the graph takes \['image'\]"),
        ({"width": 5}, r"makes UINT8 \[-1, 4, 5, 3\], and the graph takes UINT8 \[-1, 4, 4, 3\]"),
        ({"layout": "NCHW"}, r"makes UINT8 \[-1, 3, 4, 4\]"),
        ({"datatype": "FP32"}, r"makes FP32 .* the graph takes UINT8"),
    ],
)
def test_preprocess_spec_that_does_not_fit_the_graph_is_refused(load, edit_manifest, fields, words):
    spec = PreprocessSpec(**{"input": "image", "width": 4, "height": 4} | fields)
    edit_manifest(preprocess=spec.model_dump(mode="json"), preprocess_digest=spec.digest)

    with pytest.raises(InvalidInput, match=words):
        load("tiny")


def test_labels_that_do_not_fit_the_scores_are_refused(load, edit_manifest):
    edit_manifest(labels=["red", "green"])

    with pytest.raises(InvalidInput, match=r"model\.json has 2 labels; give 3, one for each score"):
        load("tiny")


def golden(images: np.ndarray, outputs: np.ndarray, output="probabilities", datatype="FP32") -> dict:
    return Golden(
        inputs=(GoldenTensor.from_array("image", "UINT8", images),),
        outputs=(GoldenTensor.from_array(output, datatype, outputs),),
    ).model_dump(mode="json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images, outputs: golden(images, outputs + np.float32(2e-4)), "differs by 0.0002, and at most 0.0001"),
        (lambda images, outputs: golden(images, np.full_like(outputs, np.nan)), "differs by nan"),
        (lambda images, outputs: golden(images, outputs[:1]), r"has shape \[1, 3\], but the graph gave \[5, 3\]"),
        (lambda images, outputs: golden(images, outputs, output="scores"), "do not fit the graph"),
        (lambda images, outputs: golden(images[:, :2], outputs), "do not fit the graph"),
        (lambda images, outputs: golden(images, np.array([b"a"], np.object_), datatype="BYTES"), "is text"),
        (lambda images, outputs: golden(images, outputs) | {"inputs": golden(images, outputs)["outputs"]}, "not fit"),
    ],
)
def test_version_that_does_not_reproduce_its_golden_vectors_is_refused(
    load, edit_manifest, tiny_classifier, images, change, words
):
    edit_manifest(golden=change(images, tiny_classifier.infer(images)))

    with pytest.raises(InvalidInput, match=words):
        load("tiny")


@pytest.mark.parametrize(
    ("op", "shape", "options", "batch"),
    [
        ("Softmax", ["n", 3], {"axis": 1}, 32),
        ("Softmax", ["n", 3], {"axis": 0}, 0),
        ("Identity", [2, 3], {}, 0),
        ("Identity", [], {}, 0),
        ("ReduceMean", ["n", 3], {"after": np.array([0]), "keepdims": 1, "out": [1, 3]}, 0),
        ("Identity", ["n", 3], {"datatype": "STRING"}, 32),
        ("Gather", ["n"], {"datatype": "INT64", "before": np.arange(5)}, 32),
        ("MatMul", ["n", "k"], {"after": np.eye(7, dtype=np.float32), "out": ["n", 7]}, 0),
    ],
)
def test_graph_is_batched_only_where_its_samples_prove_to_be_independent(
    load, add_model, one_node, op, shape, options, batch
):
    add_model(one_node(op, shape, **options), "bare")

    assert load("bare").signature.max_batch_size == batch


def test_config_that_batches_a_graph_which_mixes_its_samples_is_refused(load, add_model, one_node):
    add_model(one_node("Softmax", ["n", 3], axis=0), "mixing", config="max_batch_size: 4")

    with pytest.raises(InvalidInput, match="depends on the others in its batch; set max_batch_size to 0"):
        load("mixing")


def test_config_that_batches_a_fixed_graph_is_refused(load, add_model, one_node):
    add_model(one_node("Identity", [1, 3]), "fixed", config="max_batch_size: 4")

    with pytest.raises(InvalidInput, match="does not leave the first dimension of all its inputs and outputs free"):
        load("fixed")


@pytest.fixture
def load_wide(load, add_model, save_graph):
    """A function that loads a graph which made-up samples, of one number, do not suit: it takes seven."""

    def load_wide(config: str = "max_batch_size: 4", golden: np.ndarray | None = None, mixing: bool = False):
        last = helper.make_node("Softmax", ["z"], ["y"], axis=0) if mixing else helper.make_node("Neg", ["z"], ["y"])
        path = save_graph(
            [helper.make_node("MatMul", ["x", "w"], ["z"]), last],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7])],
            {"w": np.eye(7, dtype=np.float32)},
        )
        folder = add_model(path, "wide", config=config)
        if golden is not None:
            inputs = (GoldenTensor.from_array("x", "FP32", golden),)
            outputs = (GoldenTensor.from_array("y", "FP32", -golden),)
            (folder / "model.json").write_text(Manifest(golden=Golden(inputs=inputs, outputs=outputs)).to_json())
        return load("wide")

    return load_wide


async def share_a_run(version) -> bool:
    """Whether two requests that come at once do; each has two samples."""
    samples = np.arange(28, dtype=np.float32).reshape(2, 2, 7)
    inferences = await asyncio.gather(*(version.batcher.infer({"x": each}, ["y"], 2, math.inf) for each in samples))
    version.close()
    return {each.batch_requests for each in inferences} == {2}


TWO = np.arange(14, dtype=np.float32).reshape(2, 7)
X = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 7 ] %s: true } }'
ZERO, RANDOM = (f"model_warmup [ {{ batch_size: 2 {X % kind} }} ]" for kind in ("zero_data", "random_data"))


@pytest.mark.parametrize(
    ("further", "golden", "shared"),
    [
        ("", None, False),
        ("", TWO, True),
        ("", TWO[:1], False),
        ("", TWO[[1, 1]], False),
        (ZERO, None, False),
        (ZERO + ZERO, None, False),
        (ZERO + RANDOM, None, True),
        (RANDOM + RANDOM, None, True),
    ],
    ids=["nothing", "golden", "one sample", "the same twice", "zeros", "zeros twice", "zeros, random", "random"],
)
async def test_requests_share_runs_only_where_two_samples_that_suit_the_graph_were_kept_apart(
    load_wide, further, golden, shared
):
    version = await asyncio.to_thread(load_wide, f"max_batch_size: 4 {further}", golden)

    assert version.signature.max_batch_size == 4
    assert await share_a_run(version) is shared


async def test_graph_without_a_config_is_batched_where_golden_vectors_show_that_it_can_be(load_wide):
    version = await asyncio.to_thread(load_wide, None, TWO)

    assert version.signature.max_batch_size == 32
    assert await share_a_run(version)


@pytest.mark.parametrize(("further", "golden"), [("", TWO), (ZERO + RANDOM, None)], ids=["golden", "warm-ups"])
def test_graph_that_is_seen_to_mix_samples_of_the_owner_is_refused(load_wide, further, golden):
    with pytest.raises(InvalidInput, match="depends on the others in its batch; set max_batch_size to 0"):
        load_wide(f"max_batch_size: 4 {further}", golden, mixing=True)


async def test_graph_of_which_nothing_is_known_gives_each_request_its_own_answer(load_wide):
    version = await asyncio.to_thread(load_wide, mixing=True)
    alone = await version.batcher.infer({"x": TWO[:1]}, ["y"], 1, math.inf)
    at_once = await asyncio.gather(*(version.batcher.infer({"x": TWO[:1]}, ["y"], 1, math.inf) for _ in range(3)))
    version.close()

    assert [each.outputs[0].tolist() for each in at_once] == [alone.outputs[0].tolist()] * 3


def test_graph_that_fails_on_a_full_batch_is_refused(load, add_model, save_graph):
    table = np.zeros(3, np.float32)
    path = save_graph(
        [
            helper.make_node("Shape", ["x"], ["size"], end=1),
            helper.make_node("Gather", ["table", "size"], ["zero"]),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        {"table": table},
    )
    add_model(path, "small")

    assert load("small", max_batch_size=2).signature.max_batch_size == 2
    with pytest.raises(InvalidInput, match="the graph fails on a batch of 3"):
        load("small", max_batch_size=3)


@pytest.mark.parametrize("content", ["{}", "", "null", '{"labels": 1}', '{"format": 1, "extra": 2}'])
def test_manifest_on_disk_is_checked(model_repository, content):
    folder = model_repository / "tiny" / "1"
    (folder / "model.json").write_text(content)

    if content == "{}":
        assert read_manifest(folder) == Manifest()
    else:
        with pytest.raises(InvalidInput, match=r"model\.json is not a valid manifest"):
            read_manifest(folder)


@pytest.mark.parametrize("shape", [[10**6, 10**6], ["batch", 10**9]])
def test_graph_whose_single_sample_no_message_could_carry_is_refused_before_anything_is_allocated(
    load, add_model, one_node, shape
):
    add_model(one_node("Relu", shape), "huge")

    with pytest.raises(InvalidInput, match=r"one sample is larger than a message may be, 268,435,456 bytes"):
        load("huge")


def test_graph_that_does_not_come_to_an_end_is_given_up(load, add_model, save_graph, monkeypatch):
    monkeypatch.setattr(engine, "TRIAL_SECONDS", 0.2)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["before"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, ["batch", 2]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, ["batch", 2]),
        ],
    )
    path = save_graph(
        [helper.make_node("Loop", ["", "always", "x"], ["y"], body=body)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        {"always": np.array(True)},
    )
    add_model(path, "endless")

    with pytest.raises(InvalidInput, match=r"did not end within 0\.2 s"):
        load("endless")


async def test_tensors_are_reshaped_between_request_and_graph(load, add_model, one_node):
    config = """
        max_batch_size: 4
        input [ { name: "x" dims: [ 1 ] reshape { shape: [] } } ]
        output [ { name: "y" dims: [ 1, 1 ] reshape { shape: [] } } ]
    """
    add_model(one_node("Neg", ["n"]), "flat", config=config)
    version = await asyncio.to_thread(load, "flat")
    inference = await version.batcher.infer({"x": np.array([[1], [2]], np.float32)}, ["y"], 2, math.inf)
    version.close()

    assert [spec.shape for spec in (*version.signature.inputs, *version.signature.outputs)] == [(-1, 1), (-1, 1, 1)]
    assert inference.outputs[0].tolist() == [[[-1]], [[-2]]]


async def test_dimensions_that_vary_keep_their_order_in_a_reshape(load, add_model, one_node):
    config = 'input [ { name: "x" dims: [ 2, -1, 3, -1 ] reshape { shape: [ 1, 2, -1, 1, 3, -1 ] } } ]'
    add_model(one_node("Neg", [1, 2, "a", 1, 3, "b"]), "varied", config=config)
    version = await asyncio.to_thread(load, "varied")
    inference = await version.batcher.infer({"x": np.ones((2, 5, 3, 7), np.float32)}, ["y"], 1, math.inf)
    version.close()

    assert version.signature.inputs[0].shape == (2, -1, 3, -1)
    assert inference.outputs[0].shape == (1, 2, 5, 1, 3, 7)


async def test_scalar_of_a_graph_without_a_batch_is_reshaped(load, add_model, one_node):
    config = 'input [ { name: "x" dims: [ 1 ] reshape {} } ] output [ { name: "y" dims: [ 1 ] reshape {} } ]'
    add_model(one_node("Neg", []), "scalar", config=config)
    version = await asyncio.to_thread(load, "scalar")
    inference = await version.batcher.infer({"x": np.ones(1, np.float32)}, ["y"], 1, math.inf)
    version.close()

    assert inference.outputs[0].tolist() == [-1]


def test_graph_may_have_another_file_name(load, add_model, one_node):
    folder = add_model(one_node("Neg", ["n"]), "named", config='default_model_filename: "net.onnx"')
    (folder / "model.onnx").rename(folder / "net.onnx")
    assert load("named").config.default_model_filename == "net.onnx"

    (folder / "net.onnx").unlink()
    with pytest.raises(InvalidInput, match=r"1/net\.onnx is missing"):
        load("named")


WARMUP = """
    max_batch_size: 4
    model_warmup [ {{ name: "first" batch_size: {size} count: 2 inputs {{ key: "x" value {{ {x} }} }} }} ]
"""


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true", 'input_data_file: "x.raw"'])
def test_warm_up_of_the_config_is_run(load, add_model, one_node, data):
    config = WARMUP.format(size=3, x=f"data_type: TYPE_FP32 dims: [ 2 ] {data}")
    folder = add_model(one_node("Neg", ["n", 2]), "warm", config=config).parent / "warmup"
    folder.mkdir()
    (folder / "x.raw").write_bytes(b"\0" * 8)

    assert load("warm").signature.max_batch_size == 4


@pytest.mark.parametrize(
    ("size", "x", "words"),
    [
        (5, "data_type: TYPE_INT64 dims: [ 1 ] zero_data: true", "batch_size 5; use 1 to 4"),
        (0, "data_type: TYPE_INT64 dims: [ 1 ] zero_data: true", "batch_size 0; use 1 to 4"),
        (1, "data_type: TYPE_FP32 dims: [ 1 ] zero_data: true", r"FP32 \[1\]; use INT64 \[1\]"),
        (1, "data_type: TYPE_INT64 dims: [ 2 ] zero_data: true", r"INT64 \[2\]; use INT64 \[1\]"),
        (1, "data_type: TYPE_INT64 dims: [ 1 ]", "has no data"),
        (1, 'data_type: TYPE_INT64 dims: [ 1 ] input_data_file: "x.raw"', "not a file in the model's folder warmup/"),
        (1, 'data_type: TYPE_INT64 dims: [ 1 ] input_data_file: "../config.pbtxt"', "not a file in the model's folder"),
        (1, "data_type: TYPE_INT64 dims: [ 1 ] random_data: true", "the graph fails on model_warmup 'first'"),
    ],
)
def test_warm_up_that_does_not_fit_the_model_is_refused(load, add_model, one_node, size, x, words):
    path = one_node("Gather", ["n", 1], datatype="INT64", before=np.arange(5))
    add_model(path, "cold", config=WARMUP.format(size=size, x=x))

    with pytest.raises(InvalidInput, match=words):
        load("cold")


def test_labels_belong_to_their_output(load, add_model, one_node):
    config = 'max_batch_size: 4 output [ { name: "y" label_filename: "labels.txt" } ]'
    folder = add_model(one_node("Neg", ["n", 2]), "labelled", config=config).parent
    (folder / "labels.txt").write_text("cat\ndog\n")
    version = load("labelled")

    assert (version.labels_of("y"), version.labels_of("z"), version.labels) == (("cat", "dog"), (), ("cat", "dog"))


@pytest.mark.parametrize("shape", [["n"], ["n", 2]])
def test_text_is_batched(load, add_model, one_node, shape):
    add_model(one_node("Identity", shape, datatype="STRING"), "text")

    assert load("text").signature.max_batch_size == 32


@pytest.mark.parametrize(("config", "threads"), [("", 3), ("4", 4)])
def test_config_gives_the_model_its_own_threads(load, add_model, one_node, config, threads):
    text = f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{config}" }} }}' if config else ""
    add_model(one_node("Neg", ["n"]), "threads", config=text)
    graph = load("threads", threads=3).batcher._run.__self__

    assert graph._session.get_session_options().intra_op_num_threads == threads
