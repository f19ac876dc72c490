"""A model's configuration: what `config.pbtxt` says, completed and checked against the graph."""

from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from aimass.open_inference import model_config_pb2 as pb
from services.common.errors import InvalidInput, Unsupported
from services.inference.batching import BatchOptions
from services.inference.engine import TensorSpec

Tensor = pb.ModelInput | pb.ModelOutput

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
_SUPPORTED = {
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "input",
    "output",
    "dynamic_batching",
    "instance_group",
    "default_model_filename",
}
_SUPPORTED_BATCHING = {"max_queue_delay_microseconds", "preferred_batch_size"}


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
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} of model {model!r} cannot be read: {error}") from error
    if config.name not in ("", model):
        raise InvalidInput(f"{path.name} names model {config.name!r}, but its folder is {model!r}")
    _refuse_unsupported(config, path.name)
    return config


def _refuse_unsupported(config: pb.ModelConfig, source: str) -> None:
    unknown = [field.name for field, _ in config.ListFields() if field.name not in _SUPPORTED]
    unknown += [
        f"dynamic_batching.{field.name}"
        for field, _ in config.dynamic_batching.ListFields()
        if field.name not in _SUPPORTED_BATCHING
    ]
    if config.backend not in ("", BACKEND) or config.platform not in ("", PLATFORM):
        raise Unsupported(
            f"{source} wants platform {config.platform!r} and backend {config.backend!r}; only {BACKEND} is served"
        )
    if config.default_model_filename not in ("", "model.onnx"):
        unknown.append(f"default_model_filename {config.default_model_filename!r}")
    if config.max_batch_size < 0 or any(group.count < 0 for group in config.instance_group):
        raise InvalidInput(f"{source} has a negative max_batch_size or instance count; use 0 or more")
    if unknown:
        raise Unsupported(f"{source} uses {', '.join(unknown)}, which is not supported; remove it")


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
    completed.default_model_filename = "model.onnx"
    if completed.max_batch_size and not takes_any_batch(inputs, outputs):
        raise InvalidInput(
            f"max_batch_size is {completed.max_batch_size}, but the graph does not leave the first dimension of all "
            "its inputs and outputs free; set max_batch_size to 0 or export the graph with a dynamic batch"
        )
    batched = completed.max_batch_size > 0
    for specs, declared, message in (
        (inputs, completed.input, pb.ModelInput),
        (outputs, completed.output, pb.ModelOutput),
    ):
        _complete_tensors(declared, specs, message, batched)
    if not completed.instance_group:
        completed.instance_group.add(name=model, count=1, kind=pb.ModelInstanceGroup.KIND_AUTO)
    return completed


def _complete_tensors(
    declared: MutableSequence[Any], specs: Sequence[TensorSpec], message: type[Tensor], batched: bool
) -> None:
    known = {spec.name: spec for spec in specs}
    for tensor in declared:
        if tensor.name not in known:
            raise InvalidInput(f"config names tensor {tensor.name!r}; the graph has {', '.join(known)}")
        _check_tensor(tensor, _tensor_config(known[tensor.name], message, batched))
    named = {tensor.name for tensor in declared}
    declared.extend(_tensor_config(spec, message, batched) for spec in specs if spec.name not in named)


def _tensor_config(spec: TensorSpec, message: type[Tensor], batched: bool) -> Tensor:
    datatype = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    dims = spec.shape[1:] if batched else spec.shape
    return message(name=spec.name, data_type=pb.DataType.Value(datatype), dims=dims)


def _check_tensor(tensor: Tensor, graph: Tensor) -> None:
    if tensor.HasField("reshape"):
        raise Unsupported(f"tensor {tensor.name!r} uses reshape, which is not supported; remove it")
    fits = len(tensor.dims) == len(graph.dims) and all(
        own == other or -1 in (own, other) for own, other in zip(tensor.dims, graph.dims, strict=True)
    )
    if tensor.data_type != graph.data_type or not fits:
        raise InvalidInput(
            f"config gives tensor {tensor.name!r} {pb.DataType.Name(tensor.data_type)} {list(tensor.dims)}; "
            f"the graph has {pb.DataType.Name(graph.data_type)} {list(graph.dims)} behind the batch dimension"
        )


def read_labels(folder: Path, config: pb.ModelConfig) -> tuple[str, ...]:
    """Return the labels that an output's `label_filename` names, one per line; none where it names no file.

    Args:
        folder: The model's, in which the file lies.
        config: Of the model.

    Raises:
        InvalidInput: The file is missing, lies elsewhere or is not text.
    """
    names = [output.label_filename for output in config.output if output.label_filename]
    if not names:
        return ()
    path = folder / names[0]
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise InvalidInput(f"label_filename {names[0]!r} is not a file in the model's folder")
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise InvalidInput(f"label_filename {names[0]!r} is not UTF-8 text") from error


def batch_options(config: pb.ModelConfig, max_queue_samples: int) -> BatchOptions:
    """Return how requests share runs under a completed *config*."""
    return BatchOptions(
        max_batch_size=config.max_batch_size,
        instances=sum(group.count or 1 for group in config.instance_group),
        max_queue_delay_seconds=config.dynamic_batching.max_queue_delay_microseconds / 1e6,
        max_queue_samples=max_queue_samples,
    )
