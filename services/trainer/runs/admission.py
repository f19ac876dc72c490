"""What a run needs before it is created, so that no epoch is spent on what cannot work."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.common.errors import Conflict, InvalidInput, NotFound
from services.trainer.options import (
    ConversionOptions,
    EvaluationOptions,
    InspectionOptions,
    TrainingOptions,
    TuningOptions,
)
from services.trainer.recipes import make_options
from services.trainer.runs.record import Options, RunState
from services.trainer.runs.store import RunStore

NAMED_DATASETS = ("cifar10", "cifar10-slice")
MODEL_DATASET = "model:"
MODULES_OF_OURS = "torchvision"
"""The one module whose factories a request may name."""
_RUN = "run:"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}@[1-9][0-9]{0,17}")


class Admission:
    """Looks at options before a run gets them.

    Args:
        store: The runs that others may start from.
        data_roots: The folders that a request may name data sets in.
        trusted: Whether requests come from this machine's command line. They may name code and any folder.
    """

    def __init__(self, store: RunStore, data_roots: Sequence[Path], *, trusted: bool = False) -> None:
        self._store = store
        self._data_roots = data_roots
        self.trusted = trusted

    def admit(self, options: Options) -> Options:
        """Return *options* with the data set as its process finds it.

        Raises:
            InvalidInput: They name code or a folder that a request may not, or a source that is none.
            NotFound: A data set or a run that they name does not exist.
            Conflict: A run that they name has made no model.
        """
        if isinstance(options, TuningOptions | InspectionOptions):
            return options.model_copy(update={"training": self.admit(options.training)})
        for field, source in _sources(options):
            self._check_source(field, source)
        if isinstance(options, TrainingOptions):
            self._check_network(options.network)
        if isinstance(options, ConversionOptions) or not options.dataset:
            return options
        return options.model_copy(update={"dataset": self._find_dataset(options.dataset)})

    def _check_network(self, network: str) -> None:
        module, factory, _ = network.partition(":")
        if factory and module != MODULES_OF_OURS and not self.trusted:
            raise InvalidInput(
                f"network {network!r} names code, which only `aimass train` on the trainer's own machine may; "
                "use a network of the suite or torchvision:<model>",
                field="network",
            )

    def _find_dataset(self, dataset: str) -> str:
        if dataset in NAMED_DATASETS or dataset.startswith(MODEL_DATASET):
            return dataset
        try:
            for path in self._places(dataset):
                resolved = path.resolve()
                self._check_confined(dataset, resolved)
                if resolved.exists():
                    return str(resolved)
        except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
            raise InvalidInput(f"dataset {dataset[:200]!r} is not a path: {error}", field="dataset") from error
        raise NotFound(
            f"dataset {dataset!r} does not exist; use {', '.join(NAMED_DATASETS)}, {MODEL_DATASET}<name> "
            "or the path of a folder",
            field="dataset",
        )

    def _places(self, dataset: str) -> list[Path]:
        if self.trusted:
            return [Path(dataset).expanduser()]
        return [root / dataset for root in self._data_roots]  # an absolute path stays what it is

    def _check_confined(self, dataset: str, path: Path) -> None:
        if self.trusted or any(path.is_relative_to(root.resolve()) for root in self._data_roots):
            return
        roots = ", ".join(map(str, self._data_roots))
        raise InvalidInput(
            f"dataset {dataset!r} lies outside of {roots}; move it there or name its folder in TRAINER_DATA_ROOTS",
            field="dataset",
        )

    def _check_source(self, field: str, source: str) -> None:
        if source.startswith(_RUN):
            run = self._store.get(source.removeprefix(_RUN))
            if run.state is not RunState.SUCCEEDED or not run.kind.makes_model:
                raise Conflict(
                    f"{field} {source!r} has no model: it is a run of kind {run.kind} and {run.state}; "
                    "name one that has succeeded",
                    field=field,
                )
        elif not _VERSION.fullmatch(source):
            raise InvalidInput(
                f"{field} {source[:200]!r} is not the name of a model; use run:<id> or <model>@<version>", field=field
            )


def training_options(recipe: str, overrides_json: str) -> TrainingOptions:
    """Return the options of *recipe* with the overrides in a JSON object, or without where that is empty.

    Raises:
        NotFound: There is no such recipe.
        InvalidInput: The JSON is none, or an override is unknown or out of its range.
    """
    return make_options(recipe, parse_object(overrides_json, "overrides_json"))


def parse_object(text: str, field: str) -> dict[str, Any]:
    """Return the JSON object in *text*; an empty one where there is no text.

    Raises:
        InvalidInput: It is no JSON object.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{field} is not JSON: {error}", field=field) from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{field} holds JSON that is no object; give one such as {{}}", field=field)
    return value


def _sources(options: TrainingOptions | ConversionOptions | EvaluationOptions) -> list[tuple[str, str]]:
    if isinstance(options, TrainingOptions):
        named = [("start_from", options.start_from), ("distillation.teacher", options.distillation.teacher)]
        return [(field, source) for field, source in named if source]
    return [("source", options.source)]
