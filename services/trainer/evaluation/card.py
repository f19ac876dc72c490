"""The model card: what a version is, where it comes from and how good it is, as one document."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from services.common.manifest import Dataset, Manifest
from services.trainer.evaluation.figures import Evaluation
from services.trainer.evaluation.latency import Latency
from services.trainer.evaluation.robustness import Robustness
from services.trainer.options import TrainingOptions

INTENDED_USE = (
    "Sorting photographs that look like the data it was trained on into one of its labels, with a person or a second "
    "check behind decisions that matter."
)
LIMITS = (
    "It answers with one of its labels whatever the picture shows; it knows no “none of these”.",
    "The figures hold for pictures like those it was measured on; other cameras, framing or light change them.",
    "Whoever can choose the pixels can choose the answer: do not rely on it against people who want to mislead it.",
)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSize(_Document):
    """What a network weighs."""

    parameters: int
    multiply_adds: int
    """For one image, in convolutions and fully connected layers; see `networks.counting`."""


class Input(_Document):
    """What a model is given."""

    name: str
    shape: tuple[int, ...]
    """Of one image."""
    datatype: str
    color: str
    fit: Literal["stretch", "crop", "letterbox"]
    """How pictures of other sizes become that."""


class Provenance(_Document):
    """How a model was trained."""

    run_id: str
    recipe: str
    dataset: Dataset
    changed_options: dict[str, Any]
    """Those that differ from the defaults, by their dotted names."""
    seconds: float
    software: dict[str, str]


class Headline(_Document):
    """What two versions are compared by."""

    title: str
    version: int | None = None
    samples: int
    accuracy: float
    accuracy_low: float
    """Lower end of the 95 % Wilson interval."""
    accuracy_high: float
    calibration_error: float
    dataset_digest: str | None = None
    """Of what it was trained and measured on."""
    size_bytes: int | None = None
    network_size: NetworkSize | None = None
    latency: Latency | None = None


class ModelCard(_Document):
    """The whole of `card.json`."""

    format: Literal[1] = 1
    title: str
    version: int | None = None
    create_time: str | None = None
    """Of the model, RFC 3339, UTC."""
    summary: str = ""
    """What the model is, in a sentence or two of whoever made it."""
    labels: tuple[str, ...]
    input: Input | None = None
    network: str | None = None
    network_size: NetworkSize | None = None
    size_bytes: int | None = None
    """Of `model.onnx`."""
    graph_sha256: str | None = None
    training: Provenance | None = None
    evaluation: Evaluation
    robustness: Robustness | None = None
    latency: Latency | None = None
    history: dict[int, dict[str, float]] = {}
    """Figures by epoch."""
    parent: Headline | None = None
    intended_use: str = INTENDED_USE
    limits: tuple[str, ...] = LIMITS

    @property
    def headline(self) -> Headline:
        """Return what a child's card says of this model."""
        return Headline(
            title=self.title,
            version=self.version,
            samples=self.evaluation.samples,
            accuracy=self.evaluation.accuracy,
            accuracy_low=self.evaluation.accuracy_low,
            accuracy_high=self.evaluation.accuracy_high,
            calibration_error=self.evaluation.calibration_error,
            dataset_digest=self.training.dataset.digest if self.training else None,
            size_bytes=self.size_bytes,
            network_size=self.network_size,
            latency=self.latency,
        )

    def to_json(self) -> str:
        """Return the document as it is written to `card.json`."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"


def make_card(
    evaluation: Evaluation,
    *,
    title: str = "Image classifier",
    version: int | None = None,
    summary: str = "",
    manifest: Manifest | None = None,
    network_size: NetworkSize | None = None,
    robustness: Robustness | None = None,
    latency: Latency | None = None,
    history: Mapping[int, Mapping[str, float]] | None = None,
    parent: ModelCard | None = None,
    intended_use: str = INTENDED_USE,
    limits: Sequence[str] = LIMITS,
) -> ModelCard:
    """Put a card together; what is not given is left out of it.

    Args:
        evaluation: On the test samples.
        title: Name of the model.
        version: Number under which it is served.
        summary: What it is, in a sentence or two.
        manifest: Its `model.json`.
        network_size: Parameters and multiply-adds.
        robustness: From `measure_robustness`.
        latency: From `measure_latency`.
        history: Figures by epoch.
        parent: Card of the version that this one came from.
        intended_use: What it is for, in a sentence.
        limits: Where not to trust it, a sentence each.
    """
    known = manifest or Manifest()
    options = known.training.options if known.training else {}
    return ModelCard(
        title=title,
        version=version,
        create_time=known.create_time,
        summary=summary,
        labels=known.labels or evaluation.labels,
        input=_input(known),
        network=options.get("network"),
        network_size=network_size,
        size_bytes=known.graph.size_bytes if known.graph else None,
        graph_sha256=known.graph.sha256 if known.graph else None,
        training=_provenance(known),
        evaluation=evaluation,
        robustness=robustness,
        latency=latency,
        history={epoch: dict(figures) for epoch, figures in (history or {}).items()},
        parent=parent.headline if parent else None,
        intended_use=intended_use,
        limits=tuple(limits),
    )


def changed_options(options: Mapping[str, Any], kind: type[BaseModel] = TrainingOptions) -> dict[str, Any]:
    """Return those of *options* that are not the defaults of *kind*, by their dotted names.

    One without a default, or that *kind* does not know (any more), counts as changed.
    """
    changed: dict[str, Any] = {}
    for name, value in options.items():
        field = kind.model_fields.get(name)
        group = field.annotation if field else None
        if isinstance(value, Mapping) and isinstance(group, type) and issubclass(group, BaseModel):
            inner = changed_options(value, group)
            changed.update({f"{name}.{key}": each for key, each in inner.items()})
        elif field is None or field.is_required() or not _equal(value, field.get_default(call_default_factory=True)):
            changed[name] = value
    return changed


def _equal(value: Any, default: Any) -> bool:
    """Whether *value*, from JSON, is *default*."""
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(value) == default
    return bool(value == default)


def _input(manifest: Manifest) -> Input | None:
    spec = manifest.preprocess
    if spec is None:
        return None
    return Input(name=spec.input, shape=spec.shape, datatype=spec.datatype, color=spec.color, fit=spec.mode)


def _provenance(manifest: Manifest) -> Provenance | None:
    training = manifest.training
    if training is None:
        return None
    changed = changed_options(training.options)
    changed.pop("recipe", None)  # has a line of its own
    return Provenance(
        run_id=training.run_id,
        recipe=training.recipe,
        dataset=training.dataset,
        changed_options=changed,
        seconds=training.seconds,
        software=training.software,
    )
