"""What may be set for a run. Every value is checked here and saved with the run."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.common.errors import InvalidInput

NETWORKS = ("residual", "alexnet", "alexnet-small")
"""Networks of the suite, as the option `network` names them."""
Share = Annotated[float, Field(ge=0, le=1)]
Options = TypeVar("Options", bound=BaseModel)


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_by_name=True)


class Augmentation(_Options):
    """Random changes of training images that leave the label true, or mix labels as they mix images."""

    flip: bool = True
    """Mirror every image in every second epoch; which epochs is drawn per image."""
    translate: Annotated[int, Field(ge=0, le=64)] = 2
    """Largest shift in pixels, in either direction; the border is mirrored."""
    cutout: Annotated[int, Field(ge=0, le=256)] = 0
    """Side in pixels of a square that is blanked out at a random place; 0 is none."""
    policy: Literal["none", "auto", "rand", "trivial"] = "none"
    """Of torchvision: AutoAugment for CIFAR-10, RandAugment or TrivialAugmentWide, drawn for each image."""
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Alpha of the Beta distribution that shares are drawn from when images are blended; 0 is off."""
    cutmix: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Alpha in the same way for pasting a rectangle of another image; with both on, a coin decides for each batch."""


class Distillation(_Options):
    """Learning from another model's answers beside the labels (Hinton et al. 2015)."""

    teacher: str = ""
    """`run:<id>`, or `<model>@<version>` as inference serves it; empty is none."""
    weight: Share = 0.9
    """Share of the loss that the teacher's answers have; the labels have the rest."""
    temperature: Annotated[float, Field(ge=1, le=100)] = 4.0
    """Softens both answers, so that the teacher's second thoughts count."""


class Pruning(_Options):
    """Channels that are removed, with all that hangs on them, before the training that repairs it."""

    speedup: Annotated[float, Field(ge=1, le=50)] = 1.0
    """How many times fewer multiply-adds the network shall have; 1 is no pruning."""
    steps: Annotated[int, Field(ge=1, le=100)] = 1
    """Rounds in which the channels go, each judged by the weights that are left."""


class Workers(_Options):
    """Processes that train one model together, on this machine."""

    count: Annotated[int, Field(ge=1, le=64)] = 1
    """They share each batch: batch_size must be a multiple of it."""
    synchronisation: Literal["every-step", "local-steps"] = "every-step"
    """`every-step` averages gradients; with `local-steps` each worker goes on alone and sends what it has learnt to
    an outer optimiser, which does not wait for the others (DiLoCo, Douillard et al. 2023). Each of its steps takes an
    n-th of batch_size, so that n workers do as many steps one after the other as with `every-step`."""
    local_steps: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Steps between two exchanges. Few keep the workers near each other; more cost less, where a large network is
    exchanged or steps are short, as on a GPU."""
    outer_learning_rate: Annotated[float, Field(gt=0, le=10)] = 1.0
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """1 and 0 average the workers' weights; DiLoCo has 0.7 and 0.9 with hundreds of local steps."""
    staleness_power: Annotated[float, Field(ge=0, le=10)] = 1.0
    """A contribution that has not seen k exchanges of others counts (1 + k) to the power of minus this (Xie et al.
    2019). With 1, n workers that are equally fast count an n-th each."""


class Pixels(_Options):
    """How pictures of any size become the network's pixels; see `PreprocessSpec`. Sets of fixed size need none."""

    width: Annotated[int, Field(ge=8, le=1024)] = 64
    height: Annotated[int, Field(ge=8, le=1024)] = 64
    mode: Literal["stretch", "crop", "letterbox"] = "crop"
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"


