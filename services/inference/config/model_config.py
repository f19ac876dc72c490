"""A model's configuration: what `config.pbtxt` says, completed and checked against the graph."""

import math
from collections.abc import Iterator, MutableSequence, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message

from aimass.open_inference import model_config_pb2 as pb
from services.common.errors import InvalidInput, Unsupported
from services.common.manifest import GRAPH_FILE
from services.inference.batching.batcher import BatchOptions
from services.inference.batching.waiting import QueueOptions, QueuePolicy
from services.inference.config.reshape import Reshape
from services.inference.config.tuning import tuning_of
from services.inference.engine import Signature, TensorSpec

Tensor = pb.ModelInput | pb.ModelOutput

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
MAX_PRIORITY_LEVELS = 1000
MAX_INSTANCES = 1024
"""Each is a thread; more than a machine has processors gain nothing."""
MAX_WARMUP_RUNS = 1000
"""Of all warm-up requests together: nobody can change the model while they run."""
_SUPPORTED = {
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "default_model_filename",
    "input.name",
    "input.data_type",
    "input.format",
    "input.dims",
    "input.reshape.shape",
    "output.name",
    "output.data_type",
    "output.dims",
    "output.reshape.shape",
    "output.label_filename",
    "version_policy.latest.num_versions",
    "version_policy.specific.versions",
    "optimization.graph.level",
    "instance_group.name",
    "instance_group.kind",
    "instance_group.count",
    "instance_group.gpus",
    "parameters",
    "model_warmup.name",
    "model_warmup.batch_size",
    "model_warmup.count",
    "model_warmup.inputs",
}
"""By name with a dot for each message; all of `dynamic_batching` is supported besides."""
_SWITCHES = {"sequence_batching", "ensemble_scheduling"}
"""Messages that ask for something by being there, even empty."""


