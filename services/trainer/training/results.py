"""What is told of a training run while it goes on."""

from pydantic import BaseModel, ConfigDict


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is safe."""


class EpochResult(BaseModel):
    """What one pass over the training samples came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    """From 1."""
    learning_rate: float
    """At the end of the epoch."""
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    images_per_second: float
    """While training; measuring and saving are left out."""


class StepResult(BaseModel):
    """What the last steps came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Steps done, over all epochs."""
    steps: int
    """Steps of the whole run."""
    epoch: int
    """The present one, from 1."""
    train_loss: float
    """Mean over the steps since the last report."""
    learning_rate: float
    images_per_second: float
    steps_per_second: float
