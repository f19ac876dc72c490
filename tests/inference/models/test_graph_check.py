"""What a graph's file must be before ONNX Runtime gets it, and hostile files."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from services.common.errors import InvalidInput
from services.inference.config.model_config import read_config
from services.inference.models import graph_check
from services.inference.models.graph_check import check_graph, check_size
from services.inference.models.version import load_version, read_manifest

ANY = 2**40
X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
ADD = helper.make_node("Add", ["x", "w"], ["y"], name="sum")
OURS = helper.make_opsetid("my.ops", 1)
STANDARD = helper.make_opsetid("", 18)


def make_model(nodes, weights=(), functions=(), sparse=()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", [X], [Y], list(weights), sparse_initializer=list(sparse))
    return helper.make_model(graph, ir_version=10, opset_imports=[STANDARD, OURS], functions=list(functions))


def external(location: str, **fields) -> TensorProto:
    """Return weights of two numbers that lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture
def folder(tmp_path) -> Path:
    """A version's folder with files of data: eight bytes inside, outside and in a folder below."""
    folder = tmp_path / "m" / "1"
    (folder / "below").mkdir(parents=True)
    for path in (folder / "w.bin", folder / "below" / "w.bin", tmp_path / "m" / "outside.bin"):
        path.write_bytes(np.array([10, 20], np.float32).tobytes())
    (folder / "away.bin").symlink_to("../outside.bin")
    (folder / "here.bin").symlink_to("w.bin")
    (folder / "away").symlink_to("..")
    return folder


@pytest.fixture
def load(folder, settings):
    """A function that loads a model from the folder, as the service does."""

    def load(model: onnx.ModelProto | bytes, name: str = "model.onnx", **fields):
        (folder / name).write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        config = read_config(folder.parent / "config.pbtxt", "m")
        return load_version("m", folder, config, settings(**fields), read_manifest(folder))

    return load


@pytest.mark.parametrize(
    ("location", "fields"),
    [
        ("w.bin", {}),
        ("below/w.bin", {}),
        ("./w.bin", {"offset": 0, "length": 8}),
        ("here.bin", {}),
    ],
)
async def test_external_data_in_the_folder_is_loaded(load, location, fields):
    version = load(make_model([ADD], [external(location, **fields)]))
    inference = await version.batcher.infer({"x": np.ones((1, 2), np.float32)}, ["y"], 1, np.inf)
    version.close()

    assert inference.outputs[0].tolist() == [[11, 21]]


@pytest.mark.parametrize(
    ("location", "fields", "words"),
    [
        ("/etc/hostname", {}, "'/etc/hostname', which leaves the folder; name a file beside the graph"),
        ("../outside.bin", {}, "which leaves the folder"),
        ("below/../w.bin", {}, "which leaves the folder"),
        ("w.bin\0", {}, r"'w.bin\\x00', which leaves the folder"),
        ("away.bin", {}, "a link that leaves the folder; put the file itself there"),
        ("away/outside.bin", {}, "a link that leaves the folder"),
        ("", {}, "which is no file there"),
        ("none.bin", {}, "'none.bin', which is no file there; put it beside the graph, under that name"),
        ("below", {}, "which is no file there"),
        ("pipe", {}, "which is no file there"),
        ("*/_ORT_MEM_ADDR_/*", {"offset": 4096, "length": 8}, "which is no file there"),
        ("w.bin", {"offset": 4, "length": 8}, "bytes 4 to 12, but the file has 8; copy it again"),
        ("w.bin", {"offset": 9}, "bytes 9 to 9, but the file has 8"),
        ("w.bin", {"offset": -4, "length": 8}, "offset '-4', length '8'; use integers from 0"),
        ("w.bin", {"length": "1_0"}, "length '1_0'"),
        ("w.bin", {"length": "9" * 4000}, "length '9999"),
    ],
)
def test_external_data_elsewhere_is_refused(load, folder, location, fields, words):
    os.mkfifo(folder / "pipe")

    with pytest.raises(InvalidInput, match=rf"^model\.onnx cannot be loaded: tensor 'w' has its data in .*{words}"):
        load(make_model([ADD], [external(location, **fields)]))


def test_address_in_our_memory_is_no_place_for_data_even_where_a_file_has_that_name(load, folder):
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(bytes(8192))

    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load(make_model([ADD], [external("*/_ORT_MEM_ADDR_/*", offset=4096, length=8)]))


def branch(node: onnx.NodeProto, weights=()) -> onnx.GraphProto:
    return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info(node.output[0], 1, [2])], weights)


AWAY = external("../outside.bin")
SPARSE = onnx.SparseTensorProto(values=AWAY, indices=numpy_helper.from_array(np.array([0]), "i"), dims=[2])


