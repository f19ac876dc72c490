import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from services.common.errors import Conflict, InvalidInput
from services.trainer.data.datasets import Dataset
from services.trainer.options import TrainingOptions
from services.trainer.training.loop import Watcher, train
from services.trainer.training.model import build_model
from services.trainer.training.prediction import predict
from services.trainer.training.results import EpochResult, Interrupted, StepResult

STEPS_PER_EPOCH = 4


class Killed(Exception):
    """Stands for the end of a process."""


def stop_after(asked: int) -> Watcher:
    """A watcher that wants to stop after *asked* steps."""
    steps = iter(range(1, 10_000))
    return Watcher(should_stop=lambda: next(steps) == asked)


def figures(history: list[EpochResult]) -> list[dict[str, float]]:
    """What does not depend on the time it took."""
    return [result.model_dump(exclude={"seconds", "images_per_second"}) for result in history]


@pytest.fixture(scope="module")
def tiny_dataset(small_dataset: Dataset) -> Dataset:
    return dataclasses.replace(small_dataset, train=small_dataset.train[:256], validation=small_dataset.validation[:50])


@pytest.fixture(scope="module")
def tiny(small_options: TrainingOptions) -> TrainingOptions:
    return small_options.model_copy(update={"log_every": 1})


def changed(options: TrainingOptions, **fields: Any) -> TrainingOptions:
    return TrainingOptions.model_validate(options.model_dump() | fields)


def test_training_learns(small_dataset: Dataset, small_options: TrainingOptions) -> None:
    options = changed(small_options, epochs=6)

    history = train(build_model(small_dataset, options), small_dataset, options)

    assert history[-1].train_loss < history[0].train_loss - 0.2
    assert history[-1].validation_accuracy > 0.3  # chance is 0.1


EVERYTHING: dict[str, Any] = {
    "augmentation": {"policy": "trivial", "mixup": 0.4, "cutmix": 1.0, "cutout": 4},
    "average_decay": 0.9,
    "gradient_clip": 1.0,
    "keep": "best",
    "schedule": "one-cycle",
}


@pytest.mark.parametrize(
    "fields",
    [{}, {"precision": "bfloat16", "average_decay": 0.9}, {"optimizer": "adamw", "learning_rate": 0.01}, EVERYTHING],
    ids=["plain", "averaged bfloat16", "adamw", "everything"],
)
@pytest.mark.parametrize("asked", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2])
def test_training_that_was_stopped_at_any_step_equals_uninterrupted_training(
    tmp_path: Path, tiny_dataset: Dataset, tiny: TrainingOptions, fields: dict[str, Any], asked: int
) -> None:
    options = changed(tiny, **fields)
    whole = build_model(tiny_dataset, options)
    expected = train(whole, tiny_dataset, options)
    checkpoint = tmp_path / "c.pt"

    with pytest.raises(Interrupted):
        train(
            build_model(tiny_dataset, options), tiny_dataset, options, checkpoint=checkpoint, watcher=stop_after(asked)
        )
    resumed = build_model(tiny_dataset, options)
    found = train(resumed, tiny_dataset, options, checkpoint=checkpoint)

    assert figures(found) == figures(expected)
    assert (predict(resumed, tiny_dataset.test) == predict(whole, tiny_dataset.test)).all()


def test_a_killed_run_loses_no_finished_epoch(tmp_path: Path, tiny_dataset: Dataset, tiny: TrainingOptions) -> None:
    def kill(result: EpochResult) -> None:
        if result.epoch == 2:
            raise Killed

    expected = train(build_model(tiny_dataset, tiny), tiny_dataset, tiny)
    with pytest.raises(Killed):
        train(
            build_model(tiny_dataset, tiny),
            tiny_dataset,
            tiny,
            checkpoint=tmp_path / "c.pt",
            watcher=Watcher(on_epoch=kill),
        )

    told: list[EpochResult] = []
    steps: list[int] = []
    train(
        build_model(tiny_dataset, tiny),
        tiny_dataset,
        tiny,
        checkpoint=tmp_path / "c.pt",
        watcher=Watcher(on_epoch=told.append, on_step=lambda result: steps.append(result.step)),
    )

    assert figures(told) == figures(expected)
    assert steps == [9, 10, 11, 12]


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path, tiny_dataset: Dataset, tiny: TrainingOptions) -> None:
    options = changed(tiny, epochs=1)
    train(build_model(tiny_dataset, options), tiny_dataset, options, checkpoint=tmp_path / "c.pt")
    other = changed(options, learning_rate=0.1)

    with pytest.raises(Conflict, match="belongs to a run with other options"):
        train(build_model(tiny_dataset, other), tiny_dataset, other, checkpoint=tmp_path / "c.pt")