class TrainingOptions(_Options):
    """Everything that decides how a training run goes, besides the samples."""

    recipe: str
    """Name of the recipe that these options started from."""

    # What is learnt from
    dataset: Annotated[str, Field(min_length=1)] = "cifar10"
    """`cifar10`, `cifar10-slice`, `model:<name>` for the samples imported for a model, `snapshot:<digest>` for those
    that the loop has pinned, or the path of a folder.
    `model:<name>` is kept as `model:<name>@<last>`: the samples up to the newest, by number, when the run was created;
    what is imported later does not change it. `model:<name>@<after>..<last>` are only those above a number, and
    `model:<name>@<after>..` those up to the newest."""
    pixels: Pixels = Pixels()
    """Of sets whose pictures have sizes of their own; a model's set has the spec of the model."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.04
    """Share of the training samples that no weight is fitted to."""
    test_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of a set without a test part of its own that is only measured on."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Draws those shares, by the contents of the samples; models that are to be compared need the same."""
    clean: bool = False
    """Leave out what the data report calls undecodable or a duplicate; without it, such samples stop the run."""

    # What learns
    network: str = "residual"
    """`residual`, `alexnet`, `alexnet-small`, `torchvision:<model>` or, from this machine's command line only,
    `<module>:<factory>`."""
    network_options: dict[str, Any] = {}
    """Keyword arguments of the network's constructor."""
    start_from: str = ""
    """Weights to begin with: `run:<id>`, or `<model>@<version>` of a run on this machine; empty is random weights.
    What that run has learnt is not judged on."""
    freeze: tuple[str, ...] = ()
    """Modules that do not learn, by the beginnings of their names; their buffers stay as they are too."""
    replay: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Samples of `start_from`'s own set, drawn uniformly, that are learnt again beside one sample of the new set, which
    does not have them; the labels must be the same. A set that has only grown has them all: name its new samples alone,
    as `model:<name>@<after>..`, to replay old ones beside them."""
    pruning: Pruning = Pruning()
    distillation: Distillation = Distillation()

    # How it learns
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, le=100, validation_alias=AliasChoices("learning_rate", "lr"))]
    """At its peak, for the mean loss of a batch."""
    bias_learning_rate_factor: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Shifts of batch norms learn this much faster than weights."""
    schedule: Literal["constant", "step", "linear", "cosine", "one-cycle"] = "linear"
    """How the rate falls after the warm-up: not at all, in steps, straight or along a cosine to zero; `one-cycle`
    climbs along a cosine too and moves the momentum against the rate (Smith 2018)."""
    warm_up: Share = 0.2
    """Share of all steps in which the rate climbs."""
    step_epochs: Annotated[int, Field(ge=1, le=10_000)] = 30
    """Schedule `step`: epochs between two steps."""
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Schedule `step`: what the rate is multiplied by."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD; AdamW's first beta."""
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    gradient_clip: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Largest norm of all gradients together; 0 is any."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augmentation: Augmentation = Augmentation()
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the moving average of weights that is evaluated and exported; 0 takes the weights."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's weights become the model; the best is the one with the highest validation accuracy."""
    early_stopping: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Epochs without a better validation accuracy after which the run ends; 0 is never."""
    views: Literal[1, 2, 6] = 1
    """Averaged for each answer, when measured and when served: the image, its mirror image, and both shifted twice."""

    # Where and how it is computed
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    deterministic: bool = False
    """Use only algorithms that give the same bits each time; slower on a GPU. On the CPU it is always so."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of activations and gradients; `auto` is bfloat16 where the processor multiplies it natively."""
    channels_last: bool = True
    """Lay images out with their channels together, which convolutions prefer."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads for the arithmetic; 0 is one per core."""
    workers: Workers = Workers()
    log_every: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Steps between two entries of the progress."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.replay != 1.0 and not self.start_from:
            raise ValueError("replay needs start_from, whose set is replayed")
        return self


class Range(_Options):
    """Values that a search draws one option from: an interval, or a list."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    """Draw the logarithm uniformly, as suits rates and decays."""
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ValueError("give low and high, or choices")
        if not self.choices and not (self.low is not None and self.high is not None and self.low < self.high):
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and not (self.low or 0) > 0:
            raise ValueError(f"log needs a low above 0, not {self.low}")
        return self

    def admits(self, value: Any) -> bool:
        """Whether *value* can be drawn."""
        if self.choices:
            return value in self.choices
        return (
            isinstance(value, int | float)
            and self.low is not None
            and self.high is not None
            and self.low <= value <= self.high
        )


_OF_ALL_TRIALS = frozenset(
    {
        "dataset",
        "pixels",
        "validation_fraction",
        "test_fraction",
        "split_seed",
        "clean",
        "start_from",
        "replay",
        "seed",
        "workers",
    }
)
"""Options that all trials share, or they could not be compared: most of them decide on the samples."""


class TuningOptions(_Options):
    """A search for better options of training."""

    training: TrainingOptions
    """What the search starts from; its first trial is this."""
    space: Annotated[dict[str, Range], Field(min_length=1)]
    """What is searched, by the dotted names of options, such as `learning_rate` or `augmentation.cutout`."""
    trials: Annotated[int, Field(ge=1, le=10_000)] = 20
    pruner: Literal["none", "median", "halving"] = "median"
    """Ends bad trials early: those below the median of the earlier ones at the same epoch, or successive halving."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.training.workers.count > 1:
            raise InvalidInput(
                f"workers.count is {self.training.workers.count}, and trials are trained by one process each; set it "
                "to 1",
                field="workers.count",
            )
        for name, values in self.space.items():
            if name.partition(".")[0] in _OF_ALL_TRIALS:
                raise InvalidInput(
                    f"space has {name}, which all trials share to be comparable; set it in the options that the search "
                    "starts from",
                    field="space",
                )
            for value in values.choices or (values.low, values.high):
                self.trial({name: value})
        return self

    def trial(self, values: dict[str, Any]) -> TrainingOptions:
        """Return the options of a trial with *values* for the dotted names that are searched.

        Raises:
            InvalidInput: A name is not an option, or a value is out of its range.
        """
        fields = self.training.model_dump()
        for name, value in values.items():
            group = fields
            *outer, last = name.split(".")
            for part in outer:
                group = group.setdefault(part, {})
                if not isinstance(group, dict):
                    raise InvalidInput(f"{name} is not an option: {part} has no parts", field="space")
            group[last] = value
        return parse_options(TrainingOptions, fields)


