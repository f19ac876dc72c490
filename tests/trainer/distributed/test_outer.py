import pytest
import torch
from torch import Tensor

from services.trainer.distributed.flat import Flat
from services.trainer.distributed.outer import OuterState, follow
from services.trainer.options import Workers

PLAIN = Workers(outer_learning_rate=1, outer_momentum=0)


def model_of(seed: int, scale: float = 1.0) -> Flat:
    """Six weights and four statistics."""
    return Flat(torch.randn(10, generator=torch.Generator().manual_seed(seed)) * scale, 6)


def learnt(start: OuterState, difference: Tensor) -> Flat:
    """What a worker comes to that moves all weights by *difference*."""
    return Flat(start.model.numbers + difference, 6)


def test_one_worker_is_followed_to_the_bit_without_momentum() -> None:
    state = OuterState.begin(model_of(0, scale=1e-3))

    for seed in range(1, 6):
        end = model_of(seed, scale=10.0**seed)
        state = state.exchange(state, end, PLAIN)

        assert torch.equal(state.model.numbers, end.numbers)
    assert state.exchanges == 5


@pytest.mark.parametrize(("rate", "momentum"), [(0.7, 0.5), (0.7, 0.9), (1.3, 0.0)])
def test_differences_of_one_worker_are_gradients_of_nesterov_sgd(rate: float, momentum: float) -> None:
    state = OuterState.begin(model_of(0))
    parameter = torch.nn.Parameter(state.model.weights.clone())
    sgd = torch.optim.SGD([parameter], lr=rate, momentum=momentum, nesterov=momentum > 0)

    for seed in range(1, 6):
        difference = model_of(seed).numbers
        state = state.exchange(
            state, learnt(state, difference), Workers(outer_learning_rate=rate, outer_momentum=momentum)
        )
        parameter.grad = -difference[:6]
        sgd.step()

        assert torch.allclose(state.model.weights, parameter.detach(), atol=1e-5)


@pytest.mark.parametrize(("missed", "share"), [(0, 1.0), (1, 0.5), (3, 0.25)])
def test_what_comes_late_counts_less(missed: int, share: float) -> None:
    start = state = OuterState.begin(model_of(0))
    for _ in range(missed):
        state = state.exchange(state, state.model, PLAIN)  # nothing is learnt, but something is exchanged

    moved = state.exchange(start, learnt(start, torch.ones(10)), PLAIN)

    assert torch.allclose(moved.model.weights - start.model.weights, torch.full((6,), share))
    assert torch.allclose(moved.model.statistics - start.model.statistics, torch.full((4,), share))


def test_statistics_stay_between_those_of_the_workers() -> None:
    start = OuterState.begin(model_of(0))
    low, high = Flat(torch.full((10,), 0.1), 6), Flat(torch.full((10,), 0.3), 6)

    state = start.exchange(start, low, Workers()).exchange(start, high, Workers())

    assert torch.allclose(state.model.statistics, torch.full((4,), 0.2))


def test_an_exchange_leaves_earlier_states_as_they_were() -> None:
    start = OuterState.begin(model_of(0))
    before = start.model.numbers.clone()

    start.exchange(start, model_of(1), Workers())

    assert torch.equal(start.model.numbers, before)
    assert not start.momentum.any()


def test_a_model_larger_than_a_block_is_exchanged_whole() -> None:
    start = OuterState.begin(Flat(torch.zeros((1 << 20) + 5), (1 << 20) + 3))
    end = Flat(torch.arange((1 << 20) + 5, dtype=torch.float32), (1 << 20) + 3)

    assert torch.equal(start.exchange(start, end, PLAIN).model.numbers, end.numbers)


def test_the_average_follows_the_models() -> None:
    first, second = Flat(torch.zeros(10), 6), Flat(torch.ones(10), 6)

    average = follow(follow(None, first, 0.75), second, 0.75)

    assert torch.equal(average.numbers, torch.full((10,), 0.25))
