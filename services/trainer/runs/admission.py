"""What a run needs before it is created, so that no epoch is spent on what cannot work."""

import json
import math
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from services.common.errors import Conflict, InvalidInput, NotFound
from services.trainer.options import (
    NETWORKS,
    ConversionOptions,
    EvaluationOptions,
    InspectionOptions,
    RefitOptions,
    TrainingOptions,
    TuningOptions,
)
from services.trainer.recipes import make_options
from services.trainer.runs.record import Options, RunState
from services.trainer.runs.store import RunStore
from services.trainer.sets import FORMS, NAMES, ModelSamples, is_folder, lies_in, parse_snapshot, resolve_places

MODULES_OF_OURS = "torchvision"
"""The one module whose factories a request may name."""
MAX_DEPTH = 32
"""Lists and objects within each other in the JSON of a request."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_RUN = "run:"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}@[1-9][0-9]{0,17}")


class Admission:
    """Looks at options before a run gets them.

    Args:
        store: The runs that others may start from.
        data_roots: The folders that a request may name data sets in.
        trusted: Whether requests come from this machine's command line. They may name code and any folder.
        newest_sample: Returns the number of the newest sample of a model, which the samples of a run end with, so that
            an import does not change them; without it they are taken as they are named.
        find_snapshot: Raises where there is no snapshot of a digest; without it any is let pass.
        find_deletion: Returns the id of the deletion that a run, or a version of a model, goes with, as options name
            them; empty where it stays. Without it all stay.
    """

    def __init__(
        self,
        store: RunStore,
        data_roots: Sequence[Path],
        *,
        trusted: bool = False,
        newest_sample: Callable[[str], int] | None = None,
        find_snapshot: Callable[[str], object] | None = None,
        find_deletion: Callable[[str], str] = lambda source: "",
    ) -> None:
        self._store = store
        self._data_roots = data_roots
        self._newest_sample = newest_sample
        self._find_snapshot = find_snapshot
        self._find_deletion = find_deletion
        self.trusted = trusted

    def admit(self, options: Options) -> Options:
        """Return *options* with the data set as its process finds it, also after more was imported.

        Raises:
            InvalidInput: They name code or a folder that a request may not, samples that are not there, or a source
                that is none.
            NotFound: A data set, a model with samples, a snapshot or a run that they name does not exist.
            Conflict: A run that they name has made no model, pictures of a snapshot were deleted, or a model that they
                name has learnt what is.
        """
        if isinstance(options, TuningOptions | InspectionOptions):
            if isinstance(options, TuningOptions):
                self._check_space(options)
            return options.model_copy(update={"training": self.admit(options.training)})
        self._check_names(options)
        if isinstance(options, ConversionOptions) or not options.dataset:
            return options
        return options.model_copy(update={"dataset": self._find_dataset(options.dataset)})

    def refuse_tainted(self, run_id: str) -> None:
        """Let nothing of a run get any further that has learnt what is deleted.

        Raises:
            Conflict: It has.
        """
        self._refuse_tainted(_RUN + run_id)

    def _check_space(self, options: TuningOptions) -> None:
        """Look at each value that a trial may get: none may name what a run by itself may not."""
        for name, values in options.space.items():
            for value in values.choices:
                self._check_names(options.trial({name: value}))

    def _check_names(self, options: TrainingOptions | ConversionOptions | EvaluationOptions | RefitOptions) -> None:
        for field, source in _sources(options):
            self._check_source(field, source)
        if isinstance(options, TrainingOptions):
            self._check_network(options.network)

    def _check_network(self, network: str) -> None:
        module, colon, factory = network.partition(":")
        if network not in NETWORKS and not (module and factory):
            nearest = get_close_matches(network, NETWORKS, n=1)
            meant = f"did you mean {nearest[0]}?" if nearest else f"use {', '.join(NETWORKS)} or torchvision:<model>"
            raise InvalidInput(f"network {network[:200]!r} is unknown; {meant}", field="network")
        if colon and module != MODULES_OF_OURS and not self.trusted:
            raise InvalidInput(
                f"network {network!r} names code, which only `aimass train` on the trainer's own machine may; "
                "use a network of the suite or torchvision:<model>",
                field="network",
            )

    def _find_dataset(self, dataset: str) -> str:
        if dataset in NAMES:
            return dataset
        samples = ModelSamples.parse(dataset)
        if samples is not None:
            return str(samples.pinned(self._newest_sample(samples.model))) if self._newest_sample else dataset
        snapshot = parse_snapshot(dataset)
        if snapshot is not None:
            if self._find_snapshot:
                self._find_snapshot(snapshot)
            return dataset
        for place in resolve_places(dataset, [Path.cwd()] if self.trusted else self._data_roots):
            if not (self.trusted or lies_in(place, self._data_roots)):
                raise InvalidInput(
                    f"dataset {dataset!r} lies outside of {', '.join(map(str, self._data_roots))}; move it there or "
                    "name its folder in TRAINER_DATA_ROOTS",
                    field="dataset",
                )
            if is_folder(place):
                return str(place)
        raise NotFound(f"dataset {dataset!r} does not exist; use {FORMS}", field="dataset")

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
        self._refuse_tainted(source, field)

    def _refuse_tainted(self, source: str, field: str = "") -> None:
        deletion = self._find_deletion(source)
        if deletion:
            raise Conflict(
                f"{source} has learnt what deletion {deletion!r} removes, and goes with it; use a run or a version "
                "that was made without that, such as the successor that the loop makes",
                reason="TAINTED",
                field=field,
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
        InvalidInput: It is no JSON object, or holds what cannot be kept: text that is no Unicode, numbers that are not
            finite, or lists and objects within `MAX_DEPTH` others.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{field} is not JSON: {error}", field=field) from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{field} holds JSON that is no object; give one such as {{}}", field=field)
    _check_storable(value, field)
    return value


def _check_storable(value: Any, field: str, depth: int = 1) -> None:
    if isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise InvalidInput(
                f"{field} has lists or objects within more than {MAX_DEPTH} others; make it flatter", field=field
            )
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_storable(part, field, depth + 1)
    elif isinstance(value, str) and _SURROGATE.search(value):
        raise InvalidInput(
            f"{field} has {value[:100]!r}, which holds half of a surrogate pair; write both halves, or leave it out",
            field=field,
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"{field} has the number {value}; use finite ones", field=field)


def _sources(options: TrainingOptions | ConversionOptions | EvaluationOptions | RefitOptions) -> list[tuple[str, str]]:
    if isinstance(options, TrainingOptions):
        named = [("start_from", options.start_from), ("distillation.teacher", options.distillation.teacher)]
        return [(field, source) for field, source in named if source]
    return [("source", options.source)]