@pytest.mark.parametrize(
    "model",
    [
        make_model([helper.make_node("Constant", [], ["w"], value=AWAY), ADD]),
        make_model([helper.make_node("Any", [], ["w"], values=[numpy_helper.from_array(np.ones(2)), AWAY]), ADD]),
        make_model([helper.make_node("If", ["x"], ["y"], then_branch=branch(ADD, [AWAY]))]),
        make_model([helper.make_node("Constant", [], ["w"], sparse_value=SPARSE), ADD]),
        make_model([ADD], sparse=[SPARSE]),
        make_model(
            [ADD],
            functions=[
                helper.make_function(
                    "my.ops", "F", [], ["w"], [helper.make_node("Constant", [], ["w"], value=AWAY)], [STANDARD]
                )
            ],
        ),
        make_model([ADD], [external("w.bin", location_again=0)]).SerializeToString()
        + make_model([ADD], [AWAY]).SerializeToString(),  # protobuf merges what comes twice
    ],
    ids=["constant", "list", "branch", "sparse constant", "sparse", "function", "twice"],
)
def test_external_data_is_found_wherever_a_tensor_can_be(load, model):
    with pytest.raises(InvalidInput, match=r"'\.\./outside\.bin', which leaves the folder"):
        load(model)


@pytest.mark.parametrize("most", [8, 100])
def test_graph_that_is_too_large_with_its_external_data_is_refused(load, folder, most):
    (folder / "w.bin").write_bytes(bytes(200))

    with pytest.raises(InvalidInput, match=rf"at most {most} are loaded; .* raise INFERENCE_MAX_MODEL_BYTES"):
        load(make_model([ADD], [external("w.bin", length=8), external("w.bin", length=8)]), max_model_bytes=most)


def test_shared_external_data_counts_once(folder):
    path = folder / "model.onnx"
    path.write_bytes(make_model([ADD], [external("w.bin"), external("w.bin")]).SerializeToString())

    check_graph(path, path.stat().st_size + 8)
    with pytest.raises(InvalidInput, match=rf"it has {path.stat().st_size + 8} bytes, external data included"):
        check_graph(path, path.stat().st_size + 7)


def test_weights_are_passed_over_unread(tmp_path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.write(message(7, message(5, message(9, b"", 2**43), 2**43 + 8), 2**43 + 16))
        file.truncate(file.tell() + 2**43)

    check_graph(path, 2**44)


FOREIGN = helper.make_node("Foo", ["x"], ["y"], name="a foo", domain="my.ops")
LOCAL = helper.make_function("my.ops", "Foo", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [STANDARD])
CALLS_BAR = helper.make_function(
    "my.ops", "Foo", ["x"], ["y"], [helper.make_node("Bar", ["x"], ["y"], domain="my.ops")], [STANDARD, OURS]
)
CALLS_ITSELF = helper.make_function("my.ops", "Foo", ["x"], ["y"], [FOREIGN], [STANDARD, OURS])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (make_model([FOREIGN]), "operator 'Foo' of domain 'my.ops' (node 'a foo')"),
        (make_model([helper.make_node("Foo", ["x"], ["y"])]), "operator 'Foo' of domain ''"),
        (make_model([helper.make_node("", ["x"], ["y"])]), "operator '' of domain ''"),
        (make_model([helper.make_node("relu", ["x"], ["y"])]), "operator 'relu' of domain ''"),
        (make_model([helper.make_node("If", ["x"], ["y"], then_branch=branch(FOREIGN))]), "operator 'Foo'"),
        (make_model([FOREIGN], functions=[CALLS_BAR]), "operator 'Bar' of domain 'my.ops'"),
        (
            make_model([helper.make_node(f"F{number}", ["x"], ["y"]) for number in range(100)]),
            "; operator 'F9' of domain '' (node ''); export",
        ),
    ],
)
def test_operator_that_onnx_runtime_does_not_have_is_named(load, model, words):
    with pytest.raises(InvalidInput) as caught:
        load(model)

    assert "ONNX Runtime" in caught.value.message
    assert words in caught.value.message
    assert "export the model with standard operators, or with these as functions in the same file" in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        make_model([FOREIGN], functions=[LOCAL]),
        make_model([helper.make_node("Relu", ["x"], ["y"])], functions=[CALLS_BAR]),  # nobody calls it
        make_model([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")]),
    ],
)
def test_operators_of_the_model_itself_are_known(load, model):
    load(model).close()


def test_function_that_calls_itself_is_refused(load):
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load(make_model([FOREIGN], functions=[CALLS_ITSELF]))


def message(number: int, content: bytes, size: int | None = None) -> bytes:
    """Return a field in wire format; it may lie about its size."""
    return varint(number << 3 | 2) + varint(len(content) if size is None else size) + content


def varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def nested(levels: int) -> bytes:
    """Return a model of graphs in nodes in graphs."""
    content = b""
    for _ in range(levels):
        content = message(1, message(5, message(6, content)))
    return message(7, content)


