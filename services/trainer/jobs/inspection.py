"""A data set looked at closely: what its files tell, and which labels trained models find wrong."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.trainer.clock import now
from services.trainer.data.cleaning import find_problems
from services.trainer.data.collecting import collect
from services.trainer.data.datasets import Dataset, assign_parts, make_dataset
from services.trainer.data.mislabelled import find_mislabelled, out_of_fold_probabilities
from services.trainer.data.report import describe, render_html
from services.trainer.data.samples import Samples
from services.trainer.jobs.job import Job
from services.trainer.jobs.sources import data_sources, remember_samples
from services.trainer.options import InspectionOptions
from services.trainer.runs.folder import REPORT_DOCUMENT_FILE, REPORT_FILE, write_document, write_text
from services.trainer.runs.record import Outcome, RunState
from services.trainer.training.hardware import prepare
from services.trainer.training.loop import Watcher, train
from services.trainer.training.model import build_model
from services.trainer.training.prediction import predict


def run_inspection(job: Job) -> Outcome:
    """Train a model for each fold of the training samples, compare its answers with the labels, and write a report.

    It keeps no checkpoint: one that is interrupted begins anew.

    Raises:
        ServiceError: As `load_dataset`, `out_of_fold_probabilities` and `find_mislabelled`.
        Interrupted: The job was asked to stop.
    """
    options = job.request.options
    assert isinstance(options, InspectionOptions)
    job.reporter.stage("prepare")
    device = prepare(options.training, job.threads)
    collection = collect(options.training, data_sources(job))
    positions = assign_parts(collection, options.training, find_problems(collection))["train"]
    dataset = make_dataset(collection, options.training)
    described = remember_samples(job, dataset)
    judged = 0

    def judge(learnt: Samples, held_out: Samples) -> NDArray[np.float32]:
        nonlocal judged
        part: Dataset = replace(dataset, train=learnt)
        model = build_model(part, options.training, allow_code=job.request.trusted)
        watcher = Watcher(
            on_step=lambda result: job.reporter.stage("judge", (judged + result.step / result.steps) / options.folds),
            should_stop=job.stop,
        )
        train(model, part, options.training, device=device, watcher=watcher)
        judged += 1
        return predict(model, held_out)

    probabilities = out_of_fold_probabilities(
        dataset.train, judge, class_count=len(dataset.labels), folds=options.folds, seed=options.training.seed
    )
    mislabelled = find_mislabelled(collection, positions, probabilities)
    job.reporter.stage("report")
    report = describe(collection, options.training, mislabelled)
    write_document(job.folder / REPORT_DOCUMENT_FILE, report)
    write_text(job.folder / REPORT_FILE, render_html(report))
    metrics = {
        "samples": float(report.sample_count),
        "judged_samples": float(len(positions)),
        "mislabelled_samples": float(len(mislabelled)),
        "fold_accuracy": float((probabilities.argmax(axis=1) == dataset.train.labels).mean()),
    }
    job.reporter.stage("report", 1.0, metrics)
    return Outcome(state=RunState.SUCCEEDED, dataset=described, metrics=metrics, finish_time=now())
