"""A training run that nothing interrupts, and those that build on another one's model."""

import asyncio
import csv
import json

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from services.common.manifest import Manifest, digest_of
from services.trainer.data.samples import Samples
from services.trainer.evaluation.card import ModelCard
from services.trainer.networks.weights import load_weights
from services.trainer.publishing import publish_version
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.record import RunState
from tests.conftest import Served
from tests.trainer.jobs.conftest import Make, Runs, entries_of, read_json, told_epochs, told_steps

LABELS = ("airplane", "automobile", "bird")


def manifest_of(folder: RunFolder) -> Manifest:
    return Manifest.from_json((folder / "model.json").read_bytes(), "model.json")


def card_of(folder: RunFolder) -> ModelCard:
    return ModelCard.model_validate_json((folder / "card.json").read_bytes())


def weights_of(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_weights(folder / "weights.pt")[0].state_dict()


@pytest.fixture
def images(slice_samples: tuple[Samples, Samples]) -> np.ndarray:
    """Real pixels in the size of the small networks."""
    return slice_samples[1].images[:200, 8:24, 8:24].copy()


def answers(folder: RunFolder, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"image": images})[0]


def test_a_finished_run_holds_its_model_and_no_checkpoint(finished: RunFolder) -> None:
    outcome = finished.outcome()

    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED
    assert {path.name for path in finished.path.iterdir()} == {
        "run.json", "outcome.json", "progress.jsonl", "lock", "log.txt", "dataset.json", "learnt.npy", "tensorboard",
        "weights.pt", "model.onnx", "model.json", "evaluation.json", "confusion.csv", "card.json", "card.html",
    }  # fmt: skip


def test_the_manifest_describes_the_graph_beside_it(finished: RunFolder) -> None:
    document, outcome = manifest_of(finished), finished.outcome()

    assert outcome is not None
    assert document.graph is not None
    assert document.preprocess is not None
    assert document.training is not None
    assert document.graph.sha256 == digest_of((finished / "model.onnx").read_bytes())
    assert document.preprocess.shape == (16, 16, 3)
    assert document.labels == LABELS
    assert document.training.run_id == "finished"
    assert document.training.dataset == outcome.dataset
    assert document.training.dataset.counts == {"train": 96, "validation": 24, "test": 60}
    assert document.metrics == outcome.metrics


def test_figures_are_the_same_wherever_they_are_written(finished: RunFolder) -> None:
    metrics, evaluation = manifest_of(finished).metrics, read_json(finished / "evaluation.json")
    rows = list(csv.reader((finished / "confusion.csv").read_text().splitlines()))
    right = sum(int(rows[1 + number][1 + number]) for number in range(3))

    assert metrics["test_accuracy"] == evaluation["accuracy"] == right / 60
    assert metrics["test_accuracy_low"] < metrics["test_accuracy"] < metrics["test_accuracy_high"]
    assert card_of(finished).evaluation.accuracy == metrics["test_accuracy"]
    assert sorted(card_of(finished).history) == list(range(1, 9))
    assert f"{metrics['test_accuracy']:.1%}".rstrip("%") in (finished / "card.html").read_text()


def test_the_best_epoch_is_kept(finished: RunFolder) -> None:
    accuracies = [figures["validation_accuracy"] for figures in told_epochs(finished).values()]

    assert manifest_of(finished).metrics["validation_accuracy"] == max(accuracies)
    assert max(accuracies) > 0.5


def test_the_graph_says_what_it_is_and_answers_its_golden_vectors(finished: RunFolder) -> None:
    golden, training = manifest_of(finished).golden, manifest_of(finished).training
    assert golden is not None
    assert training is not None

    found = answers(finished, golden.inputs[0].to_array())

    assert np.allclose(found, golden.outputs[0].to_array(), atol=golden.absolute_tolerance)
    notes = {entry.key: entry.value for entry in onnx.load(finished / "model.onnx").metadata_props}
    assert notes == {"labels": json.dumps(LABELS), "dataset": training.dataset.name}


def test_golden_vectors_are_public_pictures(finished: RunFolder, slice_samples: tuple[Samples, Samples]) -> None:
    golden = manifest_of(finished).golden
    assert golden is not None

    public = slice_samples[1].images[:, ::2, ::2]  # every second pixel of the test pictures

    assert all((public == image).all(axis=(1, 2, 3)).any() for image in golden.inputs[0].to_array())


def test_weights_give_what_the_graph_gives(finished: RunFolder, images: np.ndarray) -> None:
    model, labels = load_weights(finished / "weights.pt")

    with torch.inference_mode():
        found = model(torch.from_numpy(images)).numpy()

    assert labels == LABELS
    assert np.allclose(found, answers(finished, images), atol=1e-5)


def test_progress_tells_every_step_every_epoch_and_the_stages_in_order(finished: RunFolder) -> None:
    entries = entries_of(finished)

    assert list(dict.fromkeys(entry.stage for entry in entries)) == ["prepare", "train", "export", "evaluate"]
    assert all(0 <= entry.fraction <= 1 for entry in entries)
    assert told_steps(finished) == list(range(1, 49))
    assert list(told_epochs(finished)) == list(range(1, 9))
    assert [entry.eta_seconds for entry in entries if entry.kind == "epoch"][-1] == 0
    assert "test_accuracy" in entries[-1].figures


def test_tensorboard_shows_the_same_curve(finished: RunFolder) -> None:
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()

    shown = {event.step: event.value for event in events.Scalars("epoch/validation_loss")}

    told = {epoch: figures["validation_loss"] for epoch, figures in told_epochs(finished).items()}
    assert shown == pytest.approx(told, rel=1e-6)
    assert len(events.Scalars("step/train_loss")) == 48


