import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import Conflict
from services.common.manifest import Manifest, digest_of
from services.trainer.data.datasets import Dataset
from services.trainer.export.graph import open_graph, run_graph
from services.trainer.options import TrainingOptions
from services.trainer.runs.record import RunState, read_run
from tests.trainer.conftest import Reports, run_in


def test_a_finished_run_holds_its_record_and_its_model(finished: Path, run_options: TrainingOptions) -> None:
    run = read_run(finished)

    assert run.state is RunState.SUCCEEDED
    assert run.options == run_options
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

    assert metrics["test_samples"] == 100
    assert 0 < metrics["test_accuracy_low"] < metrics["test_accuracy"] < metrics["test_accuracy_high"]


def test_stages_are_reported_in_the_order_they_happen(finished: Path, reports: Reports) -> None:
    stages = [stage for stage, _, _ in reports]

    assert list(dict.fromkeys(stages)) == ["train", "export", "evaluate"]
    assert all(0 <= fraction <= 1 for _, fraction, _ in reports)
    assert "test_accuracy" in reports[-1][2]


def test_an_interrupted_run_continues_after_its_last_epoch(
    run_options: TrainingOptions, small_dataset: Dataset, tmp_path: Path
) -> None:
    def interrupt(stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        if "validation_accuracy" in metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "r", run_options, small_dataset, interrupt)
    interrupted = read_run(tmp_path / "r")
    again = Reports()
    run = run_in(tmp_path / "r", run_options, small_dataset, again)

    assert (interrupted.state, len(interrupted.history)) == (RunState.FAILED, 1)
    assert run.history[0] == interrupted.history[0]
    assert next(fraction for stage, fraction, _ in again if stage == "train") > 0.5


def test_an_interrupted_run_refuses_other_samples(
    run_options: TrainingOptions, small_dataset: Dataset, tmp_path: Path
) -> None:
    def interrupt(stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "r", run_options, small_dataset, interrupt)

    with pytest.raises(Conflict, match="run 'r' was started on other samples; bring them back or give a new run id"):
        run_in(tmp_path / "r", run_options, dataclasses.replace(small_dataset, test=small_dataset.train), Reports())


def test_only_the_training_process_imports_torch() -> None:
    modules = ("data.datasets", "options", "recipes", "evaluation.figures", "runs.record", "service")
    program = f"import sys, {', '.join(f'services.trainer.{name}' for name in modules)}; print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