def test_a_damaged_checkpoint_is_refused_in_words(tmp_path: Path, tiny_dataset: Dataset, tiny: TrainingOptions) -> None:
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04 not a checkpoint")

    with pytest.raises(Conflict, match=r"c\.pt is damaged: .*; delete it to begin this run anew"):
        train(build_model(tiny_dataset, tiny), tiny_dataset, tiny, checkpoint=tmp_path / "c.pt")


def test_a_learning_rate_that_diverges_is_reported(tiny_dataset: Dataset, tiny: TrainingOptions) -> None:
    options = changed(tiny, learning_rate=100, warm_up=0, gradient_clip=0, optimizer="sgd", weight_decay=1)

    with pytest.raises(
        InvalidInput, match=r"the loss is (nan|inf) in epoch \d; lower learning_rate 100\.0 or set"
    ) as e:
        train(build_model(tiny_dataset, options), tiny_dataset, changed(options, epochs=30))

    assert e.value.reason == "DIVERGED"


def test_progress_is_told_as_often_as_it_is_asked_for(tiny_dataset: Dataset, tiny: TrainingOptions) -> None:
    options = changed(tiny, epochs=2, log_every=2)
    results: list[StepResult] = []

    train(build_model(tiny_dataset, options), tiny_dataset, options, watcher=Watcher(on_step=results.append))

    assert [(result.step, result.steps, result.epoch) for result in results] == [
        (2, 8, 1),
        (4, 8, 1),
        (6, 8, 2),
        (8, 8, 2),
    ]


def test_the_loss_of_an_epoch_is_the_mean_of_what_was_told(tiny_dataset: Dataset, tiny: TrainingOptions) -> None:
    options = changed(tiny, epochs=1, log_every=2)
    results: list[StepResult] = []

    (epoch,) = train(build_model(tiny_dataset, options), tiny_dataset, options, watcher=Watcher(on_step=results.append))

    assert epoch.train_loss == pytest.approx(sum(result.train_loss for result in results) / 2)


def test_early_stopping_ends_a_run_that_no_longer_gets_better(tiny_dataset: Dataset, tiny: TrainingOptions) -> None:
    options = changed(tiny, epochs=20, early_stopping=2, schedule="constant", learning_rate=1e-12, warm_up=0)

    history = train(build_model(tiny_dataset, options), tiny_dataset, options)

    # Nothing is learnt, but norms go on counting.
    best = max(history, key=lambda result: result.validation_accuracy)
    assert len(history) == best.epoch + 2 < 20


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_best_epoch_is_kept_where_that_is_asked_for(
    tmp_path: Path, tiny_dataset: Dataset, tiny: TrainingOptions, checkpointed: bool
) -> None:
    # The rate is far too high at the end, so the last epoch is not the best.
    options = changed(tiny, keep="best", epochs=4, schedule="constant", learning_rate=1.5, warm_up=1.0)
    model = build_model(tiny_dataset, options)

    history = train(model, tiny_dataset, options, checkpoint=tmp_path / "c.pt" if checkpointed else None)

    accuracy = (predict(model, tiny_dataset.validation).argmax(1) == tiny_dataset.validation.labels).mean()
    assert accuracy == pytest.approx(max(result.validation_accuracy for result in history))


def test_clipped_gradients_move_weights_less(tiny_dataset: Dataset, tiny: TrainingOptions) -> None:
    def moved(clip: float) -> float:
        options = changed(tiny, epochs=1, batch_size=256, gradient_clip=clip, warm_up=0, weight_decay=0, momentum=0)
        model = build_model(tiny_dataset, options)
        before = [p.detach().clone() for p in model.parameters()]
        train(model, tiny_dataset, options)
        return (
            sum(float((p.detach() - b).square().sum()) for p, b in zip(model.parameters(), before, strict=True)) ** 0.5
        )

    rate = tiny.learning_rate * tiny.bias_learning_rate_factor
    assert moved(0.01) <= 0.01 * rate * 1.001
    assert moved(0.01) < moved(0) / 2


def test_frozen_weights_do_not_move(tiny_dataset: Dataset, tiny: TrainingOptions) -> None:
    options = changed(tiny, epochs=1, freeze=["stages.0"])
    model = build_model(tiny_dataset, options)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    train(model, tiny_dataset, options)

    after = model.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("network.stages.0", "network.whiten"))} <= still
    assert any(name.startswith("network.stages.1") for name in before.keys() - still)
