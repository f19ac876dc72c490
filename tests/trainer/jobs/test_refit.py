"""Runs that fit the last layer of the starter anew, to a snapshot of what users gave."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from aimass.starter import RUN, RUN_ID, VERSION
from services.common.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest, digest_of
from services.trainer.data.choosing import Caps
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.collection import digest_contents
from services.trainer.data.imported import NewSample, SampleImport
from services.trainer.data.models import create_model, find_model
from services.trainer.data.pinned import describe_base, load_base
from services.trainer.data.samples import Samples
from services.trainer.data.snapshots import make_snapshot
from services.trainer.data.sources import DataSources
from services.trainer.export.graph import open_graph, run_graph
from services.trainer.export.tail import cut_encoder, find_tail
from services.trainer.networks.weights import load_weights
from services.trainer.options import EvaluationOptions, RefitOptions, TrainingOptions
from services.trainer.runs.folder import LEARNT_FILE, WEIGHTS_FILE, RunFolder
from services.trainer.storage.database import Database
from tests.trainer.data.conftest import encoded
from tests.trainer.jobs.conftest import Runs, at_stage, entries_of, read_json

PER_CLASS = 12


def negatives(samples: Samples, first: int = 0) -> Samples:
    """Return pictures that the starter gets wrong for the most part: negatives of some of each class."""
    rows = [np.flatnonzero(samples.labels == label)[first : first + PER_CLASS] for label in range(10)]
    chosen = samples[np.concatenate(rows)]
    return Samples(255 - chosen.images, chosen.labels)


@pytest.fixture(scope="module")
def source(runs: Runs) -> str:
    """The starter, as a new home has it."""
    shutil.copytree(RUN, runs.settings.runs / RUN_ID)
    shutil.copytree(VERSION, runs.settings.runs / RUN_ID, dirs_exist_ok=True)
    return f"run:{RUN_ID}"


@pytest.fixture(scope="module")
def snapshot(runs: Runs, slice_samples: tuple[Samples, Samples]) -> str:
    """The name of a snapshot of negatives beside as many samples of the slice."""
    database = Database(runs.settings.database.get_secret_value())
    database.migrate()
    spec = Manifest.from_json((VERSION / MANIFEST_FILE).read_bytes(), MANIFEST_FILE).preprocess
    assert spec is not None
    create_model(database, "cifar10", LABELS, spec.canonical_json())
    given = negatives(slice_samples[0])
    with SampleImport(database, runs.settings.blobs, "cifar10") as taking:
        images = [encoded(Image.fromarray(image)) for image in given.images]
        taking.add([NewSample(image, LABELS[label]) for image, label in zip(images, given.labels, strict=True)])
    sources = DataSources(runs.data, (), database, runs.settings.blobs)
    base = describe_base(load_base("cifar10-slice", find_model(database, "cifar10"), sources))
    with database.begin(alone=True) as session:
        made = make_snapshot(session, "cifar10", base, caps=Caps(1.0, 1), base_per_new=1.0)
    database.close()
    return f"snapshot:{made.digest}"


@pytest.fixture(scope="module")
def refitted(runs: Runs, source: str, snapshot: str) -> RunFolder:
    return runs.finish("refitted", RefitOptions(source=source, dataset=snapshot, threads=1))


def manifest_of(folder: RunFolder) -> Manifest:
    return Manifest.from_json((folder / MANIFEST_FILE).read_bytes(), MANIFEST_FILE)


def test_a_refitted_model_is_described_as_others_are(refitted: RunFolder, snapshot: str) -> None:
    manifest, outcome = manifest_of(refitted), refitted.outcome()
    assert outcome is not None
    assert outcome.dataset is not None
    assert manifest.training is not None
    assert manifest.graph is not None

    assert manifest.labels == LABELS
    assert manifest.graph.sha256 == digest_of((refitted / GRAPH_FILE).read_bytes())
    assert manifest.golden is not None
    assert manifest.metrics == outcome.metrics
    assert manifest.training.run_id == "refitted"
    assert (manifest.training.dataset.name, outcome.dataset.name) == (snapshot, snapshot)
    trained = TrainingOptions.model_validate(manifest.training.options)
    assert (trained.dataset, trained.start_from, trained.network) == (snapshot, "run:starter", "residual")
    assert {"model.onnx", "encoder.onnx", "weights.pt", "card.html", "card.json", "learnt.npy"} <= {
        path.name for path in refitted.path.iterdir()
    }


def test_the_figures_are_of_the_holdout(refitted: RunFolder) -> None:
    outcome = refitted.outcome()
    assert outcome is not None

    assert outcome.metrics["test_samples"] == 1000
    assert outcome.metrics["test_accuracy"] > 0.85
    assert outcome.metrics["parity_largest_difference"] < 1e-4
    assert 0.5 < outcome.metrics["corrupted_accuracy"] < outcome.metrics["test_accuracy"]
    assert 0.5 < outcome.metrics["source_corrupted_accuracy"] < outcome.metrics["test_accuracy"]
    assert outcome.dataset is not None
    assert outcome.dataset.counts["test"] == 1000
    assert outcome.dataset.counts["validation"] < 300  # of the base's 500, only what the starter has not learnt
    stages = list(dict.fromkeys(entry.stage for entry in entries_of(refitted)))
    assert stages == ["prepare", "embed", "fit", "export", "weights", "evaluate"]


def test_it_has_learnt_what_users_gave(refitted: RunFolder, slice_samples: tuple[Samples, Samples]) -> None:
    others = negatives(slice_samples[0], first=PER_CLASS)

    right = [
        float((run_graph(open_graph(path, 1), others.images, 60).argmax(axis=1) == others.labels).mean())
        for path in (VERSION / GRAPH_FILE, refitted / GRAPH_FILE)
    ]

    assert right[1] > right[0]


def test_only_the_last_layer_is_new(refitted: RunFolder, tmp_path: Path) -> None:
    before, after = VERSION / GRAPH_FILE, refitted / GRAPH_FILE

    digests = [cut_encoder(path, tmp_path / "encoder.onnx") for path in (before, after)]

    assert digests[0] == digests[1]
    assert digest_of((refitted / "encoder.onnx").read_bytes()) == f"sha256:{digests[0]}"
    assert not np.allclose(find_tail(before).weight, find_tail(after).weight)
    notes = {entry.key: entry.value for entry in onnx.load(after).metadata_props}
    assert notes == {"labels": json.dumps(LABELS), "dataset": read_json(refitted / "dataset.json")["name"]}


def test_its_weights_answer_as_its_graph_does(refitted: RunFolder, slice_samples: tuple[Samples, Samples]) -> None:
    model, labels = load_weights(refitted / WEIGHTS_FILE)
    images = slice_samples[1].images[:20]

    with torch.inference_mode():
        answers = model(torch.from_numpy(images)).numpy()

    assert labels == LABELS
    assert np.allclose(answers, run_graph(open_graph(refitted / GRAPH_FILE, 1), images, 20), atol=1e-4)


def test_what_it_has_learnt_is_kept(refitted: RunFolder, slice_samples: tuple[Samples, Samples]) -> None:
    learnt, before = (np.load(path / LEARNT_FILE) for path in (refitted.path, RUN))
    given = digest_contents(negatives(slice_samples[0]).images, np.arange(10 * PER_CLASS))

    assert np.isin(before, learnt).all()
    assert len(learnt) == len(np.unique(learnt))
    assert 0.7 < np.isin(given, learnt).mean() < 1  # but for the validation part


@pytest.mark.parametrize("stage", ["embed", "weights"])
def test_a_run_that_was_killed_gives_the_same_graph(
    runs: Runs, source: str, snapshot: str, refitted: RunFolder, stage: str, tmp_path: Path
) -> None:
    whole = {name: (refitted / name).read_bytes() for name in (GRAPH_FILE, LEARNT_FILE)}
    refitted.path.rename(tmp_path / "aside")
    try:
        folder = runs.create("refitted", RefitOptions(source=source, dataset=snapshot, threads=1))
        assert runs.signal(folder, signal.SIGKILL, at_stage(stage)) == -signal.SIGKILL
        runs.outcome(folder)
        again = {name: (folder / name).read_bytes() for name in whole}
    finally:
        shutil.rmtree(refitted.path)
        (tmp_path / "aside").rename(refitted.path)

    assert again == whole


def test_a_refitted_model_is_refitted(runs: Runs, refitted: RunFolder, snapshot: str) -> None:
    folder = runs.finish("again", RefitOptions(source="run:refitted", dataset=snapshot, rounds=5, threads=1))

    assert (folder / "encoder.onnx").read_bytes() == (refitted / "encoder.onnx").read_bytes()


def test_a_refitted_model_is_evaluated(runs: Runs, refitted: RunFolder) -> None:
    folder = runs.finish("looked-at", EvaluationOptions(source="run:refitted", robustness=False, threads=1))

    outcomes = [each.outcome() for each in (folder, refitted)]
    accuracies = [outcome.metrics["test_accuracy"] for outcome in outcomes if outcome is not None]
    assert accuracies[0] == accuracies[1]


def test_a_network_learns_on_from_a_snapshot(runs: Runs, refitted: RunFolder, snapshot: str) -> None:
    training = manifest_of(refitted).training
    assert training is not None
    changes = {
        "start_from": "run:refitted", "epochs": 1, "batch_size": 64, "learning_rate": 0.01, "threads": 1,
        "precision": "float32",
    }  # fmt: skip
    options = TrainingOptions.model_validate(training.options | changes)

    outcome = runs.finish("further", options).outcome()

    assert outcome is not None
    assert outcome.dataset is not None
    assert (outcome.dataset.name, outcome.dataset.counts["test"]) == (snapshot, 1000)


def test_other_labels_are_refused(runs: Runs, source: str) -> None:
    options = RefitOptions(source=source, dataset="pictures", threads=1)

    assert runs.refusal("labelled-otherwise", options).startswith(
        "data set 'pictures' has other labels or pixels than run:starter; fit it to one with airplane, automobile"
    )