def read_config(path: Path, model: str) -> pb.ModelConfig | None:
    """Return the configuration in *path*, or None where there is no such file.

    Raises:
        InvalidInput: The file is malformed, or it is another model's.
        Unsupported: It asks for something that is not done here; nothing is ignored silently.
    """
    if not path.exists():
        return None
    try:
        config = text_format.Parse(path.read_text(), pb.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise InvalidInput(f"{path.name} of model {model!r} cannot be read; correct it: {error}") from error
    check_config(config, model, path.name)
    return config


def check_config(config: pb.ModelConfig, model: str, source: str) -> None:
    """Refuse a configuration that cannot be honoured whatever the graph.

    Args:
        config: As it came.
        model: That it is for.
        source: Name of the file or field that it came in.

    Raises:
        InvalidInput: It contradicts itself, or it is another model's.
        Unsupported: It asks for something that is not done here.
    """
    if config.name not in ("", model):
        raise InvalidInput(f"{source} names model {config.name!r}, but its folder is {model!r}; leave name out")
    if config.backend not in ("", BACKEND) or config.platform not in ("", PLATFORM):
        raise Unsupported(
            f"{source} wants platform {config.platform!r} and backend {config.backend!r}; use backend {BACKEND}, "
            "the only one"
        )
    unknown = sorted({name for name in _set_fields(config) if not _is_supported(name)})
    if unknown:
        raise Unsupported(f"{source} uses {', '.join(unknown)}, which is not supported; remove it")
    if config.max_batch_size < 0 or any(group.count < 0 for group in config.instance_group):
        counts = [group.count for group in config.instance_group]
        raise InvalidInput(
            f"{source} has a negative number, max_batch_size {config.max_batch_size} or one of the instance counts "
            f"{counts}; use 0 or more"
        )
    _check_counts(config, source)
    _check_file_name(config.default_model_filename, source)
    _check_batching(config, source)
    tuning_of(config)
    if any(number < 1 for number in config.version_policy.specific.versions):
        raise InvalidInput(
            f"{source} has version_policy.specific.versions {list(config.version_policy.specific.versions)}; "
            "use integers from 1"
        )


def _is_supported(name: str) -> bool:
    return name in _SUPPORTED or name.startswith("dynamic_batching.")


def _set_fields(message: Message, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all that is set and not what its absence would mean."""
    for field, value in message.ListFields():
        name = prefix + field.name
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if field.message_type is None or is_map or name in _SWITCHES:
            yield name
            continue
        for each in [value] if isinstance(value, Message) else value:
            yield from _set_fields(each, f"{name}.")


def _check_counts(config: pb.ModelConfig, source: str) -> None:
    instances = sum((group.count or 1) * max(len(group.gpus), 1) for group in config.instance_group)
    if instances > MAX_INSTANCES:
        raise InvalidInput(
            f"{source} has instance_group counts of {instances} instances in all; use at most {MAX_INSTANCES}"
        )
    runs = sum(warmup.count or 1 for warmup in config.model_warmup)
    if runs > MAX_WARMUP_RUNS:
        raise InvalidInput(f"{source} has model_warmup counts of {runs} runs in all; use at most {MAX_WARMUP_RUNS}")


def _check_file_name(name: str, source: str) -> None:
    if name and (PurePosixPath(name).name != name or name in (".", "..")):
        raise InvalidInput(f"{source} has default_model_filename {name!r}; name a file of the version's folder")


def _check_batching(config: pb.ModelConfig, source: str) -> None:
    batching = config.dynamic_batching
    sizes = [size for size in batching.preferred_batch_size if not 1 <= size <= config.max_batch_size]
    if sizes:
        raise InvalidInput(
            f"{source} has preferred_batch_size {sizes}; use 1 to max_batch_size {config.max_batch_size}"
        )
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels > MAX_PRIORITY_LEVELS:
        raise InvalidInput(f"{source} has priority_levels {levels}; use at most {MAX_PRIORITY_LEVELS}")
    if (levels or default) and not 1 <= default <= levels:
        raise InvalidInput(f"{source} has default_priority_level {default}; use 1 to priority_levels {levels}")
    strange = [level for level in batching.priority_queue_policy if not 1 <= level <= levels]
    if strange:
        raise InvalidInput(f"{source} has priority_queue_policy for {strange}; use 1 to priority_levels {levels}")
    if batching.preserve_ordering and (levels > 1 or any(policy.timeout_action for policy in _policies(batching))):
        raise InvalidInput(
            f"{source} has preserve_ordering with several priority_levels or timeout_action DELAY, which change the "
            "order; remove one of them"
        )


def _policies(batching: pb.ModelDynamicBatching) -> list[pb.ModelQueuePolicy]:
    return [batching.default_queue_policy, *batching.priority_queue_policy.values()]


def versions_to_load(config: pb.ModelConfig | None, versions: Sequence[int]) -> set[int] | None:
    """Return which of *versions* the config's version policy serves; None where it has none.

    Versions that it names and that are not there are left out, as in Triton.
    """
    policy = config.version_policy if config is not None else pb.ModelVersionPolicy()
    match policy.WhichOneof("policy_choice"):
        case "latest":
            return set(sorted(versions)[-(policy.latest.num_versions or 1) :])
        case "all":
            return set(versions)
        case "specific":
            return set(versions) & set(policy.specific.versions)
        case _:
            return None


def graph_file(config: pb.ModelConfig | None) -> str:
    """Return the name of the graph's file in a version's folder."""
    return (config.default_model_filename if config is not None else "") or GRAPH_FILE


def served_outputs(config: pb.ModelConfig | None, outputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return those of a graph's *outputs* that are served: those that the config names, or all."""
    named = {output.name for output in config.output} if config is not None else set()
    return tuple(spec for spec in outputs if not named or spec.name in named)


def takes_any_batch(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether all tensors of a graph declare a free first dimension."""
    return all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))


def complete_config(
    config: pb.ModelConfig | None,
    model: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch_size: int,
) -> pb.ModelConfig:
    """Fill what *config* leaves open from the graph.

    Args:
        config: As read, or None.
        model: Name of the model.
        inputs: Of the graph.
        outputs: Of the graph.
        max_batch_size: Largest batch where the config names none; 0 where the graph must not be batched.

    Raises:
        InvalidInput: The config contradicts the graph.
    """
    completed = pb.ModelConfig()
    if config is not None:
        completed.CopyFrom(config)
    else:
        completed.max_batch_size = max_batch_size
        if max_batch_size:
            completed.dynamic_batching.SetInParent()
    completed.name, completed.platform, completed.backend = model, PLATFORM, BACKEND
    completed.default_model_filename = graph_file(config)
    if completed.max_batch_size and not takes_any_batch(inputs, outputs):
        raise InvalidInput(
            f"max_batch_size is {completed.max_batch_size}, but the graph does not leave the first dimension of all "
            "its inputs and outputs free; set max_batch_size to 0 or export the graph with a dynamic batch"
        )
    if completed.max_batch_size > 1:
        completed.dynamic_batching.SetInParent()  # as the backend does, where no other scheduling is wanted
    batched = completed.max_batch_size > 0
    _complete_tensors(completed.input, inputs, pb.ModelInput, batched)
    _complete_tensors(completed.output, outputs, pb.ModelOutput, batched)
    if not completed.instance_group:
        completed.instance_group.add(name=model, count=1, kind=pb.ModelInstanceGroup.KIND_AUTO)
    return completed


def _complete_tensors(
    declared: MutableSequence[Any], specs: Sequence[TensorSpec], message: type[Tensor], batched: bool
) -> None:
    known = {spec.name: spec for spec in specs}
    names = [tensor.name for tensor in declared]
    for tensor in declared:
        if tensor.name not in known:
            raise InvalidInput(f"config names tensor {tensor.name!r}; use one that the graph has: {', '.join(known)}")
        if names.count(tensor.name) > 1:
            raise InvalidInput(f"config names tensor {tensor.name!r} twice; describe it once")
        _complete_tensor(tensor, _tensor_config(known[tensor.name], message, batched))
    if message is pb.ModelInput or not declared:  # outputs that the config leaves out are not served
        declared.extend(_tensor_config(spec, message, batched) for spec in specs if spec.name not in names)


def _tensor_config(spec: TensorSpec, message: type[Tensor], batched: bool) -> Tensor:
    datatype = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    dims = spec.shape[1:] if batched else spec.shape
    return message(name=spec.name, data_type=pb.DataType.Value(datatype), dims=dims)


def _complete_tensor(tensor: Tensor, graph: Tensor) -> None:
    """Fill datatype and dims from the graph where they are left out, and check them where they are not."""
    tensor.data_type = tensor.data_type or graph.data_type
    if not tensor.dims and not tensor.HasField("reshape"):
        tensor.dims.extend(graph.dims)
    if any(side == 0 or side < -1 for side in tensor.dims) and list(tensor.dims) != list(graph.dims):
        raise InvalidInput(f"config gives tensor {tensor.name!r} dims {list(tensor.dims)}; use 1 or more, or -1")
    dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    fits = len(dims) == len(graph.dims) and all(other in (-1, own) for own, other in zip(dims, graph.dims, strict=True))
    if tensor.data_type != graph.data_type or not fits:
        raise InvalidInput(
            f"config gives tensor {tensor.name!r} {pb.DataType.Name(tensor.data_type)} {list(dims)}"
            f"{' after its reshape' if tensor.HasField('reshape') else ''}; use the graph's "
            f"{pb.DataType.Name(graph.data_type)} {list(graph.dims)}, without the batch dimension, or leave both out"
        )
    if tensor.HasField("reshape"):
        Reshape(tuple(tensor.dims), tuple(tensor.reshape.shape)).check(tensor.name)


def reshapes_of(config: pb.ModelConfig) -> dict[str, Reshape]:
    """Return the reshapes of a completed *config* by tensor."""
    return {
        tensor.name: Reshape(tuple(tensor.dims), tuple(tensor.reshape.shape))
        for tensor in _tensors(config)
        if tensor.HasField("reshape")
    }


def _tensors(config: pb.ModelConfig) -> list[Tensor]:
    return [*config.input, *config.output]


def signature_of(config: pb.ModelConfig, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
    """Return what requests and responses hold under a completed *config*: its dims, in the order of the graph."""
    batch = (-1,) if config.max_batch_size else ()
    dims = {tensor.name: (*batch, *tensor.dims) for tensor in _tensors(config)}
    return Signature(
        tuple(TensorSpec(spec.name, spec.datatype, dims[spec.name]) for spec in inputs),
        tuple(TensorSpec(spec.name, spec.datatype, dims[spec.name]) for spec in outputs),
        config.max_batch_size,
    )


def read_labels(folder: Path, config: pb.ModelConfig) -> dict[str, tuple[str, ...]]:
    """Return the labels that each output's `label_filename` names, one per line, by output.

    Args:
        folder: The model's, in which the files lie.
        config: Of the model.

    Raises:
        InvalidInput: A file is missing, lies elsewhere or is not text.
    """
    return {
        output.name: _read_label_file(folder, output.label_filename)
        for output in config.output
        if output.label_filename
    }


def _read_label_file(folder: Path, name: str) -> tuple[str, ...]:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise InvalidInput(
            f"label_filename {name!r} is not a file in the model's folder; put it there, or leave label_filename out"
        )
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise InvalidInput(f"label_filename {name!r} is not UTF-8 text; save it as UTF-8") from error


def batch_options(
    config: pb.ModelConfig, max_queue_samples: int, instances: int = 1, shares_runs: bool = True
) -> BatchOptions:
    """Return how requests wait under a completed *config*, and share the runs of so many *instances* if they may."""
    batching = config.dynamic_batching
    return BatchOptions(
        max_batch_size=config.max_batch_size,
        shares_runs=shares_runs,
        instances=instances,
        max_queue_delay_seconds=batching.max_queue_delay_microseconds / 1e6,
        max_queue_samples=max_queue_samples,
        preferred_batch_sizes=frozenset(batching.preferred_batch_size),
        preserve_ordering=batching.preserve_ordering,
        queue=QueueOptions(
            levels=batching.priority_levels or 1,
            default_level=batching.default_priority_level or 1,
            default_policy=_default_policy(batching),
            policies={level: _queue_policy(policy) for level, policy in batching.priority_queue_policy.items()},
        ),
    )


def _default_policy(batching: pb.ModelDynamicBatching) -> QueuePolicy:
    if not batching.HasField("default_queue_policy"):
        return QueuePolicy(allows_override=True)  # nobody says that a request may not give up earlier
    return _queue_policy(batching.default_queue_policy)


def _queue_policy(policy: pb.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_seconds=policy.default_timeout_microseconds / 1e6 or math.inf,
        delays=policy.timeout_action == pb.ModelQueuePolicy.DELAY,
        allows_override=policy.allow_timeout_override,
        max_requests=policy.max_queue_size,
    )