GOOD = make_model([ADD], [numpy_helper.from_array(np.ones(2, np.float32), "w")]).SerializeToString()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty; copy or export it again"),
        (GOOD[:-1], f"be read from byte .* of {len(GOOD) - 1} on; copy or export it again"),
        (GOOD + b"\x3a", f"from byte {len(GOOD) + 1} of {len(GOOD) + 1} on"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"it begins with b'version https://git-'"),
        ("<html>ä</html>".encode(), "it is no ONNX file"),
        (b"\x08\x08" * 1000, "it is no ONNX file"),
        (b"\x00\x00", "it is no ONNX file"),
        (b"\x3b" + GOOD, "it is no ONNX file"),  # a group
        (b"\x3a" + b"\xff" * 100, "it is no ONNX file"),
        (message(7, b"", 2**63), "it is no ONNX file"),
        (message(7, message(1, b"", 2)) + GOOD, "it is no ONNX file"),
        (message(7, message(1, message(4, b"\xff"))), "it is no ONNX file"),
        (message(7, message(1, message(4, b"a" * 5000))), "a name in it has 5,000 bytes; use at most 4,096"),
        (message(7, message(5, b"\x08\x80")) + b"\x00" * 9, "it is no ONNX file"),  # a number that leaves its message
        (nested(33), "nest deeper than 100"),
        (nested(20_000), "nest deeper than 100"),
    ],
)
def test_hostile_file_is_refused_in_a_sentence(load, content, words):
    with pytest.raises(InvalidInput, match=rf"^model\.onnx cannot be loaded: .*{words}") as caught:
        load(content)
    assert caught.value.reason == "INVALID_GRAPH"


def test_file_of_endless_fields_is_given_up(load, monkeypatch):
    monkeypatch.setattr(graph_check, "MAX_FIELDS", 1000)

    with pytest.raises(InvalidInput, match="it has more than 1,000 fields; export a smaller graph"):
        load(b"\x08\x00" * 1001)


EMPTY = message(1, b"") * 1001


@pytest.mark.parametrize(
    "content",
    [
        message(7, EMPTY),
        message(7, message(1, message(5, b"") * 1001)),
        message(7, message(13, message(2, message(1, message(2, EMPTY))))),  # never walked
        message(20, EMPTY),
        message(7, message(16, b"") * 1001),
    ],
    ids=["nodes", "attributes", "dimensions", "training", "metadata"],
)
def test_file_of_empty_messages_is_given_up(load, monkeypatch, content):
    monkeypatch.setattr(graph_check, "MAX_MESSAGES", 1000)

    with pytest.raises(InvalidInput, match="room for more than 1,000 messages beside its weights and texts; export"):
        load(content)


def test_weights_and_texts_are_no_messages(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_check, "MAX_MESSAGES", 100)
    long, many = "a" * 3000, np.arange(3000, dtype=np.float32)
    weights = [
        numpy_helper.from_array(many, "raw"),
        helper.make_tensor("floats", TensorProto.FLOAT, [3000], many),
        helper.make_tensor("longs", TensorProto.INT64, [3000], range(3000)),
        helper.make_tensor("strings", TensorProto.STRING, [3000], [b"a"] * 3000),
    ]
    node = helper.make_node("Add", ["x"] * 3000, ["y"], doc_string=long, f=[1.0] * 3000, i=[1] * 3000, s=["a"] * 3000)
    model = make_model([node], weights)
    for where in (model, model.graph, model.graph.node[0], model.graph.initializer[0]):
        where.doc_string = long
        where.metadata_props.add(key="k", value=long)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())

    check_graph(path, ANY)


@pytest.mark.parametrize(("kind", "plain"), graph_check.PLAIN_FIELDS.items())
def test_plain_fields_are_those_that_onnx_has(kind, plain):
    fields = getattr(onnx, kind).DESCRIPTOR.fields
    repeated = {field.number for field in fields if field.message_type is None and field.is_repeated}
    texts = {field.number for field in fields if field.type in (field.TYPE_STRING, field.TYPE_BYTES)}

    assert set(plain) == repeated | texts


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.integers(0, len(GOOD)).map(lambda size: GOOD[:size]),
        st.tuples(st.integers(0, len(GOOD)), st.binary(min_size=1, max_size=8)).map(
            lambda change: GOOD[: change[0]] + change[1] + GOOD[change[0] + len(change[1]) :]
        ),
        st.lists(st.tuples(st.integers(1, 30), st.binary(max_size=20)), max_size=20).map(
            lambda fields: message(7, b"".join(message(*field) for field in fields))
        ),
    )
)
def test_any_bytes_are_checked_or_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    refusal = None
    try:
        check_size(path, ANY)
        check_graph(path, ANY)
    except InvalidInput as error:
        refusal = error.message.encode()
    assert refusal is None or refusal.startswith(b"model.onnx cannot be loaded: ")


def test_graph_with_another_file_name_is_checked_too(load, folder):
    (folder.parent / "config.pbtxt").write_text('default_model_filename: "net.onnx"')

    with pytest.raises(InvalidInput, match=r"^net\.onnx cannot be loaded: ONNX Runtime"):
        load(make_model([FOREIGN]), "net.onnx")
