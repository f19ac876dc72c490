"""From weights or a graph to a model that can be published: exported, proved, measured, described."""

import json
import platform
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from services.common import manifest
from services.trainer.clock import now
from services.trainer.data import slices
from services.trainer.data.datasets import Dataset
from services.trainer.data.samples import Samples
from services.trainer.evaluation.card import ModelCard, NetworkSize, make_card
from services.trainer.evaluation.card_page import render_card
from services.trainer.evaluation.confusion import export_confusion_csv
from services.trainer.evaluation.figures import Evaluation, evaluate_predictions
from services.trainer.evaluation.latency import Latency, measure_latency
from services.trainer.evaluation.robustness import spoilt_accuracy
from services.trainer.export.graph import check_parity, export_graph, graph_metadata, make_golden, open_graph, run_graph
from services.trainer.jobs.job import Job
from services.trainer.runs.folder import (
    CARD_DOCUMENT_FILE,
    CARD_FILE,
    CONFUSION_FILE,
    EVALUATION_FILE,
    RunFolder,
    write_document,
    write_text,
)

if TYPE_CHECKING:  # torch takes seconds to import, and a graph is measured and described without
    from services.trainer.networks.classifier import Classifier

PARITY_SAMPLES = 2_000
GOLDEN_SAMPLES = 8
EVALUATION_BATCH = 100
LATENCY_SECONDS = 1.0


def export_model(job: Job, model: "Classifier", dataset: Dataset) -> dict[str, float]:
    """Write the graph of *model* to the run's folder, prove that it computes the same, and return how close it is.

    Raises:
        Conflict: It does not compute the same.
    """
    job.reporter.stage("export")
    path = job.folder / manifest.GRAPH_FILE
    export_graph(model, path, dataset.spec.shape, graph_metadata(dataset.labels, dataset.name))
    # Training images: the test samples stay out of every decision, also of this one.
    parity = check_parity(
        model,
        open_graph(path, job.threads),
        np.asarray(dataset.train.images[:PARITY_SAMPLES]),
        on_progress=lambda fraction: job.reporter.stage("export", fraction),
    )
    figures = {
        "parity_samples": float(parity.samples),
        "parity_largest_difference": parity.largest_difference,
    }
    job.reporter.stage("export", 1.0, figures)
    return figures


def describe_model(
    job: Job,
    dataset: Dataset,
    training: manifest.Training,
    *,
    metrics: Mapping[str, float],
    size: NetworkSize | None,
    history: Mapping[int, Mapping[str, float]],
    parent: ModelCard | None = None,
    before: RunFolder | None = None,
) -> dict[str, float]:
    """Measure the graph in the run's folder on the test samples; write manifest, figures and card.

    Args:
        job: The run.
        dataset: Its samples.
        training: Where the model comes from.
        metrics: What is known of it.
        size: Of its network, where that is known.
        history: Figures by epoch.
        parent: Card of the model that it was made from.
        before: Run whose model it is to replace: its graph is measured on the same spoilt pictures, if it takes them.

    Returns:
        *metrics* and the figures on the test samples.
    """
    job.reporter.stage("evaluate")
    path = job.folder / manifest.GRAPH_FILE
    session = open_graph(path, job.threads)
    evaluation, latency = measure_graph(job, session, dataset)
    metrics = {**metrics, **evaluation.metrics("test"), **_spoilt_figures(job, session, dataset, before)}
    data = path.read_bytes()
    document = manifest.Manifest(
        labels=dataset.labels,
        preprocess=dataset.spec,
        preprocess_digest=dataset.spec.digest,
        graph=manifest.Graph(sha256=manifest.digest_of(data), size_bytes=len(data)),
        create_time=now(),
        training=training,
        metrics=metrics,
        golden=make_golden(session, golden_samples(dataset)),
    )
    write_text(job.folder / manifest.MANIFEST_FILE, document.to_json())
    card = make_card(
        evaluation,
        title=job.request.id,
        manifest=document,
        network_size=size,
        latency=latency,
        history=history,
        parent=parent,
    )
    write_card(job.folder, card, np.asarray(dataset.test.images))
    job.reporter.stage("evaluate", 1.0, metrics)
    return metrics


