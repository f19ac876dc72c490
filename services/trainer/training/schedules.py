"""Learning rate and momentum over the steps of a run."""

import math

from services.trainer.options import TrainingOptions

CLIMB_FROM = 0.1
"""Share of the learning rate that a linear warm-up begins with."""
CYCLE_FROM, CYCLE_TO = 1 / 25, 1 / 250_000
"""Shares of the learning rate that one cycle begins and ends with; those of torch's OneCycleLR."""
CYCLE_MOMENTUM = 0.1
"""By how much the momentum is lower where the rate of one cycle is at its peak."""


def rate_at(progress: float, epoch: float, options: TrainingOptions) -> float:
    """Return the learning rate when *progress* (0 to 1) of all steps is done, *epoch* (from 0) being the present."""
    climbing = progress < options.warm_up
    if options.schedule == "one-cycle":
        if climbing:
            return options.learning_rate * _cosine(CYCLE_FROM, 1, progress / options.warm_up)
        return options.learning_rate * _cosine(1, CYCLE_TO, _after_warm_up(progress, options))
    if climbing:
        return options.learning_rate * (CLIMB_FROM + (1 - CLIMB_FROM) * progress / options.warm_up)
    match options.schedule:
        case "constant":
            share = 1.0
        case "step":
            share = options.step_factor ** (int(epoch) // options.step_epochs)
        case "linear":
            share = 1 - _after_warm_up(progress, options)
        case "cosine":
            share = _cosine(1, 0, _after_warm_up(progress, options))
    return options.learning_rate * share


def momentum_at(progress: float, options: TrainingOptions) -> float:
    """Return the momentum when *progress* of all steps is done: only one cycle moves it, against the rate."""
    if options.schedule != "one-cycle":
        return options.momentum
    low = max(0.0, options.momentum - CYCLE_MOMENTUM)
    if progress < options.warm_up:
        return _cosine(options.momentum, low, progress / options.warm_up)
    return _cosine(low, options.momentum, _after_warm_up(progress, options))


def _after_warm_up(progress: float, options: TrainingOptions) -> float:
    return (progress - options.warm_up) / (1 - options.warm_up) if options.warm_up < 1 else 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
