"""`config.pbtxt`: read, completed from the graph, and never ignored in silence."""

import math

import onnxruntime as ort
import pytest

from aimass.open_inference import model_config_pb2 as pb
from services.common.errors import InvalidInput, ServiceError, Unsupported
from services.inference.batching.waiting import QueuePolicy
from services.inference.config.model_config import (
    batch_options,
    complete_config,
    read_config,
    read_labels,
    served_outputs,
    signature_of,
    versions_to_load,
)
from services.inference.config.placement import Placement, placements
from services.inference.config.tuning import tuning_of
from services.inference.engine import TensorSpec

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
    options = batch_options(completed, max_queue_samples=7, instances=len(placements(completed, "auto", gpus=0)))

    assert [*completed.input[0].dims] == [4, 4, 3]
    assert completed.input[1].name == "name"
    assert (options.max_batch_size, options.instances, options.max_queue_samples) == (8, 3, 7)
    assert options.max_queue_delay_seconds == pytest.approx(0.0005)
    assert options.preferred_batch_sizes == {4}


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("max_batch_size: x", InvalidInput, r"config\.pbtxt of model 'm' cannot be read; correct it: 1:"),
        ("no_such_field: 1", InvalidInput, 'no field named "no_such_field"'),
        ('name: "other"', InvalidInput, "names model 'other', but its folder is 'm'; leave name out"),
        ('backend: "python"', Unsupported, "backend 'python'; use backend onnxruntime"),
        ('platform: "tensorrt_plan"', Unsupported, "platform 'tensorrt_plan'"),
        ('default_model_filename: "../net.onnx"', InvalidInput, "name a file of the version's folder"),
        ("ensemble_scheduling {}", Unsupported, "uses ensemble_scheduling, which is not supported; remove it"),
        ("sequence_batching {}", Unsupported, "uses sequence_batching, which is not supported; remove it"),
        ("response_cache { enable: true }", Unsupported, r"uses response_cache\.enable"),
        ("model_transaction_policy { decoupled: true }", Unsupported, r"model_transaction_policy\.decoupled"),
        ("optimization { cuda { graphs: true } }", Unsupported, r"optimization\.cuda\.graphs"),
        (
            'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "tensorrt" } ] } }',
            Unsupported,
            r"optimization\.execution_accelerators\.gpu_execution_accelerator\.name",
        ),
        ('input [ { name: "image" allow_ragged_batch: true } ]', Unsupported, r"input\.allow_ragged_batch"),
        ('cc_model_filenames { key: "9.0" value: "x" }', Unsupported, "cc_model_filenames"),
        ('instance_group [ { host_policy: "x" } ]', Unsupported, r"instance_group\.host_policy"),
        ('parameters { key: "turbo" value { string_value: "1" } }', Unsupported, "sets parameters 'turbo'"),
        ("optimization { graph { level: 3 } }", InvalidInput, "level is 3; use one of 0, -1, 1, 2"),
        ('parameters { key: "intra_op_thread_count" value { string_value: "-1" } }', InvalidInput, "from 0 to 1024"),
        ('parameters { key: "execution_mode" value { string_value: "2" } }', InvalidInput, "'2'; use one of 0, 1"),
        ('parameters { key: "enable_mem_arena" value { string_value: "yes" } }', InvalidInput, "'yes'; use 1 or 0"),
        ("max_batch_size: 2 dynamic_batching { preferred_batch_size: [ 3 ] }", InvalidInput, r"\[3\]; use 1 to max_b"),
        (
            "dynamic_batching { priority_levels: 2 }",
            InvalidInput,
            "default_priority_level 0; use 1 to priority_levels 2",
        ),
        ("dynamic_batching { priority_levels: 2000 default_priority_level: 1 }", InvalidInput, "use at most 1000"),
        (
            "dynamic_batching { priority_queue_policy { key: 1 value {} } }",
            InvalidInput,
            r"priority_queue_policy for \[1\]",
        ),
        (
            "dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: DELAY } }",
            InvalidInput,
            "preserve_ordering with several priority_levels or timeout_action DELAY",
        ),
        ("version_policy { specific { versions: [ 0 ] } }", InvalidInput, "use integers from 1"),
        ("max_batch_size: -1", InvalidInput, "negative number, max_batch_size -1 or"),
        ("instance_group [ { count: -2 } ]", InvalidInput, r"instance counts \[-2\]; use 0 or more"),
        ("instance_group [ { count: 2147483647 } ]", InvalidInput, "of 2147483647 instances in all; use at most 1024"),
        ("instance_group [ { count: 1024 }, {} ]", InvalidInput, "of 1025 instances in all; use at most 1024"),
        ("instance_group [ { count: 600 gpus: [ 0, 1 ] } ]", InvalidInput, "of 1200 instances in all"),
        ("model_warmup [ { count: 4294967295 } ]", InvalidInput, "of 4294967295 runs in all; use at most 1000"),
        ("model_warmup [ { count: 1000 }, {} ]", InvalidInput, "of 1001 runs in all; use at most 1000"),
    ],
)
def test_config_that_cannot_be_honoured_is_refused(config, text, error, words):
    with pytest.raises(error, match=words):
        config(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('input [ { name: "pixels" } ]', "names tensor 'pixels'; use one that the graph has: image, name"),
        (
            'max_batch_size: 1 input [ { name: "image" data_type: TYPE_FP32 dims: [ 4, -1, 3 ] } ]',
            r"tensor 'image' TYPE_FP32 \[4, -1, 3\]; use the graph's TYPE_UINT8",
        ),
        (
            'max_batch_size: 1 output [ { name: "scores" data_type: TYPE_FP32 dims: [ 4 ] } ]',
            r"\[4\]; use the graph's TYPE_FP32 \[3\]",
        ),
        (
            'max_batch_size: 1 output [ { name: "scores" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]',
            r"\[-1, 3\]; use the graph's TYPE_FP32 \[3\]",
        ),
        (
            'max_batch_size: 1 input [ { name: "image" data_type: TYPE_UINT8 dims: [ 3 ] reshape { shape: [ 1 ] } } ]',
            r"\[1\] after its reshape; use the graph's TYPE_UINT8 \[4, -1, 3\]",
        ),
        (
            'max_batch_size: 1 output [ { name: "scores" dims: [ 2, 2 ] reshape { shape: [ 3 ] } } ]',
            r"dims \[2, 2\] and reshape \[3\], which hold different numbers",
        ),
        ('max_batch_size: 1 output [ { name: "scores" dims: [ -1 ] } ]', r"\[-1\]; use the graph's TYPE_FP32 \[3\]"),
        ('output [ { name: "scores" }, { name: "scores" } ]', "'scores' twice; describe it once"),
    ],
)
def test_config_that_contradicts_the_graph_is_refused(config, text, words):
    with pytest.raises(ServiceError, match=words):
        complete(config(text))


