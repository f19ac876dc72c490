"""What is asked of a run, and what came of it."""

import re
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from services.common.errors import InvalidInput
from services.common.manifest import Dataset
from services.trainer.options import (
    ConversionOptions,
    EvaluationOptions,
    InspectionOptions,
    RefitOptions,
    TrainingOptions,
    TuningOptions,
)

Options = TrainingOptions | TuningOptions | ConversionOptions | EvaluationOptions | InspectionOptions | RefitOptions

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RunKind(StrEnum):
    """What a run does."""

    TRAINING = "TRAINING"
    TUNING = "TUNING"
    CONVERSION = "CONVERSION"
    EVALUATION = "EVALUATION"
    INSPECTION = "INSPECTION"
    REFIT = "REFIT"

    @property
    def makes_model(self) -> bool:
        """Whether a run of this kind ends with a model."""
        return self not in (RunKind.EVALUATION, RunKind.INSPECTION)

    @property
    def options(self) -> type[Options]:
        """Return what may be set for it."""
        return _OPTIONS[self]


_OPTIONS: dict[RunKind, type[Options]] = {
    RunKind.TRAINING: TrainingOptions,
    RunKind.TUNING: TuningOptions,
    RunKind.CONVERSION: ConversionOptions,
    RunKind.EVALUATION: EvaluationOptions,
    RunKind.INSPECTION: InspectionOptions,
    RunKind.REFIT: RefitOptions,
}


class RunState(StrEnum):
    """Where a run is in its life."""

    QUEUED = "QUEUED"
    """Waits for its turn, or to go on from its checkpoint."""
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Whether nothing more happens unless somebody asks for it."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(_Document):
    """The whole of `run.json`: what was asked for. Never changes."""

    id: str
    kind: RunKind
    options: Options
    trusted: bool = False
    """Whether it was asked for on this machine's command line: only then may it name code of its own."""
    create_time: str
    """RFC 3339, UTC."""

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_kind(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and isinstance(fields.get("options"), dict) and "kind" in fields:
            return fields | {"options": RunKind(fields["kind"]).options.model_validate(fields["options"])}
        return fields


class Outcome(_Document):
    """The whole of `outcome.json`: how a run ended, the last thing that its process writes."""

    state: RunState
    """SUCCEEDED or FAILED."""
    reason: str = ""
    """Why it FAILED, as a sentence."""
    dataset: Dataset | None = None
    metrics: dict[str, float] = {}
    """Final figures, such as `test_accuracy`."""
    finish_time: str
    """RFC 3339, UTC."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.state not in (RunState.SUCCEEDED, RunState.FAILED):
            raise ValueError(f"no process ends {self.state}")
        return self


def check_run_id(run_id: str) -> str:
    """Return *run_id* where it can be the name of a run's folder.

    Raises:
        InvalidInput: It cannot.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise InvalidInput(
            f"run id {run_id[:100]!r} is not valid; use up to 128 letters, digits, '.', '_' and '-'", field="id"
        )
    return run_id
