"""Options of a training run, and named sets of them that are known to train well."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.errors import InvalidInput, NotFound

Fraction = Annotated[float, Field(ge=0, le=1)]


class Augmentation(BaseModel):
    """Random changes of training images that leave the label true."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: bool = True
    """Mirror every image in every second epoch; which epochs is drawn per image."""
    translate: Annotated[int, Field(ge=0, le=8)] = 2
    """Largest shift in pixels, in either direction; the border is mirrored."""
    cutout: Annotated[int, Field(ge=0, le=24)] = 0
    """Side in pixels of a square that is blanked out at a random place; 0 is none."""


class TrainingOptions(BaseModel):
    """Everything that decides how a run goes, besides the samples; saved with the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    """Name of the recipe that these options started from."""
    dataset: str = "cifar10"
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.04
    """Share of the public training samples that no weight is fitted to."""
    network: str = "residual"
    network_options: dict[str, Any] = {}
    """Keyword arguments of the network's constructor."""
    epochs: Annotated[int, Field(ge=1, le=1000)]
    batch_size: Annotated[int, Field(ge=2, le=65536)] = 256
    learning_rate: Annotated[float, Field(gt=0, le=100)]
    """At its peak, for the mean loss of a batch."""
    bias_learning_rate_factor: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Shifts of batch norms learn this much faster than weights."""
    warm_up: Fraction = 0.2
    """Share of all steps in which the rate climbs; after it the rate falls linearly to zero."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augmentation: Augmentation = Augmentation()
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the moving average of weights that is evaluated and exported; 0 takes the last weights."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Threads for the arithmetic; 0 is one per core."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and gradients; `auto` is bfloat16 where the processor multiplies it natively."""


RECIPES: dict[str, TrainingOptions] = {
    recipe.recipe: recipe
    for recipe in (
        # The starter model: 92.8 % of the 10,000 test images with 1.05 M weights and 42 M multiplications per image.
        # The 48 epochs took 3,969 s on two cores of an EPYC, in bfloat16, while other work shared the cores; one run,
        # seed 0.
        TrainingOptions(
            recipe="fast",
            network_options={"widths": [48, 96, 192], "depths": [0, 1, 1]},
            epochs=48,
            learning_rate=0.4,
            bias_learning_rate_factor=8,
            label_smoothing=0.1,
            augmentation=Augmentation(flip=True, translate=4, cutout=8),
            average_decay=0.995,
        ),
        # A newcomer's first run: 77 % of the slice's 1,000 test images after 3 minutes on two busy cores; one run.
        TrainingOptions(
            recipe="quick",
            dataset="cifar10-slice",
            validation_fraction=0.1,
            network_options={"widths": [32, 64, 128], "depths": [0, 1, 1]},
            epochs=30,
            batch_size=128,
            learning_rate=0.2,
            bias_learning_rate_factor=8,
            label_smoothing=0.1,
            augmentation=Augmentation(flip=True, translate=3, cutout=6),
        ),
    )
}


def make_options(recipe: str, overrides: dict[str, Any] | None = None) -> TrainingOptions:
    """Return the options of a named recipe with *overrides* of single fields.

    Raises:
        NotFound: There is no such recipe.
        InvalidInput: An override is unknown or out of its range; the message lists every problem.
    """
    if recipe not in RECIPES:
        raise NotFound(f"recipe {recipe!r} is unknown; use one of {', '.join(RECIPES)}")
    fields = RECIPES[recipe].model_dump()
    overrides = overrides or {}
    if isinstance(overrides.get("augmentation"), dict):
        overrides = overrides | {"augmentation": fields["augmentation"] | overrides["augmentation"]}
    try:
        return TrainingOptions.model_validate(fields | overrides)
    except ValidationError as error:
        problems = error.errors()
        sentences = "; ".join(_sentence(".".join(map(str, p["loc"])), p["msg"], p["input"]) for p in problems)
        raise InvalidInput(sentences, field=".".join(map(str, problems[0]["loc"]))) from error


def _sentence(field: str, problem: str, value: object) -> str:
    if problem.startswith("Extra inputs"):
        return f"{field} is not an option of training; the options are {', '.join(TrainingOptions.model_fields)}"
    return f"{field} is {value!r}: {problem[0].lower()}{problem[1:]}"