async def test_inference_takes_the_model(finished: RunFolder, inference: Served) -> None:
    def publish() -> int:
        with grpc.insecure_channel(inference.address) as channel:
            return publish_version(channel, "vehicles", finished.path).version

    assert await asyncio.to_thread(publish) == 1


@pytest.fixture(scope="module")
def child(runs: Runs, make: Make, finished: RunFolder) -> RunFolder:
    """A run that goes on from the finished one's weights with most layers frozen, and learns from it as a teacher."""
    overrides = {
        "start_from": "run:finished",
        "freeze": ["stages"],
        "distillation": {"teacher": "run:finished", "weight": 1.0, "temperature": 1.0},
        "early_stopping": 1,
        "epochs": 30,
        "learning_rate": 1e-6,
        "bias_learning_rate_factor": 1,
    }
    return runs.finish("child", make(overrides))


def test_frozen_layers_stay_bit_for_bit_and_others_learn(finished: RunFolder, child: RunFolder) -> None:
    before, after = weights_of(finished), weights_of(child)

    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}

    assert changed == {"network.head.weight"}


def test_a_student_that_equals_its_teacher_has_little_to_learn(finished: RunFolder, child: RunFolder) -> None:
    # The cross-entropy with labels is never below 0.29 where 0.1 of three classes is smoothed.
    assert told_epochs(child)[1]["train_loss"] < 0.1


def test_a_run_stops_early_when_it_gets_no_better(child: RunFolder) -> None:
    told = told_epochs(child)

    assert 2 <= len(told) < 30
    assert told[len(told)]["validation_accuracy"] <= max(
        told[epoch]["validation_accuracy"] for epoch in range(1, len(told))
    )


def test_a_card_compares_a_model_with_the_one_that_it_started_from(finished: RunFolder, child: RunFolder) -> None:
    parent = card_of(child).parent

    assert parent is not None
    assert (parent.title, parent.accuracy) == ("finished", card_of(finished).evaluation.accuracy)


def test_a_model_is_measured_on_spoilt_pictures_beside_the_one_that_it_started_from(
    finished: RunFolder, child: RunFolder
) -> None:
    before, after = manifest_of(finished).metrics, manifest_of(child).metrics

    assert "source_corrupted_accuracy" not in before
    assert 1 / 3 < before["corrupted_accuracy"] <= 1
    assert after["source_corrupted_accuracy"] == before["corrupted_accuracy"]
    assert after["corrupted_accuracy"] == pytest.approx(before["corrupted_accuracy"], abs=0.1)


@pytest.fixture(scope="module")
def pruned(runs: Runs, make: Make, finished: RunFolder) -> RunFolder:
    """A run that makes the finished one's network smaller, and repairs it."""
    return runs.finish("pruned", make({"start_from": "run:finished", "pruning": {"speedup": 2.0}}))


def test_pruning_removes_channels_and_the_card_says_so(finished: RunFolder, pruned: RunFolder) -> None:
    before, after = card_of(finished).network_size, card_of(pruned).network_size

    assert before is not None
    assert after is not None
    assert after.multiply_adds <= before.multiply_adds / 2
    assert sum(value.numel() for value in weights_of(pruned).values()) < 0.7 * sum(
        value.numel() for value in weights_of(finished).values()
    )


def test_a_run_starts_from_a_pruned_model(runs: Runs, make: Make, pruned: RunFolder) -> None:
    folder = runs.begin("after-pruning", make({"start_from": "run:pruned", "learning_rate": 1e-6}))

    assert told_epochs(folder)[1]["train_loss"] == pytest.approx(told_epochs(pruned)[2]["train_loss"], rel=0.3)


@pytest.mark.parametrize(("replay", "train"), [(1.0, 24 + 24), (0.5, 24 + 12), (100.0, 24 + 96), (0.0, 24)])
def test_a_run_on_newer_samples_learns_old_ones_again(
    runs: Runs, make: Make, finished: RunFolder, replay: float, train: int
) -> None:
    options = make({"start_from": "run:finished", "replay": replay}, "newer")

    described = read_json(runs.begin(f"replay-{replay:g}", options) / "dataset.json")

    alone = {"validation": 6, "test": 30}
    joined = {"validation": 6 + 24, "test": 30 + 60}
    assert described["counts"] == {"train": train, **(joined if replay else alone)}


def test_other_labels_than_those_of_the_start_are_refused(runs: Runs, make: Make, finished: RunFolder) -> None:
    options = make({"start_from": "run:finished", "replay": 0.0}, "others")

    assert runs.refusal("other-labels", options) == (
        f"run:finished tells airplane, automobile, bird apart, data set {options.dataset} has cat, deer, dog; start "
        "from a model with the same labels"
    )


def test_replay_of_other_labels_is_refused(runs: Runs, make: Make, finished: RunFolder) -> None:
    options = make({"start_from": "run:finished"}, "others")

    assert "has other labels or pixels than" in runs.refusal("other-replay", options)


def test_a_teacher_with_other_labels_is_refused(runs: Runs, make: Make, finished: RunFolder) -> None:
    reason = runs.refusal("other-teacher", make({"distillation": {"teacher": "run:finished"}}, "others"))

    assert reason.startswith("teacher finished tells airplane, automobile, bird apart, the student cat, deer, dog; ")


def test_a_start_that_is_not_there_is_refused(runs: Runs, make: Make) -> None:
    assert runs.refusal("orphan", make({"start_from": "run:nobody"})) == (
        "run 'nobody' is unknown; `aimass runs` names those that exist"
    )
