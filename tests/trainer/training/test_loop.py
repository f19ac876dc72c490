import dataclasses
from pathlib import Path

import pytest
import torch

from services.common.errors import Conflict, InvalidInput
from services.trainer.data.datasets import Dataset
from services.trainer.networks.building import build_network
from services.trainer.networks.residual import whitening_filters
from services.trainer.options import TrainingOptions
from services.trainer.runs.record import EpochResult
from services.trainer.training.loop import build_model, predict, rate_at, train


class Stopped(Exception):
    """Stands for a killed process."""


@pytest.fixture(scope="module")
def tiny_dataset(small_dataset: Dataset) -> Dataset:
    return dataclasses.replace(small_dataset, train=small_dataset.train[:256], validation=small_dataset.validation[:50])


def test_training_learns(small_dataset: Dataset, small_options: TrainingOptions) -> None:
    options = small_options.model_copy(update={"epochs": 6})

    history = train(build_model(small_dataset, options), small_dataset, options)

    assert history[-1].train_loss < history[0].train_loss - 0.2
    assert history[-1].validation_accuracy > 0.3  # chance is 0.1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_training_equals_uninterrupted_training(
    tmp_path: Path, tiny_dataset: Dataset, small_options: TrainingOptions, precision: str
) -> None:
    options = small_options.model_copy(update={"precision": precision, "average_decay": 0.9})
    whole = build_model(tiny_dataset, options)
    expected = train(whole, tiny_dataset, options)

    def stop(result: EpochResult) -> None:
        if result.epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(build_model(tiny_dataset, options), tiny_dataset, options, checkpoint=tmp_path / "c.pt", on_epoch=stop)
    resumed = build_model(tiny_dataset, options)
    found = train(resumed, tiny_dataset, options, checkpoint=tmp_path / "c.pt")

    assert [result.train_loss for result in found] == [result.train_loss for result in expected]
    assert torch.equal(predict(resumed, tiny_dataset.test), predict(whole, tiny_dataset.test))


def test_a_checkpoint_of_other_options_is_refused(
    tmp_path: Path, tiny_dataset: Dataset, small_options: TrainingOptions
) -> None:
    options = small_options.model_copy(update={"epochs": 1})
    train(build_model(tiny_dataset, options), tiny_dataset, options, checkpoint=tmp_path / "c.pt")
    other = options.model_copy(update={"learning_rate": 0.1})

    with pytest.raises(Conflict, match="belongs to a run with other options"):
        train(build_model(tiny_dataset, other), tiny_dataset, other, checkpoint=tmp_path / "c.pt")


def test_a_learning_rate_that_diverges_is_reported(tiny_dataset: Dataset, small_options: TrainingOptions) -> None:
    options = small_options.model_copy(update={"learning_rate": 1e30})

    with pytest.raises(InvalidInput, match=r"the loss is nan in epoch 1; lower learning_rate 1e\+30"):
        train(build_model(tiny_dataset, options), tiny_dataset, options)


def test_progress_is_told_after_every_step(tiny_dataset: Dataset, small_options: TrainingOptions) -> None:
    options = small_options.model_copy(update={"epochs": 2})
    steps: list[tuple[int, int]] = []

    train(
        build_model(tiny_dataset, options),
        tiny_dataset,
        options,
        on_step=lambda step, count, loss: steps.append((step, count)),
    )

    assert steps == [(step, 8) for step in range(1, 9)]


def test_frozen_weights_do_not_move(tiny_dataset: Dataset, small_options: TrainingOptions) -> None:
    model = build_model(tiny_dataset, small_options)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}

    train(model, tiny_dataset, small_options.model_copy(update={"epochs": 1}))

    assert "network.whiten.weight" in frozen
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())


def test_the_rate_climbs_to_its_peak_then_falls_to_zero(small_options: TrainingOptions) -> None:
    options = small_options.model_copy(update={"learning_rate": 2.0, "warm_up": 0.25})

    rates = [rate_at(progress, options) for progress in (0.0, 0.25, 0.625, 1.0)]

    assert rates == pytest.approx([0.2, 2.0, 1.0, 0.0])


def test_whitened_patches_are_uncorrelated_with_unit_variance(small_dataset: Dataset) -> None:
    images = torch.from_numpy(small_dataset.train.images).permute(0, 3, 1, 2).float() / 64

    outputs = torch.nn.functional.conv2d(images, whitening_filters(images, side=2, floor=0.0))

    covariance = torch.cov(outputs.transpose(0, 1).flatten(1))
    assert torch.allclose(covariance, torch.eye(12), atol=0.02)


def test_folding_norms_keeps_the_logits(small_dataset: Dataset, small_options: TrainingOptions) -> None:
    model = build_model(small_dataset, small_options)
    train(model, small_dataset, small_options.model_copy(update={"epochs": 1}))
    before = predict(model, small_dataset.test)

    model.network.fold()

    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert torch.allclose(predict(model, small_dataset.test), before, atol=1e-5)


def test_an_unknown_network_is_answered_with_those_that_exist() -> None:
    with pytest.raises(InvalidInput, match="network 'vgg' is unknown; use one of residual"):
        build_network("vgg", 10, {})


@pytest.mark.parametrize("options", [{"width": 3}, {"widths": [8, 8], "depths": [0]}])
def test_a_network_refuses_options_that_do_not_fit(options: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="network 'residual' refuses"):
        build_network("residual", 10, options)
