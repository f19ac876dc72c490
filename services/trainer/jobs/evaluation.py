"""A trained model measured: on test samples of its own or of another set, spoilt and under attack."""

import numpy as np
import onnxruntime

from services.common import manifest
from services.common.errors import Conflict
from services.trainer.clock import now
from services.trainer.data.samples import Samples
from services.trainer.evaluation.attacks import measure_attacks
from services.trainer.evaluation.card import make_card
from services.trainer.evaluation.robustness import Robustness, measure_robustness
from services.trainer.export.graph import open_graph, run_graph
from services.trainer.jobs.job import Job
from services.trainer.jobs.product import EVALUATION_BATCH, measure_graph, read_card, write_card
from services.trainer.jobs.sources import find_run, load_samples, remember_samples, training_options
from services.trainer.networks.weights import load_weights
from services.trainer.options import EvaluationOptions
from services.trainer.runs.folder import WEIGHTS_FILE, RunFolder
from services.trainer.runs.record import Outcome, RunState


def run_evaluation(job: Job) -> Outcome:
    """Measure a run's graph and write its card anew, into the folder of this run.

    Raises:
        ServiceError: As `find_run` and `load_samples`.
        Conflict: The data set has other labels or pixels than the model.
    """
    options = job.request.options
    assert isinstance(options, EvaluationOptions)
    job.reporter.stage("prepare")
    source = find_run(options.source, job.settings)
    trained = training_options(source)
    if options.dataset:
        # Started from the model itself, so that what it has learnt is not measured on.
        other = {"dataset": options.dataset, "start_from": options.source, "replay": 0.0}
        trained = trained.model_copy(update=other)
    dataset = load_samples(job, trained)
    model = manifest.Manifest.from_json((source / manifest.MANIFEST_FILE).read_bytes(), manifest.MANIFEST_FILE)
    if (model.labels, model.preprocess) != (dataset.labels, dataset.spec):
        raise Conflict(
            f"data set {dataset.name!r} has other labels or pixels than {options.source}; evaluate on one with "
            f"{', '.join(model.labels[:10])}"
        )
    described = remember_samples(job, dataset)
    job.reporter.stage("evaluate")
    session = open_graph(source / manifest.GRAPH_FILE, job.threads)
    evaluation, latency = measure_graph(job, session, dataset)
    robustness = _robustness(job, options, source, session, dataset.test) if options.robustness else None
    known = read_card(source)
    card = make_card(
        evaluation,
        title=options.source,
        manifest=model,
        network_size=known.network_size if known else None,
        robustness=robustness,
        latency=latency,
        history=known.history if known else None,
    )
    write_card(job.folder, card, np.asarray(dataset.test.images))
    metrics = evaluation.metrics("test")
    if robustness is not None:
        metrics["corrupted_accuracy"] = robustness.mean_accuracy
        metrics |= {f"pgd_{attack.epsilon:g}_accuracy": attack.accuracy for attack in robustness.attacks}
    job.reporter.stage("evaluate", 1.0, metrics)
    return Outcome(state=RunState.SUCCEEDED, dataset=described, metrics=metrics, finish_time=now())


def _robustness(
    job: Job, options: EvaluationOptions, source: RunFolder, session: onnxruntime.InferenceSession, test: Samples
) -> Robustness:
    """Spoil and attack a part of the test samples."""
    chosen = np.sort(np.random.default_rng(options.seed).permutation(len(test))[: options.samples])
    samples = test[chosen]
    robustness = measure_robustness(
        lambda images: run_graph(session, images, EVALUATION_BATCH),
        samples,
        options.seed,
        on_progress=lambda fraction: job.reporter.stage("spoil", fraction),
    )
    if not (source / WEIGHTS_FILE).exists():  # a converted graph has no gradients
        return robustness
    model, _ = load_weights(source / WEIGHTS_FILE, allow_code=job.request.trusted)
    attacks = measure_attacks(
        model, samples, seed=options.seed, on_progress=lambda fraction: job.reporter.stage("attack", fraction)
    )
    return robustness.model_copy(update={"attacks": attacks})