def test_labels_are_the_lines_of_the_named_file(config, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\nhäßlich\n", encoding="utf-8")
    named = config('output [ { name: "scores" label_filename: "labels.txt" } ]')

    assert read_labels(tmp_path, named) == {"scores": ("cat", "häßlich")}
    assert read_labels(tmp_path, complete(None)) == {}


@pytest.mark.parametrize("name", ["missing.txt", "../secret.txt", "/etc/passwd", "binary"])
def test_labels_come_from_a_text_file_in_the_models_own_folder(config, tmp_path, name):
    (tmp_path / "m").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "m" / "binary").write_bytes(b"\xff\xfe")
    named = config(f'output [ {{ name: "scores" label_filename: "{name}" }} ]')

    with pytest.raises(InvalidInput, match="label_filename"):
        read_labels(tmp_path / "m", named)


@pytest.mark.parametrize(
    "text",
    [
        "response_cache { enable: false }",
        "model_transaction_policy { decoupled: false }",
        "optimization {}",
        'input [ { name: "image" optional: false } ]',
    ],
)
def test_setting_that_says_what_holds_anyway_is_no_reason_to_refuse(config, text):
    assert config(text) is not None


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", None),
        ("version_policy { latest {} }", {9}),
        ("version_policy { latest { num_versions: 2 } }", {3, 9}),
        ("version_policy { all {} }", {1, 3, 9}),
        ("version_policy { specific { versions: [ 1, 4 ] } }", {1}),
    ],
)
def test_version_policy_says_what_is_loaded(config, policy, versions):
    assert versions_to_load(config(policy), [9, 1, 3]) == versions
    assert versions_to_load(None, [9, 1, 3]) is None