def measure_graph(job: Job, session: onnxruntime.InferenceSession, dataset: Dataset) -> tuple[Evaluation, Latency]:
    """Return how right the graph is on the test samples, and how fast it is here."""
    images = np.asarray(dataset.test.images)
    probabilities = run_graph(session, images, EVALUATION_BATCH)
    latency = measure_latency(
        lambda batch: run_graph(session, batch, len(batch)), images, threads=job.threads, seconds=LATENCY_SECONDS
    )
    return evaluate_predictions(probabilities, dataset.test.labels, dataset.labels), latency


def _spoilt_figures(
    job: Job, session: onnxruntime.InferenceSession, dataset: Dataset, before: RunFolder | None
) -> dict[str, float]:
    """Return the accuracy on spoilt test samples, of the model and of the one before, which guards compare."""
    sessions = {"corrupted_accuracy": session}
    if before is not None:
        path = before / manifest.MANIFEST_FILE
        described = manifest.Manifest.from_json(path.read_bytes(), str(path))
        if (described.labels, described.preprocess) == (dataset.labels, dataset.spec):
            sessions["source_corrupted_accuracy"] = open_graph(before / manifest.GRAPH_FILE, job.threads)
    return {
        name: spoilt_accuracy(partial(run_graph, each, batch_size=EVALUATION_BATCH), dataset.test)
        for name, each in sessions.items()
    }


def write_card(folder: RunFolder, card: ModelCard, images: np.ndarray) -> None:
    """Write *card* to *folder* as JSON and as a page, its evaluation as JSON, and its confusion matrix as CSV."""
    write_document(folder / EVALUATION_FILE, card.evaluation)
    export_confusion_csv(card.evaluation.confusion, card.evaluation.labels, folder / CONFUSION_FILE)
    write_text(folder / CARD_DOCUMENT_FILE, card.to_json())
    write_text(folder / CARD_FILE, render_card(card, images))


def read_card(folder: RunFolder) -> ModelCard | None:
    """Return the card in *folder*, if there is one of today's form."""
    try:
        return ModelCard.model_validate_json((folder / CARD_DOCUMENT_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def network_size(model: "Classifier", dataset: Dataset) -> NetworkSize:
    """Count *model*'s parameters and its multiply-adds for one image of *dataset*."""
    import torch

    from services.trainer.networks.counting import count_multiply_adds

    example = model.normalise(torch.from_numpy(np.array(dataset.test.images[:1])))
    return NetworkSize(
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        multiply_adds=count_multiply_adds(model.network, example),
    )


def golden_samples(dataset: Dataset) -> Samples:
    """Return public images that everyone has, in the pixels of *dataset*: golden vectors never hold what users sent."""
    _, public = slices.read_slice()
    chosen = public.first_per_class(1)[:GOLDEN_SAMPLES]
    height, width, _ = dataset.spec.shape
    if chosen.images.shape[1:3] == (height, width):
        return chosen
    rows, columns = (np.arange(side) * 32 // side for side in (height, width))
    return Samples(chosen.images[:, rows[:, None], columns[None, :]], chosen.labels)


def training_record(
    job: Job, recipe: str, options: Mapping[str, Any], described: manifest.Dataset, seconds: float
) -> manifest.Training:
    """Return where a model comes from, as its manifest says it."""
    packages = ("torch", "onnx", "onnxscript", "numpy")
    return manifest.Training(
        run_id=job.request.id,
        recipe=recipe,
        options=json.loads(json.dumps(options)),
        dataset=described,
        seconds=seconds,
        software={"python": platform.python_version(), **{package: version(package) for package in packages}},
    )
