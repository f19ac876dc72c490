import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import Conflict, InvalidInput
from services.common.manifest import Manifest, digest_of
from services.trainer.export import open_graph, run_graph
from services.trainer.pipeline import run_training
from services.trainer.recipes import TrainingOptions
from services.trainer.runs import RunState, read_run


class Reports(list[tuple[str, float, dict[str, float]]]):
    """Keeps every report."""

    def __call__(self, stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        self.append((stage, fraction, dict(metrics)))


@pytest.fixture(scope="module")
def options(small_options: TrainingOptions) -> TrainingOptions:
    return small_options.model_copy(update={"epochs": 2, "batch_size": 256})


@pytest.fixture(scope="module")
def reports() -> Reports:
    return Reports()


@pytest.fixture(scope="module")
def finished(options: TrainingOptions, reports: Reports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that succeeded."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run_training(options, folder.parent, folder, reports)
    return folder


def test_a_finished_run_holds_its_record_and_its_model(finished: Path, options: TrainingOptions) -> None:
    run = read_run(finished)

    assert run.state is RunState.SUCCEEDED
    assert run.options == options
    assert run.finish_time is not None
    assert run.finish_time >= run.create_time
    assert [result.epoch for result in run.history] == [1, 2]
    assert {path.name for path in finished.iterdir()} == {
        "run.json", "checkpoint.pt", "evaluation.json", "model.onnx", "model.json",
    }  # fmt: skip


def test_the_manifest_describes_the_graph_beside_it(finished: Path) -> None:
    document = Manifest.from_json((finished / "model.json").read_bytes(), "model.json")

    assert document.graph is not None
    assert document.preprocess is not None
    assert document.training is not None
    assert document.graph.sha256 == digest_of((finished / "model.onnx").read_bytes())
    assert document.preprocess.shape == (32, 32, 3)
    assert document.preprocess_digest == document.preprocess.digest
    assert document.labels[3] == "cat"
    assert document.training.run_id == "first"
    assert document.training.dataset == read_run(finished).dataset


def test_the_graph_answers_the_golden_vectors_of_its_manifest(finished: Path) -> None:
    golden = Manifest.from_json((finished / "model.json").read_bytes(), "model.json").golden
    assert golden is not None

    found = run_graph(open_graph(finished / "model.onnx", threads=1), golden.inputs[0].to_array(), 8)

    assert np.allclose(found, golden.outputs[0].to_array(), atol=golden.absolute_tolerance)


def test_test_accuracy_in_the_manifest_lies_in_its_interval(finished: Path) -> None:
    metrics = Manifest.from_json((finished / "model.json").read_bytes(), "model.json").metrics

    assert metrics["test_samples"] == 1000
    assert 0.1 < metrics["test_accuracy_low"] < metrics["test_accuracy"] < metrics["test_accuracy_high"]


def test_stages_are_reported_in_the_order_they_happen(finished: Path, reports: Reports) -> None:
    stages = [stage for stage, _, _ in reports]

    assert list(dict.fromkeys(stages)) == ["load", "train", "export", "evaluate"]
    assert all(0 <= fraction <= 1 for _, fraction, _ in reports)
    assert "test_accuracy" in reports[-1][2]


def test_a_run_that_succeeded_is_not_repeated(finished: Path, options: TrainingOptions, reports: Reports) -> None:
    with pytest.raises(Conflict, match="run 'first' has succeeded already"):
        run_training(options, finished.parent, finished, reports)


def test_a_failed_run_says_why(options: TrainingOptions, tmp_path: Path) -> None:
    wrong = options.model_copy(update={"network": "vgg"})

    with pytest.raises(InvalidInput):
        run_training(wrong, tmp_path, tmp_path / "r", Reports())

    run = read_run(tmp_path / "r")
    assert (run.state, run.reason) == (RunState.FAILED, "network 'vgg' is unknown; use one of residual")
    assert run.finish_time is not None


def test_an_interrupted_run_continues_after_its_last_epoch(options: TrainingOptions, tmp_path: Path) -> None:
    def interrupt(stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        if "validation_accuracy" in metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(options, tmp_path, tmp_path / "r", interrupt)
    interrupted = read_run(tmp_path / "r")
    again = Reports()
    run = run_training(options, tmp_path, tmp_path / "r", again)

    assert (interrupted.state, len(interrupted.history)) == (RunState.FAILED, 1)
    assert interrupted.reason == "interrupted; start it again to continue"
    assert run.history[0] == interrupted.history[0]
    assert next(fraction for stage, fraction, _ in again if stage == "train") > 0.5


def test_an_interrupted_run_refuses_other_options(options: TrainingOptions, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        run_training(options.model_copy(update={"network": "vgg"}), tmp_path, tmp_path / "r", Reports())

    with pytest.raises(Conflict, match="was started with other options"):
        run_training(options, tmp_path, tmp_path / "r", Reports())


def test_only_the_training_process_imports_torch() -> None:
    modules = ("datasets", "recipes", "evaluation", "runs", "slices", "cifar10", "samples")
    program = f"import sys, {', '.join(f'services.trainer.{name}' for name in modules)}; print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
