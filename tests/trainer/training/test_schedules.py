from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from services.trainer.options import TrainingOptions
from services.trainer.training.schedules import momentum_at, rate_at

STEPS = 100


def options(**fields: Any) -> TrainingOptions:
    return TrainingOptions.model_validate(
        {"recipe": "none", "epochs": 10, "learning_rate": 2.0, "warm_up": 0.0} | fields
    )


def torch_rates(scheduler: type, **arguments: Any) -> list[tuple[float, float]]:
    """Learning rates and momenta that torch's own *scheduler* gives over `STEPS`."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0, momentum=0.9)
    following, found = scheduler(optimizer, **arguments), []
    for _ in range(STEPS):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        following.step()
    return found


def rates(chosen: TrainingOptions, epochs: int = 10) -> list[float]:
    return [rate_at(step / STEPS, step * epochs // STEPS, chosen) for step in range(STEPS)]


def test_the_rate_climbs_to_its_peak_then_falls_to_zero() -> None:
    straight = options(warm_up=0.25)

    assert [rate_at(progress, 0, straight) for progress in (0.0, 0.25, 0.625, 1.0)] == pytest.approx(
        [0.2, 2.0, 1.0, 0.0]
    )


def test_a_constant_rate_stays() -> None:
    assert set(rates(options(schedule="constant"))) == {2.0}


def test_steps_fall_as_torch_s_steps() -> None:
    expected = torch_rates(lr_scheduler.StepLR, step_size=30, gamma=0.1)

    assert rates(options(schedule="step", step_epochs=30), epochs=STEPS) == pytest.approx(
        [rate for rate, _ in expected]
    )


def test_a_cosine_falls_as_torch_s_cosine() -> None:
    expected = torch_rates(lr_scheduler.CosineAnnealingLR, T_max=STEPS)

    assert rates(options(schedule="cosine")) == pytest.approx([rate for rate, _ in expected])


def test_one_cycle_moves_rate_and_momentum_as_torch_s() -> None:
    # torch counts the climb to its last step, we to the share of all steps: the last but one of 101 is our 100 %.
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0, momentum=0.9)
    cycle = lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.0, total_steps=STEPS + 1, pct_start=30.01 / 101, base_momentum=0.8, max_momentum=0.9
    )
    chosen = options(schedule="one-cycle", warm_up=0.29)

    for step in range(STEPS):
        progress = step / STEPS
        group = optimizer.param_groups[0]
        assert rate_at(progress, 0, chosen) == pytest.approx(group["lr"], rel=0.02, abs=1e-3)
        assert momentum_at(progress, chosen) == pytest.approx(group["momentum"], abs=2e-3)
        optimizer.step()
        cycle.step()


def test_only_one_cycle_moves_the_momentum() -> None:
    assert {momentum_at(step / STEPS, options(schedule="cosine")) for step in range(STEPS)} == {0.9}


@pytest.mark.parametrize("schedule", ["constant", "step", "linear", "cosine", "one-cycle"])
@pytest.mark.parametrize("warm_up", [0.0, 0.5, 1.0])
def test_every_rate_is_between_zero_and_the_peak(schedule: str, warm_up: float) -> None:
    found = rates(options(schedule=schedule, warm_up=warm_up))

    assert all(0 <= rate <= 2.0 for rate in found)
    assert max(found) > 1.9
