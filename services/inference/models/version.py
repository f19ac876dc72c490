"""One loaded version: its graph, checked, with a batcher before it."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import structlog

from aimass.open_inference import model_config_pb2
from services.common.errors import InvalidInput
from services.common.manifest import MANIFEST_FILE, Golden, Manifest
from services.common.tensors import numpy_dtype, to_raw
from services.inference.batching.batcher import Batcher
from services.inference.batching.statistics import Statistics
from services.inference.config.model_config import (
    batch_options,
    complete_config,
    graph_file,
    read_labels,
    reshapes_of,
    served_outputs,
    signature_of,
    takes_any_batch,
)
from services.inference.config.placement import Instances, placements
from services.inference.config.reshape import ReshapedRun
from services.inference.config.tuning import tuning_of
from services.inference.config.warmup import read_warmups
from services.inference.engine import BFLOAT16, ENDLESS, Arrays, OnnxModel, Signature, TensorSpec, gpu_count
from services.inference.models.graph_check import check_graph, check_size
from services.inference.settings import InferenceSettings

log = structlog.get_logger(__name__)


class LoadedVersion:
    """A version that can serve."""

    def __init__(
        self,
        manifest: Manifest,
        output_labels: Mapping[str, Sequence[str]],
        graph_digest: str,
        graphs: Sequence[OnnxModel],
        config: model_config_pb2.ModelConfig,
        max_queue_samples: int,
        shares_runs: bool,
    ) -> None:
        """Put a batcher before *graphs*, of which there is one for each instance; several may be the same."""
        self.manifest = manifest
        self.graph_digest = graph_digest
        self.config = config
        outputs = served_outputs(config, graphs[0].outputs)
        self.signature = signature_of(config, graphs[0].inputs, outputs)
        self.statistics = Statistics()
        self._users = 0
        self._closing = False
        self.output_labels = output_labels
        self.labels = manifest.labels or tuple(next(iter(output_labels.values()), ()))
        self.preprocess_digest = manifest.preprocess.digest if manifest.preprocess else ""
        run = graphs[0].run if len(set(graphs)) == 1 else Instances(graphs).run
        reshapes = reshapes_of(config)
        self.batcher = Batcher(
            ReshapedRun(run, reshapes, config.max_batch_size > 0) if reshapes else run,
            batch_options(config, max_queue_samples, len(graphs), shares_runs),
            self.statistics,
        )

    def labels_of(self, output: str) -> Sequence[str]:
        """Return the labels of an output's classes; none where it has none."""
        return self.manifest.labels or self.output_labels.get(output, ())

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the graph inside the block: a request that runs in parts must find it for the last of them too."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._close_when_unused()

    def close(self) -> None:
        """Let go of the graph once the requests that have begun are answered."""
        self._closing = True
        self._close_when_unused()

    def _close_when_unused(self) -> None:
        if self._closing and not self._users:
            self.batcher.close()


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest in *folder*; an empty one where a bare graph lies there.

    Raises:
        InvalidInput: It is malformed.
    """
    path = folder / MANIFEST_FILE
    return Manifest.from_json(path.read_bytes(), MANIFEST_FILE) if path.exists() else Manifest()


def load_version(
    model: str,
    folder: Path,
    config: model_config_pb2.ModelConfig | None,
    settings: InferenceSettings,
    manifest: Manifest,
) -> LoadedVersion:
    """Load, check and warm up the version in *folder*; blocking, so call it in a thread.

    Raises:
        InvalidInput: The graph or its manifest is broken, or it does not do what they say.
    """
    path = folder / graph_file(config)
    check_size(path, settings.max_model_bytes)
    graph_digest = _digest(path, manifest)
    check_graph(path, settings.max_model_bytes)
    graphs = _load_graphs(path, config, settings)
    graph, outputs = graphs[0], served_outputs(config, graphs[0].outputs)
    _check_sample_size(graph, settings.max_message_bytes)
    names = [spec.name for spec in outputs]
    apart: bool | None = None
    sample: Arrays = _sample(graph, 0)
    if takes_any_batch(graph.inputs, outputs):
        apart, sample = _keeps_samples_apart(graph, names, _sample_pairs(graph, manifest.golden))
    own = settings.max_batch_size if apart else 0
    completed = complete_config(config, model, graph.inputs, graph.outputs, own)
    signature = signature_of(completed, graph.inputs, outputs)
    _check_manifest(manifest, signature)
    if apart is None and completed.max_batch_size:
        warmups = _warmup_pairs(completed, signature, folder.parent, settings.max_message_bytes)
        apart, sample = _keeps_samples_apart(graph, names, warmups)
    if completed.max_batch_size and apart is False:
        raise InvalidInput(
            f"max_batch_size is {completed.max_batch_size}, but the graph's answer for one sample depends on the "
            "others in its batch; set max_batch_size to 0"
        )
    if completed.max_batch_size > 1 and apart is None:
        log.warning(
            "requests will not share runs, for nothing shows that the graph keeps samples apart; "
            "give it golden vectors of two samples, or two model_warmup that differ",
            model=model,
        )
    largest = settings.max_message_bytes // (1 + sum(array.nbytes for array in sample.values()))
    for each in dict.fromkeys(graphs):
        _warm_up(each, sample, min(completed.max_batch_size, largest) if apart else 0)
        _run_warmups(each, completed, signature, folder.parent, settings.max_message_bytes)
    if manifest.golden is not None:
        check_golden(graph, manifest.golden)
    labels = read_labels(folder.parent, completed)
    return LoadedVersion(
        manifest, labels, graph_digest, graphs, completed, settings.max_queue_samples, shares_runs=apart is True
    )


def _digest(path: Path, manifest: Manifest) -> str:
    """Return the digest of the graph's file, which has to be that of the manifest."""
    with path.open("rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if manifest.graph and manifest.graph.sha256 != digest:
        raise InvalidInput(
            f"{path.name} has digest {digest}, but {MANIFEST_FILE} states {manifest.graph.sha256}; "
            "publish it again, for it was damaged or exchanged"
        )
    return digest


def _load_graphs(
    path: Path, config: model_config_pb2.ModelConfig | None, settings: InferenceSettings
) -> list[OnnxModel]:
    """Return the graph of each instance; those on the same device share one."""
    wanted = placements(config, settings.device, gpu_count())
    tuning = tuning_of(config)
    graphs = {
        place: OnnxModel(path, place.device, settings.threads, tuning, place.gpu) for place in dict.fromkeys(wanted)
    }
    return [graphs[place] for place in wanted]


def _run_warmups(
    graph: OnnxModel,
    config: model_config_pb2.ModelConfig,
    signature: Signature,
    folder: Path,
    max_bytes: int,
) -> None:
    """Run what the config wants run before the first caller comes; its data lies below *folder*, the model's.

    Raises:
        InvalidInput: The graph fails on it.
    """
    run = ReshapedRun(graph.try_out, reshapes_of(config), config.max_batch_size > 0)
    names = [spec.name for spec in signature.outputs]
    for warmup in read_warmups(config, signature, folder, max_bytes):
        try:
            for _ in range(warmup.count):
                run(warmup.inputs, names)
        except Exception as error:  # ONNX Runtime has a class of its own for each kind
            _raise_if_endless(error)
            raise InvalidInput(
                f"the graph fails on model_warmup {warmup.name!r}; correct one of them: {error}"
            ) from error


def _check_manifest(manifest: Manifest, signature: Signature) -> None:
    spec = manifest.preprocess
    if spec is not None:
        tensors = {tensor.name: tensor for tensor in signature.inputs}
        wanted = tensors.get(spec.input)
        if wanted is None or len(tensors) != 1:
            raise InvalidInput(
                f"the preprocess spec makes input {spec.input!r} alone, and the graph takes {list(tensors)}; "
                "give both the same one input"
            )
        fits = len(wanted.shape) == 4 and all(
            own in (-1, made) for own, made in zip(wanted.shape[1:], spec.shape, strict=True)
        )
        if not fits or wanted.datatype != spec.datatype:
            raise InvalidInput(
                f"the preprocess spec makes {spec.datatype} {[-1, *spec.shape]}, and the graph takes {wanted.datatype} "
                f"{list(wanted.shape)}; change one of them to fit the other"
            )
    classes = signature.outputs[0].shape[-1:] if len(signature.outputs) == 1 else ()
    if manifest.labels and classes and classes[0] not in (-1, len(manifest.labels)):
        raise InvalidInput(
            f"{MANIFEST_FILE} has {len(manifest.labels)} labels; give {classes[0]}, one for each score of the graph"
        )


def _check_sample_size(graph: OnnxModel, most: int) -> None:
    """Refuse a graph of which a sample, where free dimensions count as 1, has more bytes than a message.

    Raises:
        InvalidInput: There are more than *most*, so no request could carry them, nor can a trial.
    """
    size = 0
    for spec in graph.inputs:
        size += math.prod(abs(side) for side in spec.shape) * numpy_dtype(spec.datatype).itemsize
        if size > most:
            raise InvalidInput(
                f"input {spec.name!r} has shape {list(spec.shape)}: one sample is larger than a message may be, "
                f"{most:,} bytes; export a smaller input or raise INFERENCE_MAX_MESSAGE_BYTES"
            )


def _sample(graph: OnnxModel, seed: int) -> dict[str, np.ndarray]:
    """Return one sample for each input; free dimensions have size 1."""
    random = np.random.default_rng(seed)
    return {spec.name: _values(random, spec, seed) for spec in graph.inputs}


def _values(random: np.random.Generator, spec: TensorSpec, seed: int) -> np.ndarray:
    shape = [abs(side) for side in spec.shape]
    dtype = numpy_dtype(spec.datatype)
    if dtype.kind == "f" or dtype == BFLOAT16:
        return random.random(shape, np.float32).astype(dtype)
    if spec.datatype == "UINT8":
        return random.integers(0, 256, shape, dtype)
    if dtype.hasobject:
        return np.full(shape, str(seed), dtype)
    return np.full(shape, seed, dtype)  # small, since integers are often indices


def _sample_pairs(graph: OnnxModel, golden: Golden | None) -> Iterator[tuple[Arrays, Arrays]]:
    """Yield two made-up samples, and the first two of the golden vectors, which suit the graph whatever it takes."""
    yield _sample(graph, 0), _sample(graph, 1)
    inputs = {tensor.name: tensor.to_array() for tensor in golden.inputs} if golden is not None else {}
    if inputs and all(array.ndim for array in inputs.values()):
        first, second = ({name: array[row : row + 1] for name, array in inputs.items()} for row in range(2))
        yield first, second


def _warmup_pairs(
    config: model_config_pb2.ModelConfig, signature: Signature, folder: Path, max_bytes: int
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yield a sample each of warm-up requests that follow each other; those of one request are all the same."""
    reshapes = reshapes_of(config)
    samples = (
        {
            name: reshapes[name].apply(name, array[:1], batched=True) if name in reshapes else array[:1]
            for name, array in warmup.inputs.items()
        }
        for warmup in read_warmups(config, signature, folder, max_bytes)
    )
    yield from pairwise(samples)


def _keeps_samples_apart(
    graph: OnnxModel, names: Sequence[str], pairs: Iterable[tuple[Arrays, Arrays]]
) -> tuple[bool | None, Arrays]:
    """Run two samples alone and together: a batch dimension that isn't one shows, whatever the graph declares.

    Return that and a sample which shows it. None where no pair suits the graph, or only equal samples do, which prove
    nothing.

    Raises:
        InvalidInput: The graph does not come to an end.
    """
    for first, second in pairs:
        apart = _are_kept_apart(graph, names, first, second) if _differ(first, second) else None
        if apart is not None:
            return apart, first
    return None, _sample(graph, 0)


def _differ(first: Arrays, second: Arrays) -> bool:
    """Whether two samples can share a batch and are not the same."""
    pairs = [(array, second[name]) for name, array in first.items()]
    fit = all(one.shape == other.shape and len(one) == 1 for one, other in pairs)
    return fit and (not pairs or any(to_raw(one) != to_raw(other) for one, other in pairs))


def _are_kept_apart(graph: OnnxModel, names: Sequence[str], first: Arrays, second: Arrays) -> bool | None:
    try:
        alone = [graph.try_out(first, names), graph.try_out(second, names)]
    except Exception as error:  # whatever it is, ONNX Runtime has a class of its own for each
        _raise_if_endless(error)
        return None
    try:
        together = graph.try_out({name: np.concatenate([first[name], second[name]]) for name in first}, names)
    except Exception:
        return False
    return all(
        output.shape[:1] == (2,) and all(_close(alone[row][position], output[row : row + 1]) for row in range(2))
        for position, output in enumerate(together)
    )


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype == BFLOAT16:  # 8 bits of precision
        return bool(np.allclose(one.astype(np.float32), other.astype(np.float32), rtol=3e-2, atol=1e-2, equal_nan=True))
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=1e-2, atol=1e-3, equal_nan=True))


def _warm_up(graph: OnnxModel, sample: Arrays, max_batch_size: int) -> None:
    """Run a full batch of *sample*, so that the first caller pays for no allocation.

    Raises:
        InvalidInput: The graph, which ran on less, fails.
    """
    if max_batch_size:
        sample = {name: np.repeat(array, max_batch_size, 0) for name, array in sample.items()}
    try:
        graph.try_out(sample, [spec.name for spec in graph.outputs])
    except Exception as error:
        _raise_if_endless(error)
        if max_batch_size:
            raise InvalidInput(
                f"the graph fails on a batch of {max_batch_size}; set max_batch_size lower: {error}"
            ) from error
        # Made-up values don't suit every graph: this one starts cold.


def _raise_if_endless(error: Exception) -> None:
    if isinstance(error, InvalidInput) and error.reason == ENDLESS:
        raise error


def check_golden(graph: OnnxModel, golden: Golden) -> None:
    """Run the golden vectors.

    Raises:
        InvalidInput: An output differs from the recorded one by more than the tolerance.
    """
    inputs = {tensor.name: tensor.to_array() for tensor in golden.inputs}
    expected = {tensor.name: tensor.to_array() for tensor in golden.outputs}
    try:
        outputs = graph.try_out(inputs, list(expected))
    except Exception as error:
        raise InvalidInput(
            f"the golden vectors do not fit the graph; make them again: {error}", reason="GOLDEN_MISMATCH"
        ) from error
    for (name, wanted), output in zip(expected.items(), outputs, strict=True):
        if wanted.dtype.hasobject or output.dtype.hasobject:
            raise InvalidInput(f"golden output {name!r} is text, which cannot be compared; leave it out")
        if output.shape != wanted.shape:
            raise InvalidInput(
                f"golden output {name!r} has shape {list(wanted.shape)}, but the graph gave {list(output.shape)}; "
                "make it again"
            )
        difference = float(np.max(np.abs(output.astype(np.float64) - wanted.astype(np.float64)), initial=0.0))
        if not difference <= golden.absolute_tolerance:
            raise InvalidInput(
                f"golden output {name!r} differs by {difference:.3g}, and at most {golden.absolute_tolerance:g} is "
                "allowed; export the graph or make the vectors again",
                reason="GOLDEN_MISMATCH",
            )
