"""The starter model's way into a repository, and its run's into the folder of runs."""

import numpy as np
import torch

from aimass.starter import VERSION, install_starter
from services.common.manifest import Manifest
from services.trainer.networks.weights import load_weights
from services.trainer.runs.folder import CARD_DOCUMENT_FILE, PROGRESS_FILE, WEIGHTS_FILE, RunFolder
from services.trainer.runs.progress import read_epochs
from services.trainer.runs.record import RunState


def test_a_new_home_gets_the_starter_model_and_its_run(tmp_path):
    models, runs = tmp_path / "new" / "models", tmp_path / "new" / "runs"
    install_starter(models, runs)

    for installed in (models / "cifar10" / "1", runs / "starter"):
        for name in ("model.onnx", "model.json"):
            assert (installed / name).read_bytes() == (VERSION / name).read_bytes()
    assert {path.name for folder in (models, runs) for path in folder.iterdir()} == {"cifar10", "starter"}


def test_what_is_there_is_left_alone(tmp_path):
    mine = tmp_path / "models" / "cifar10" / "4"
    mine.mkdir(parents=True)
    (tmp_path / "runs" / "starter").mkdir(parents=True)

    install_starter(tmp_path / "models", tmp_path / "runs")

    assert [path.name for path in (tmp_path / "models" / "cifar10").iterdir()] == ["4"]
    assert not list((tmp_path / "runs" / "starter").iterdir())


def test_the_starter_model_is_small_and_says_where_it_comes_from():
    manifest = Manifest.from_json((VERSION / "model.json").read_bytes(), "model.json")

    assert (VERSION / "model.onnx").stat().st_size <= 8 * 1024 * 1024
    assert manifest.preprocess.datatype == "UINT8"
    assert manifest.training.dataset.name == "cifar10"
    assert manifest.golden is not None
    assert len(manifest.labels) == 10


def test_the_starter_run_is_one_that_others_can_start_from(tmp_path):
    install_starter(tmp_path / "models", tmp_path / "runs")
    folder = RunFolder(tmp_path / "runs" / "starter")
    manifest = Manifest.from_json((VERSION / "model.json").read_bytes(), "model.json")

    model, labels = load_weights(folder / WEIGHTS_FILE)

    assert folder.outcome().state is RunState.SUCCEEDED
    assert folder.request().id == manifest.training.run_id == "starter"
    assert read_epochs(folder / PROGRESS_FILE) == folder.request().options.epochs
    assert (folder / CARD_DOCUMENT_FILE).exists()
    assert labels == manifest.labels
    [image], [expected] = manifest.golden.inputs, manifest.golden.outputs
    with torch.inference_mode():
        found = model(torch.from_numpy(image.to_array().copy())).numpy()
    np.testing.assert_allclose(found, expected.to_array(), atol=manifest.golden.absolute_tolerance)
