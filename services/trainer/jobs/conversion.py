"""A trained model in another arithmetic: smaller, and where it is measured so, faster."""

import numpy as np

from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest
from services.trainer.clock import now
from services.trainer.export.graph import graph_metadata
from services.trainer.export.half import check_half, export_half
from services.trainer.export.quantization import choose_quantized, draw_calibration, quantize_graph
from services.trainer.jobs.job import Job
from services.trainer.jobs.origins import find_trained
from services.trainer.jobs.product import PARITY_SAMPLES, describe_model, read_card, training_record
from services.trainer.jobs.sources import load_samples, remember_samples, training_options
from services.trainer.networks.weights import load_weights
from services.trainer.options import ConversionOptions
from services.trainer.runs.folder import CHOICE_FILE, WEIGHTS_FILE, write_document
from services.trainer.runs.record import Outcome, RunState


def run_conversion(job: Job) -> Outcome:
    """Convert, measure and describe; the new graph is a model of its own, whose card compares it with its parent's.

    What was converted before is converted from the float32 model that it was made from. For int8, whether it shall be
    served in its parent's place is decided by measurement here and written down.

    Raises:
        ServiceError: As `find_trained` and `load_samples`.
        Unsupported: The graph has nothing to convert.
        Conflict: The float16 graph differs too much.
    """
    options = job.request.options
    assert isinstance(options, ConversionOptions)
    job.reporter.stage("prepare")
    source = find_trained(options.source, job.settings)
    trained = training_options(source)
    dataset = load_samples(job, trained)
    described = remember_samples(job, dataset)
    job.reporter.stage("convert")
    before, after = source / GRAPH_FILE, job.folder / GRAPH_FILE
    if options.precision == "int8":
        quantize_graph(before, after, draw_calibration(dataset.train, options.calibration_samples, options.seed))
        job.reporter.stage("compare")
        choice = choose_quantized(before, after, dataset.validation, threads=job.threads)
        write_document(job.folder / CHOICE_FILE, choice)
        figures = {
            "chosen": float(choice.chosen),
            "speedup": min(speed.ratio for speed in choice.speeds),
            "validation_lost": float(choice.quality.lost - choice.quality.won) / choice.quality.samples,
        }
    else:
        model, labels = load_weights(source / WEIGHTS_FILE, allow_code=job.request.trusted)
        export_half(model, after, dataset.spec.shape, graph_metadata(labels, dataset.name))
        parity = check_half(before, after, np.asarray(dataset.train.images[:PARITY_SAMPLES]), threads=job.threads)
        figures = {"parity_largest_difference": parity.largest_difference, "label_changes": float(parity.label_changes)}
    parent = read_card(source)
    manifest = Manifest.from_json((source / MANIFEST_FILE).read_bytes(), MANIFEST_FILE)
    seconds = manifest.training.seconds if manifest.training else 0.0
    training = training_record(job, trained.recipe, trained.model_dump(mode="json"), described, seconds)
    metrics = describe_model(
        job,
        dataset,
        training,
        metrics=figures,
        size=parent.network_size if parent else None,
        history=parent.history if parent else {},
        parent=parent,
        before=source,
    )
    return Outcome(state=RunState.SUCCEEDED, dataset=described, metrics=metrics, finish_time=now())
