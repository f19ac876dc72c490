"""`config.pbtxt`: read, completed from the graph, and never ignored in silence."""

import pytest

from aimass.open_inference import model_config_pb2 as pb
from services.common.errors import InvalidInput, ServiceError, Unsupported
from services.inference.engine import TensorSpec
from services.inference.model_config import batch_options, complete_config, read_config, read_labels

INPUTS = (TensorSpec("image", "UINT8", (-1, 4, -1, 3)), TensorSpec("name", "BYTES", (-1, 1)))
OUTPUTS = (TensorSpec("scores", "FP32", (-1, 3)),)


@pytest.fixture
def config(tmp_path):
    """A function that reads a config text as that of model `m`."""

    def read(text: str) -> pb.ModelConfig | None:
        (tmp_path / "config.pbtxt").write_text(text)
        return read_config(tmp_path / "config.pbtxt", "m")

    return read


def complete(config: pb.ModelConfig | None, max_batch_size: int = 32) -> pb.ModelConfig:
    return complete_config(config, "m", INPUTS, OUTPUTS, max_batch_size)


def test_model_without_a_config_is_described_by_its_graph(tmp_path):
    config = complete(read_config(tmp_path / "config.pbtxt", "m"))

    assert (config.name, config.platform, config.backend) == ("m", "onnxruntime_onnx", "onnxruntime")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (32, True)
    assert [(each.name, each.data_type, [*each.dims]) for each in config.input] == [
        ("image", pb.TYPE_UINT8, [4, -1, 3]),
        ("name", pb.TYPE_STRING, [1]),
    ]
    assert [(each.name, each.data_type, [*each.dims]) for each in config.output] == [("scores", pb.TYPE_FP32, [3])]
    assert [group.count for group in config.instance_group] == [1]


def test_dims_keep_the_first_dimension_where_it_is_no_batch():
    config = complete(None, max_batch_size=0)

    assert not config.HasField("dynamic_batching")
    assert [[*each.dims] for each in config.input] == [[-1, 4, -1, 3], [-1, 1]]


def test_config_of_a_triton_repository_is_honoured(config):
    completed = complete(
        config("""
            name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 8
            input [ { name: "image" data_type: TYPE_UINT8 dims: [ 4, 4, 3 ] } ]
            output [ { name: "scores" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]
            instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_CPU } ]
            dynamic_batching { max_queue_delay_microseconds: 500 preferred_batch_size: [ 4 ] }
        """)
    )
    options = batch_options(completed, max_queue_samples=7)

    assert [*completed.input[0].dims] == [4, 4, 3]
    assert completed.input[1].name == "name"
    assert (options.max_batch_size, options.instances, options.max_queue_samples) == (8, 3, 7)
    assert options.max_queue_delay_seconds == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("max_batch_size: x", InvalidInput, r"config\.pbtxt of model 'm' cannot be read: 1:"),
        ("no_such_field: 1", InvalidInput, 'no field named "no_such_field"'),
        ('name: "other"', InvalidInput, "names model 'other', but its folder is 'm'"),
        ('backend: "python"', Unsupported, "backend 'python'; only onnxruntime is served"),
        ('platform: "tensorrt_plan"', Unsupported, "platform 'tensorrt_plan'"),
        ('default_model_filename: "net.onnx"', Unsupported, "default_model_filename 'net.onnx'"),
        ("ensemble_scheduling {} optimization {}", Unsupported, "optimization"),
        ("sequence_batching {}", Unsupported, "uses sequence_batching, which is not supported; remove it"),
        ("dynamic_batching { preserve_ordering: true }", Unsupported, r"dynamic_batching\.preserve_ordering"),
        ("max_batch_size: -1", InvalidInput, "negative"),
        ("instance_group [ { count: -2 } ]", InvalidInput, "negative"),
    ],
)
def test_config_that_cannot_be_honoured_is_refused(config, text, error, words):
    with pytest.raises(error, match=words):
        config(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('input [ { name: "pixels" } ]', "names tensor 'pixels'; the graph has image, name"),
        (
            'max_batch_size: 1 input [ { name: "image" data_type: TYPE_FP32 dims: [ 4, -1, 3 ] } ]',
            r"tensor 'image' TYPE_FP32 \[4, -1, 3\]; the graph has TYPE_UINT8",
        ),
        (
            'max_batch_size: 1 output [ { name: "scores" data_type: TYPE_FP32 dims: [ 4 ] } ]',
            r"\[4\]; the graph has TYPE_FP32 \[3\]",
        ),
        (
            'max_batch_size: 1 output [ { name: "scores" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]',
            r"\[-1, 3\]; the graph has TYPE_FP32 \[3\]",
        ),
        (
            'input [ { name: "image" data_type: TYPE_UINT8 dims: [ 3 ] reshape { shape: [ 1 ] } } ]',
            "uses reshape, which is not supported",
        ),
    ],
)
def test_config_that_contradicts_the_graph_is_refused(config, text, words):
    with pytest.raises(ServiceError, match=words):
        complete(config(text))


def test_labels_are_the_lines_of_the_named_file(config, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\nhäßlich\n", encoding="utf-8")
    named = config('output [ { name: "scores" label_filename: "labels.txt" } ]')

    assert read_labels(tmp_path, named) == ("cat", "häßlich")
    assert read_labels(tmp_path, complete(None)) == ()


@pytest.mark.parametrize("name", ["missing.txt", "../secret.txt", "/etc/passwd", "binary"])
def test_labels_come_from_a_text_file_in_the_models_own_folder(config, tmp_path, name):
    (tmp_path / "m").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "m" / "binary").write_bytes(b"\xff\xfe")
    named = config(f'output [ {{ name: "scores" label_filename: "{name}" }} ]')

    with pytest.raises(InvalidInput, match="label_filename"):
        read_labels(tmp_path / "m", named)
