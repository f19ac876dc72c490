"""A new last layer for a trained model: fitted to features, written into the graph, proved, measured, described."""

import time

import numpy as np
from numpy.typing import NDArray

from services.common.errors import Conflict
from services.common.manifest import GRAPH_FILE
from services.trainer.clock import now
from services.trainer.data.datasets import Dataset
from services.trainer.data.samples import Samples
from services.trainer.export.encoder import Encoder
from services.trainer.export.graph import (
    PARITY_TOLERANCE,
    check_parity,
    graph_metadata,
    open_graph,
    run_graph,
)
from services.trainer.export.tail import cut_encoder, find_tail, replace_tail
from services.trainer.jobs.job import Job
from services.trainer.jobs.origins import find_trained
from services.trainer.jobs.product import EVALUATION_BATCH, describe_model, read_card, training_record
from services.trainer.jobs.sources import load_to_refit, remember_samples
from services.trainer.options import RefitOptions, TrainingOptions
from services.trainer.runs.folder import ENCODER_FILE, WEIGHTS_FILE, RunFolder
from services.trainer.runs.record import Outcome, RunState
from services.trainer.statistics.heads import Head, choose_pull, fit_head, fit_temperature, head_probabilities

_PARITY_SAMPLES = 500
_NETWORK_SAMPLES = 100
_EMBEDDED_AT_ONCE = 500
_LEAST_TO_CALIBRATE = 50
"""Validation samples from which on a temperature is fitted; few that are all right would ask for certainty."""


def run_refit(job: Job) -> Outcome:
    """Fit the last layer of a model anew; everything lands in the folder of the run.

    The fit begins at the source's layer and is pulled towards it. A run that was killed begins again, and with the same
    samples it gives the same graph.

    Raises:
        ServiceError: As `find_trained` and `load_to_refit`.
        Unsupported: The source's graph does not end in a layer that can be replaced.
        Conflict: The run was begun with other samples, or the new graph or network computes something else.
    """
    options = job.request.options
    assert isinstance(options, RefitOptions)
    began = time.monotonic()
    job.reporter.stage("prepare")
    source = find_trained(options.source, job.settings)
    tail = find_tail(source / GRAPH_FILE)
    dataset, trained = load_to_refit(job, options, source)
    described = remember_samples(job, dataset)
    cut_encoder(source / GRAPH_FILE, job.folder / ENCODER_FILE)
    encoder = Encoder(job.folder / ENCODER_FILE, job.threads)
    features = _embed(job, encoder, dataset.train)
    job.reporter.stage("fit")
    labels, smoothing, rounds = dataset.train.labels, options.smoothing, options.rounds
    pull = options.pull
    if pull is None:
        pull = choose_pull(features, labels, tail.head, smoothing=smoothing, rounds=rounds, seed=options.seed)
    head = fit_head(features, labels, tail.head, smoothing=smoothing, pull=pull, rounds=rounds)
    figures = {"pull": pull}
    if len(dataset.validation):
        judged = encoder.embed(np.asarray(dataset.validation.images))
        if len(judged) >= _LEAST_TO_CALIBRATE:
            head = fit_temperature(head, judged, dataset.validation.labels)
        figures["validation_accuracy"] = _accuracy(head, judged, dataset.validation.labels)
    figures |= {"train_accuracy": _accuracy(head, features, dataset.train.labels), "temperature": head.temperature}
    job.reporter.stage("fit", 1.0, figures)
    figures |= _write_graph(job, source, dataset, head, features)
    _write_weights(job, source, dataset, head, trained)
    parent = read_card(source)
    metrics = describe_model(
        job,
        dataset,
        training_record(job, trained.recipe, trained.model_dump(mode="json"), described, time.monotonic() - began),
        metrics=figures,
        size=parent.network_size if parent else None,
        history={},
        parent=parent,
        before=source,
    )
    return Outcome(state=RunState.SUCCEEDED, dataset=described, metrics=metrics, finish_time=now())


def _embed(job: Job, encoder: Encoder, samples: Samples) -> NDArray[np.float32]:
    """Return the features of *samples*, and tell how far it is."""
    job.reporter.stage("embed")
    features = np.empty((len(samples), encoder.width), np.float32)
    for start in range(0, len(samples), _EMBEDDED_AT_ONCE):
        batch = slice(start, start + _EMBEDDED_AT_ONCE)
        features[batch] = encoder.embed(np.asarray(samples.images[batch]))
        job.reporter.stage("embed", min(start + _EMBEDDED_AT_ONCE, len(samples)) / len(samples))
    return features


def _accuracy(head: Head, features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float((head_probabilities(head, features).argmax(axis=1) == labels).mean())


def _write_graph(
    job: Job, source: RunFolder, dataset: Dataset, head: Head, features: NDArray[np.float32]
) -> dict[str, float]:
    """Write the new graph, and prove on training images that it gives what the layer gives on their features."""
    job.reporter.stage("export")
    path = job.folder / GRAPH_FILE
    replace_tail(source / GRAPH_FILE, path, head, graph_metadata(dataset.labels, dataset.name))
    options = job.request.options
    assert isinstance(options, RefitOptions)
    order = np.random.default_rng(options.seed).permutation(len(features))
    chosen = np.sort(order[:_PARITY_SAMPLES])
    found = run_graph(open_graph(path, job.threads), np.asarray(dataset.train.images[chosen]), EVALUATION_BATCH)
    largest = float(np.abs(found - head_probabilities(head, features[chosen])).max())
    if not largest <= PARITY_TOLERANCE:  # "not <=" so that NaN is refused
        raise Conflict(
            f"the graph with the new last layer differs from that layer on the features of {len(chosen)} images by up "
            f"to {largest:.2e}, and {PARITY_TOLERANCE:.0e} is allowed; train with start_from instead",
            reason="PARITY",
        )
    figures = {"parity_samples": float(len(chosen)), "parity_largest_difference": largest}
    job.reporter.stage("export", 1.0, figures)
    return figures


def _write_weights(job: Job, source: RunFolder, dataset: Dataset, head: Head, trained: TrainingOptions) -> None:
    """Write the source's network with the new layer, for other runs to start from, and prove that it is the graph."""
    # Only here: torch takes seconds to import.
    from services.trainer.networks.weights import load_weights, save_weights

    job.reporter.stage("weights")
    model, labels = load_weights(source / WEIGHTS_FILE, allow_code=job.request.trusted)
    model.network.set_head(head.weight, head.bias)
    model.temperature = head.temperature
    session = open_graph(job.folder / GRAPH_FILE, job.threads)
    check_parity(model, session, np.asarray(dataset.train.images[:_NETWORK_SAMPLES]))
    save_weights(model, job.folder / WEIGHTS_FILE, trained, labels)
    job.reporter.stage("weights", 1.0)