class ConversionOptions(_Options):
    """Another arithmetic for a trained model."""

    source: str
    """`run:<id>`, or `<model>@<version>` of a run on this machine."""
    precision: Literal["int8", "float16"] = "int8"
    calibration_samples: Annotated[int, Field(ge=1, le=100_000)] = 512
    """Training images that show the ranges of activations; int8 only."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=0, le=1024)] = 0


class EvaluationOptions(_Options):
    """A measurement of a trained model."""

    source: str
    """`run:<id>`, or `<model>@<version>` of a run on this machine."""
    dataset: str = ""
    """As in training; its test part is measured on. Empty is the source's own."""
    robustness: bool = True
    """Also with noise, blur, other brightness, JPEG artefacts, and under attack (PGD)."""
    samples: Annotated[int, Field(ge=1)] = 2_000
    """Of the test part, for robustness and attack; the figures themselves use all of it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=0, le=1024)] = 0


class RefitOptions(_Options):
    """A new last layer for a trained model, fitted to the features that the layers before it make."""

    source: str
    """`run:<id>`, or `<model>@<version>` of a run on this machine."""
    dataset: Annotated[str, Field(min_length=1)]
    """As in training; its labels and pixels must be the source's."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of each label that is spread over all classes."""
    pull: Annotated[float, Field(ge=0, le=1000)] | None = None
    """How strongly the new layer is held to the source's; absent, a fifth of the samples tells."""
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Steps, each one pass over all features."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Draws the images on which the new graph is proved, and those that tell the pull."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0


class InspectionOptions(_Options):
    """A search for likely wrong labels, by models that have not seen the samples that they judge."""

    training: TrainingOptions
    """How each of these models is trained."""
    folds: Annotated[int, Field(ge=2, le=20)] = 4
    """Models; each judges its share of the training samples and learns from the rest."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        training = self.training
        if training.workers.count > 1:
            raise InvalidInput(
                f"workers.count is {training.workers.count}, and the models of an inspection are trained by one "
                "process each; set it to 1",
                field="workers.count",
            )
        if training.start_from:
            raise InvalidInput(
                f"start_from is {training.start_from!r}, which may have learnt the samples that are inspected, and the "
                "models of an inspection must not have seen what they judge; leave it empty",
                field="start_from",
            )
        if training.distillation.teacher:
            raise InvalidInput(
                f"distillation.teacher is {training.distillation.teacher!r}, and the models of an inspection learn "
                "from labels alone, which are what is judged; leave it empty",
                field="distillation.teacher",
            )
        if training.pruning.speedup > 1:
            raise InvalidInput(
                f"pruning.speedup is {training.pruning.speedup:g}, and the models of an inspection are thrown away, so "
                "that nothing is gained by it; set it to 1",
                field="pruning.speedup",
            )
        return self


def parse_options(kind: type[Options], fields: dict[str, Any]) -> Options:
    """Return *fields* as *kind*.

    Raises:
        InvalidInput: A field is unknown or out of its range; the message lists every problem.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problems = error.errors()
        sentences = "; ".join(_sentence(kind, p["loc"], p["msg"], p["input"]) for p in problems)
        raise InvalidInput(sentences, field=".".join(map(str, problems[0]["loc"]))) from error


def _sentence(kind: type[BaseModel], path: tuple[int | str, ...], problem: str, value: object) -> str:
    name = ".".join(map(str, path))
    if problem.startswith("Extra inputs"):
        known = _names(kind)
        nearest = get_close_matches(name, known, n=1, cutoff=0.5)
        meant = f"did you mean {nearest[0]}?" if nearest else f"the options are {', '.join(known)}"
        return f"{name} is not an option; {meant}"
    if problem == "Field required":
        return f"{name} is missing; give it a value"
    problem = problem.removeprefix("Value error, ")
    return f"{name} is {value!r}: {problem[0].lower()}{problem[1:]}" if name else problem


def _names(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted names of all options of *kind*, those of its groups among them."""
    names: list[str] = []
    for name, field in kind.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            names += _names(group, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