def test_what_a_tensor_leaves_open_comes_from_the_graph_and_only_named_outputs_are_served(config):
    outputs = (*OUTPUTS, TensorSpec("hidden", "FP32", (-1, 7)))
    text = 'max_batch_size: 4 input [ { name: "image" dims: [ 4, 8, 3 ] } ] output [ { name: "scores" } ]'
    completed = complete_config(config(text), "m", INPUTS, outputs, 32)
    signature = signature_of(completed, INPUTS, served_outputs(completed, outputs))

    assert signature.inputs == (TensorSpec("image", "UINT8", (-1, 4, 8, 3)), INPUTS[1])
    assert signature.outputs == OUTPUTS
    assert completed.HasField("dynamic_batching")


def test_queue_policies_are_read_by_level(config):
    options = batch_options(
        config("""
            max_batch_size: 4
            dynamic_batching {
                priority_levels: 3 default_priority_level: 2
                default_queue_policy { max_queue_size: 5 }
                priority_queue_policy { key: 1 value {
                    timeout_action: DELAY default_timeout_microseconds: 1500 allow_timeout_override: true
                } }
            }
        """),
        max_queue_samples=7,
    )

    assert [options.queue.level_of(priority) for priority in (0, 1, 2, 3, 4)] == [2, 1, 2, 3, 2]
    assert options.queue.policy_of(1) == QueuePolicy(0.0015, delays=True, allows_override=True)
    assert options.queue.policy_of(3) == QueuePolicy(math.inf, max_requests=5)


def test_options_of_the_onnxruntime_backend_are_read(config):
    texts = {"intra_op_thread_count": "3", "inter_op_thread_count": "2", "execution_mode": "1", "enable_mem_arena": "0"}
    texts |= {"enable_mem_pattern": "false", "gpu_mem_limit": "1000", "cudnn_conv_algo_search": "1"}
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' for key, text in texts.items()]
    tuning = tuning_of(config("optimization { graph { level: 1 } } " + " ".join(lines)))

    assert (tuning.intra_op_threads, tuning.inter_op_threads, tuning.parallel) == (3, 2, True)
    assert (tuning.memory_arena, tuning.memory_pattern) == (False, False)
    assert tuning.optimization == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    assert dict(tuning.cuda_options) == {"gpu_mem_limit": "1000", "cudnn_conv_algo_search": "HEURISTIC"}


CPU, FIRST, SECOND = Placement("cpu"), Placement("cuda", 0), Placement("cuda", 1)


@pytest.mark.parametrize(
    ("groups", "device", "gpus", "expected"),
    [
        ("", "auto", 0, [CPU]),
        ("", "auto", 2, [FIRST, SECOND]),
        ("", "cpu", 2, [CPU]),
        ("", "cuda", 0, [Placement("cuda")]),  # refused when it is loaded
        ("instance_group [ { kind: KIND_CPU count: 2 } ]", "auto", 1, [CPU, CPU]),
        (
            "instance_group [ { kind: KIND_GPU count: 2 gpus: [ 1 ] }, { kind: KIND_CPU } ]",
            "auto",
            2,
            [SECOND] * 2 + [CPU],
        ),
        ("instance_group [ { gpus: [ 1 ] } ]", "auto", 1, [CPU]),
    ],
)
def test_instances_run_where_their_group_says(config, groups, device, gpus, expected):
    assert list(placements(config(groups), device, gpus)) == expected


@pytest.mark.parametrize(
    ("group", "device", "gpus", "words"),
    [
        ("kind: KIND_GPU gpus: [ 1 ]", "auto", 1, r"gpus \[1\]; 1 GPUs were found"),
        ("kind: KIND_GPU", "auto", 0, "0 GPUs were found"),
        ("kind: KIND_GPU", "cpu", 1, "INFERENCE_DEVICE is cpu"),
        ("kind: KIND_CPU gpus: [ 0 ]", "auto", 1, "KIND_CPU and gpus"),
        ("kind: KIND_MODEL", "auto", 1, "KIND_MODEL, which is not supported"),
    ],
)
def test_group_that_cannot_be_placed_is_refused(config, group, device, gpus, words):
    with pytest.raises(ServiceError, match=words):
        placements(config(f"instance_group [ {{ {group} }} ]"), device, gpus)
