"""What is asked of a run that makes a candidate."""

import hashlib
from typing import Protocol

from services.common.errors import Conflict
from services.trainer.loop.origins import Origins
from services.trainer.loop.policy import LoopPolicy, Strategy
from services.trainer.loop.steps import CreateRun
from services.trainer.options import TrainingOptions, parse_options
from services.trainer.recipes import make_options
from services.trainer.runs.record import Options
from services.trainer.runs.store import RunStore
from services.trainer.sets import SNAPSHOT_PREFIX

_MOST_NAME = 96
"""Characters of a model's name that fit into a client id."""


class RefitRequest(Protocol):
    """Makes the options of a refit."""

    def __call__(self, *, source: str, dataset: str, seed: int) -> Options:
        """Return them.

        Args:
            source: `run:<id>` whose features are kept.
            dataset: `snapshot:<digest>`.
            seed: Of what is drawn.
        """


def client_id(model: str, action: CreateRun) -> str:
    """Return by what the run of *action* is known again."""
    name = model if len(model) <= _MOST_NAME else hashlib.sha256(model.encode()).hexdigest()
    return f"loop:{name}:{action.cycle}:{action.attempt}"


def run_options(
    action: CreateRun, policy: LoopPolicy, store: RunStore, origins: Origins, refit: RefitRequest
) -> Options:
    """Return the options of the run that *action* asks for.

    Nothing is replayed: a snapshot has samples of its base set.

    Raises:
        Conflict: The source was not trained here, so that nobody knows how it can learn on.
        InvalidInput: The policy names a value that an option does not take.
    """
    dataset, source = SNAPSHOT_PREFIX + action.snapshot, f"run:{action.source}"
    if action.strategy == Strategy.REFIT:
        return refit(source=source, dataset=dataset, seed=action.cycle)
    if action.strategy == Strategy.SCRATCH:
        return make_options(policy.retrain.scratch_recipe, {"dataset": dataset, "seed": action.cycle})
    further = policy.retrain.incremental
    changes = {
        "dataset": dataset,
        "start_from": source,
        "replay": 0.0,
        "epochs": further.epochs,
        "learning_rate": further.learning_rate,
        "freeze": further.freeze,
        "seed": action.cycle,
        "pruning": {},
        "distillation": {},
    }
    return parse_options(TrainingOptions, _trained(action.source, store, origins).model_dump() | changes)


def _trained(run_id: str, store: RunStore, origins: Origins) -> TrainingOptions:
    """Return how the network of a run was trained last, perhaps by an ancestor of it."""
    run = store.find(run_id, "")
    for each in origins.lineage(run) if run else ():
        manifest = origins.manifest(each.id)
        if manifest is not None and manifest.training is not None and "epochs" in manifest.training.options:
            return TrainingOptions.model_validate(manifest.training.options)
    raise Conflict(
        f"run {run_id!r} and those that it comes from do not say how they were trained; take incremental out of "
        "retrain.strategies",
        reason="NO_OPTIONS",
    )
