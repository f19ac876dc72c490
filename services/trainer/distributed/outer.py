"""The outer optimiser: what several workers have learnt apart becomes one model.

Each worker starts from a copy of the weights, trains for some steps and comes back. The difference is taken for a
gradient and handed to SGD with Nesterov momentum (DiLoCo, Douillard et al. 2023). Nobody waits: meanwhile others may
have changed the weights, so what comes late counts less (asynchronous local SGD, Liu et al. 2024).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from services.trainer.distributed.flat import Flat
from services.trainer.options import Workers

_BLOCK = 1 << 20
"""Numbers that are computed at once in float64, so that a large model needs little besides itself."""


@dataclass(frozen=True)
class OuterState:
    """A model after so many exchanges. It never changes: an exchange makes another one, and this stays readable.

    Attributes:
        model: What a worker starts from.
        momentum: Float32, as the learnt part of *model*.
        exchanges: So far.
    """

    model: Flat
    momentum: Tensor
    exchanges: int = 0

    @classmethod
    def begin(cls, model: Flat) -> Self:
        """Return the state before the first exchange."""
        return cls(model, torch.zeros_like(model.weights))

    def exchange(self, start: Self, end: Flat, workers: Workers) -> Self:
        """Return the state that has taken in what a worker has learnt.

        One worker with an outer learning rate of 1 and no momentum gives exactly its own weights.

        Args:
            start: What the worker started from; this state or an earlier one.
            end: Where it came to.
            workers: Outer learning rate and momentum, staleness power.
        """
        count = discount(workers, self.exchanges - start.exchanges)
        numbers, momentum = torch.empty_like(self.model.numbers), torch.empty_like(self.momentum)
        moved = Flat(numbers, self.model.learnt)
        for block in _blocks(momentum):
            # In float64 the difference of two float32 is exact, so that x - (x - y) is y.
            gradient = count * (start.model.weights[block].double() - end.weights[block].double())
            velocity = workers.outer_momentum * self.momentum[block].double() + gradient
            step = gradient + workers.outer_momentum * velocity
            moved.weights[block] = self.model.weights[block].double() - workers.outer_learning_rate * step
            momentum[block] = velocity
        # Statistics are averaged instead: a variance that overshoots could turn negative.
        moved.statistics.copy_(mixed(self.model.statistics, end.statistics, count))
        return type(self)(moved, momentum, self.exchanges + 1)


def discount(workers: Workers, missed: int) -> float:
    """Return what a contribution counts that has not seen *missed* exchanges of others."""
    return float((1 + missed) ** -workers.staleness_power)


def follow(average: Flat | None, model: Flat, decay: float) -> Flat:
    """Return the moving *average* of models after *model*; the first one is its own average."""
    if average is None:
        return model
    return Flat(mixed(average.numbers, model.numbers, 1 - decay), model.learnt)


def mixed(old: Tensor, new: Tensor, share: float) -> Tensor:
    """Return *old* with a *share* (0 to 1) of *new*, exactly *new* for 1, and what is equal in both as it is."""
    result = torch.empty_like(old)
    for block in _blocks(old):
        result[block] = old[block].double() + share * (new[block].double() - old[block].double())
    return result


def _blocks(row: Tensor) -> Iterator[slice]:
    return (slice(at, at + _BLOCK) for at in range(0, len(row), _BLOCK))
