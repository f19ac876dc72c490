"""A training run from beginning to end, as the training process executes it."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from services.common import manifest
from services.common.errors import Conflict
from services.trainer.data import slices
from services.trainer.data.datasets import Dataset
from services.trainer.data.samples import Samples
from services.trainer.evaluation.figures import evaluate_predictions, fit_temperature
from services.trainer.export.graph import check_parity, export_graph, graph_metadata, make_golden, open_graph, run_graph
from services.trainer.runs.record import (
    CHECKPOINT_FILE,
    EVALUATION_FILE,
    EpochResult,
    Run,
    RunState,
    now,
    read_run,
    write_run,
)
from services.trainer.training.loop import build_model, predict, train

_PARITY_SAMPLES = 2_000
_GOLDEN_SAMPLES = 8
_EVALUATION_BATCH = 100


class Report(Protocol):
    """Told how far a run is."""

    def __call__(self, stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        """Take in the stage (train, export, evaluate), its fraction done (0 to 1) and its newest figures."""


def run_training(run: Run, dataset: Dataset, run_dir: Path, report: Report) -> Run:
    """Train, export, prove, evaluate and describe a model; everything lands in *run_dir*.

    A run that was interrupted or failed continues from its last checkpoint.

    Args:
        run: From `started_run`, which also notes a failure.
        dataset: What `load_dataset` gives for the options of the run.
        run_dir: `<runs>/<run id>`.
        report: Told about progress.

    Returns:
        The record of the run, SUCCEEDED.

    Raises:
        Conflict: The run was started on other samples, or the graph differs from the network.
        InvalidInput: The options do not make a network, or the loss is no longer finite.
    """
    options = run.options
    described = manifest.Dataset(name=dataset.name, digest=dataset.digest, counts=dataset.counts)
    if run.dataset not in (None, described):
        raise Conflict(f"run {run.id!r} was started on other samples; bring them back or give a new run id")
    run = run.replace(dataset=described)
    write_run(run_dir, run)

    def on_step(step: int, steps: int, loss: float) -> None:
        report("train", step / steps, {"train_loss": loss})

    def on_epoch(result: EpochResult) -> None:
        earlier = tuple(epoch for epoch in read_run(run_dir).history if epoch.epoch < result.epoch)
        write_run(run_dir, run.replace(history=(*earlier, result)))
        report("train", result.epoch / options.epochs, result.model_dump(exclude={"epoch"}))

    model = build_model(dataset, options)
    history = train(model, dataset, options, checkpoint=run_dir / CHECKPOINT_FILE, on_step=on_step, on_epoch=on_epoch)
    run = run.replace(history=tuple(history))
    model.temperature = fit_temperature(predict(model, dataset.validation).numpy(), dataset.validation.labels)

    report("export", 0.0, {})
    path = run_dir / manifest.GRAPH_FILE
    export_graph(model, path, dataset.test.images.shape[1:], graph_metadata(dataset.labels, run.id, dataset.name))
    session = open_graph(path, options.threads)
    # Training images: the test samples stay out of every decision, also of this one.
    parity = check_parity(model, session, dataset.train.images[:_PARITY_SAMPLES])
    report("export", 1.0, {"parity_largest_difference": parity.largest_difference})

    report("evaluate", 0.0, {})
    probabilities = run_graph(session, dataset.test.images, _EVALUATION_BATCH)
    evaluation = evaluate_predictions(probabilities, dataset.test.labels, dataset.labels)
    (run_dir / EVALUATION_FILE).write_text(evaluation.model_dump_json(indent=1) + "\n")
    metrics = {
        "validation_accuracy": history[-1].validation_accuracy,
        "temperature": model.temperature,
        "parity_samples": float(parity.samples),
        "parity_largest_difference": parity.largest_difference,
        **evaluation.metrics("test"),
    }
    run = run.replace(metrics=metrics, state=RunState.SUCCEEDED, finish_time=now())
    document = _describe(run, dataset, path, make_golden(session, _golden_samples()))
    (run_dir / manifest.MANIFEST_FILE).write_text(document.to_json())
    write_run(run_dir, run)
    report("evaluate", 1.0, metrics)
    return run


def _golden_samples() -> Samples:
    """Public test images that everyone has: the first of each of the first classes."""
    _, test = slices.read_slice()
    return test.first_per_class(1)[:_GOLDEN_SAMPLES]


def _describe(run: Run, dataset: Dataset, graph: Path, golden: manifest.Golden) -> manifest.Manifest:
    height, width, _ = dataset.test.images.shape[1:]
    spec = manifest.PreprocessSpec(input="image", width=width, height=height)
    data = graph.read_bytes()
    assert run.dataset is not None
    return manifest.Manifest(
        labels=dataset.labels,
        preprocess=spec,
        preprocess_digest=spec.digest,
        graph=manifest.Graph(sha256=manifest.digest_of(data), size_bytes=len(data)),
        create_time=run.finish_time,
        training=manifest.Training(
            run_id=run.id,
            recipe=run.options.recipe,
            options=run.options.model_dump(mode="json"),
            dataset=run.dataset,
            seconds=sum(epoch.seconds for epoch in run.history),
            software=_software(),
        ),
        metrics=run.metrics,
        golden=golden,
    )


def _software() -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
