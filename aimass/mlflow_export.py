"""Copies a run to MLflow, for those who keep all their runs there; needs the extra `mlflow`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus

from aimass.trainer.v1 import training_pb2 as pb

EXPERIMENT = "aimass"
_VALUE_CHARACTERS = 6000
_STATUS = {pb.Run.STATE_SUCCEEDED: "FINISHED", pb.Run.STATE_FAILED: "FAILED", pb.Run.STATE_CANCELLED: "KILLED"}


def copy_run(uri: str, run: pb.Run, epochs: Mapping[int, Mapping[str, float]], folder: Path) -> str:
    """Write options, figures by epoch, final figures and the files in *folder* to the tracking store at *uri*.

    Returns:
        The id that MLflow gave the run.
    """
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    begun = run.create_time.ToMilliseconds()
    copied = client.create_run(number, start_time=begun, run_name=run.id, tags={"aimass.run": run.id})
    params = [Param(name, value[:_VALUE_CHARACTERS]) for name, value in _flat(json.loads(run.options_json or "{}"))]
    by_epoch = [Metric(name, value, begun, epoch) for epoch in sorted(epochs) for name, value in epochs[epoch].items()]
    final = [Metric(name, value, run.finish_time.ToMilliseconds(), 0) for name, value in run.metrics.items()]
    for start in range(0, len(params), 100):  # MLflow takes no more at once
        client.log_batch(copied.info.run_id, params=params[start : start + 100])
    for start in range(0, len(by_epoch + final), 1000):
        client.log_batch(copied.info.run_id, metrics=(by_epoch + final)[start : start + 1000])
    if any(folder.iterdir()):
        client.log_artifacts(copied.info.run_id, str(folder))
    status = RunStatus.from_string(_STATUS.get(run.state, "RUNNING"))
    client.set_terminated(copied.info.run_id, RunStatus.to_string(status), run.finish_time.ToMilliseconds() or None)
    return str(copied.info.run_id)


def _flat(options: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the options by their dotted names, as text."""
    pairs: list[tuple[str, str]] = []
    for name, value in options.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, json.dumps(value))]
    return pairs
