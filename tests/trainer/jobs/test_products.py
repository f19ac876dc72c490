"""Runs that convert a finished model, and such that measure it."""

import numpy as np
import onnx
import onnxruntime
import pytest

from services.common.manifest import Manifest, digest_of
from services.trainer.data.samples import Samples
from services.trainer.evaluation.card import ModelCard
from services.trainer.options import ConversionOptions, EvaluationOptions
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.record import Outcome, RunState
from tests.trainer.jobs.conftest import Runs, entries_of, read_json


def card_of(folder: RunFolder) -> ModelCard:
    return ModelCard.model_validate_json((folder / "card.json").read_bytes())


def outcome_of(folder: RunFolder) -> Outcome:
    outcome = folder.outcome()
    assert outcome is not None
    return outcome


@pytest.fixture(scope="module", params=["int8", "float16"])
def converted(request: pytest.FixtureRequest, runs: Runs, finished: RunFolder) -> RunFolder:
    options = ConversionOptions(source="run:finished", precision=request.param, threads=1)
    return runs.finish(request.param, options)


def test_a_converted_model_is_a_model_of_its_own(converted: RunFolder, finished: RunFolder) -> None:
    document = Manifest.from_json((converted / "model.json").read_bytes(), "model.json")
    before = Manifest.from_json((finished / "model.json").read_bytes(), "model.json")

    assert document.graph is not None
    assert document.training is not None
    assert before.graph is not None
    assert before.training is not None
    assert document.graph.sha256 == digest_of((converted / "model.onnx").read_bytes()) != before.graph.sha256
    assert document.training.run_id == converted.path.name
    assert document.training.dataset == before.training.dataset
    assert document.labels == before.labels
    assert document.metrics == outcome_of(converted).metrics


def test_its_card_compares_it_with_its_parent(converted: RunFolder, finished: RunFolder) -> None:
    parent = card_of(converted).parent

    assert parent is not None
    assert (parent.title, parent.accuracy) == ("finished", card_of(finished).evaluation.accuracy)
    assert "finished" in (converted / "card.html").read_text()


def test_it_answers_much_as_its_parent_does(
    converted: RunFolder, finished: RunFolder, slice_samples: tuple[Samples, Samples]
) -> None:
    images = slice_samples[1].images[:200, 8:24, 8:24].copy()
    before, after = (
        onnxruntime.InferenceSession(each / "model.onnx").run(None, {"image": images})[0]
        for each in (finished, converted)
    )

    assert np.abs(before - after).mean() < 0.02


def test_its_numbers_are_what_was_asked_for(converted: RunFolder) -> None:
    kinds = {tensor.data_type for tensor in onnx.load(converted / "model.onnx").graph.initializer}

    wanted = onnx.TensorProto.INT8 if converted.path.name == "int8" else onnx.TensorProto.FLOAT16
    assert wanted in kinds


def test_whether_integers_are_served_is_measured_and_written_down(converted: RunFolder) -> None:
    if converted.path.name != "int8":
        assert not (converted / "choice.json").exists()
        return
    choice, metrics = read_json(converted / "choice.json"), outcome_of(converted).metrics

    assert metrics["chosen"] == float(choice["chosen"])
    assert choice["quality"]["samples"] == 24  # of the validation part
    assert metrics["speedup"] == min(speed["ratio"] for speed in choice["speeds"])


@pytest.fixture(scope="module")
def evaluated(runs: Runs, finished: RunFolder) -> RunFolder:
    return runs.finish("evaluated", EvaluationOptions(source="run:finished", samples=12, threads=1))


def test_an_evaluation_gives_the_figures_of_the_run_and_more(evaluated: RunFolder, finished: RunFolder) -> None:
    metrics, before = outcome_of(evaluated).metrics, outcome_of(finished).metrics
    robustness = card_of(evaluated).robustness

    assert robustness is not None
    assert {name: metrics[name] for name in before if name.startswith("test_")} == {
        name: value for name, value in before.items() if name.startswith("test_")
    }
    assert metrics["corrupted_accuracy"] == robustness.mean_accuracy
    assert [name for name in metrics if name.startswith("pgd_")]
    assert card_of(evaluated).history == card_of(finished).history
    assert not (evaluated / "model.onnx").exists()


def test_an_evaluation_tells_its_stages(evaluated: RunFolder) -> None:
    stages = [entry.stage for entry in entries_of(evaluated)]

    assert list(dict.fromkeys(stages)) == ["prepare", "evaluate", "spoil", "attack"]


def test_a_model_is_evaluated_on_another_set(runs: Runs, finished: RunFolder) -> None:
    options = EvaluationOptions(source="run:finished", dataset="newer", robustness=False, threads=1)

    outcome = outcome_of(runs.finish("elsewhere", options))

    assert outcome.metrics["test_samples"] == 30
    assert outcome.dataset is not None
    assert outcome.dataset.name == "newer"
    assert "corrupted_accuracy" not in outcome.metrics


def test_an_evaluation_on_other_labels_is_refused(runs: Runs, finished: RunFolder) -> None:
    options = EvaluationOptions(source="run:finished", dataset="others", threads=1)

    assert runs.refusal("astray", options) == (
        "data set 'others' has other labels or pixels than run:finished; evaluate on one with airplane, automobile, "
        "bird"
    )


def test_a_converted_model_is_evaluated_without_an_attack(runs: Runs, converted: RunFolder) -> None:
    if converted.path.name != "int8":
        pytest.skip("one of them is enough")
    options = EvaluationOptions(source="run:int8", samples=6, threads=1)

    outcome = outcome_of(runs.finish("of-int8", options))

    assert outcome.state is RunState.SUCCEEDED
    assert "corrupted_accuracy" in outcome.metrics
    assert not [name for name in outcome.metrics if name.startswith("pgd_")]
