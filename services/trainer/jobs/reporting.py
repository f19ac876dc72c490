"""Tells how far a run is: as lines for the service and its clients, as event files for TensorBoard."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from services.trainer.runs.folder import PROGRESS_FILE, RunFolder
from services.trainer.runs.progress import Progress, ProgressWriter, finite, read_epochs
from services.trainer.training.results import EpochResult, StepResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TENSORBOARD_FOLDER = "tensorboard"
STAGE_SECONDS = 0.2
"""A stage that gets further tells so at most this often."""


class Reporter:
    """Writes the progress of the run in *folder*."""

    def __init__(self, folder: RunFolder) -> None:
        path = folder / PROGRESS_FILE
        self._newest = read_epochs(path)
        self._lines = ProgressWriter(path)
        self._events_path = folder / TENSORBOARD_FOLDER
        self._events: SummaryWriter | None = None
        self._stage = ""
        self._told = 0.0

    def stage(self, name: str, fraction: float = 0.0, figures: Mapping[str, float] | None = None) -> None:
        """Tell that stage *name* has begun, or that *fraction* of it (0 to 1) is done."""
        now = time.time()
        if name == self._stage and 0 < fraction < 1 and now - self._told < STAGE_SECONDS:
            return
        self._stage, self._told = name, now
        self._lines.append(
            Progress(time=now, kind="stage", stage=name, fraction=fraction, figures=finite(figures or {}))
        )

    def step(self, result: StepResult) -> None:
        """Tell the figures of the last steps of training."""
        names = {"train_loss", "learning_rate", "images_per_second", "steps_per_second"}
        figures = finite(result.model_dump(include=names))
        self._lines.append(
            Progress(
                time=time.time(),
                kind="step",
                stage="train",
                fraction=result.step / result.steps,
                step=result.step,
                steps=result.steps,
                epoch=result.epoch,
                figures=figures,
                eta_seconds=(result.steps - result.step) / result.steps_per_second,
            )
        )
        self._scalars("step", figures, result.step)

    def epoch(self, result: EpochResult, epochs: int) -> None:
        """Tell the figures of an epoch whose checkpoint is safe; one that was told before is not told again."""
        if result.epoch <= self._newest:
            return
        self._newest = result.epoch
        figures = finite(result.model_dump(exclude={"epoch"}))
        self._lines.append(
            Progress(
                time=time.time(),
                kind="epoch",
                stage="train",
                fraction=result.epoch / epochs,
                epoch=result.epoch,
                figures=figures,
                eta_seconds=(epochs - result.epoch) * result.seconds,
            )
        )
        self._scalars("epoch", figures, result.epoch).flush()

    def _scalars(self, group: str, figures: Mapping[str, float], at: int) -> "SummaryWriter":
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds, and not every run has such figures

            self._events = SummaryWriter(str(self._events_path))
        for name, value in figures.items():
            self._events.add_scalar(f"{group}/{name}", value, at)
        return self._events

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        if self._events is not None:
            self._events.close()


class Silent(Reporter):
    """Tells nobody: of several processes of a run, one tells for all."""

    def __init__(self) -> None:
        """Open nothing."""

    def stage(self, name: str, fraction: float = 0.0, figures: Mapping[str, float] | None = None) -> None:
        """Do nothing."""

    def step(self, result: StepResult) -> None:
        """Do nothing."""

    def epoch(self, result: EpochResult, epochs: int) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close nothing."""
