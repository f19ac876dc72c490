import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from services.trainer.networks.normalization import LocalResponseNorm


def values(*shape: int, scale: float = 30.0, seed: int = 0) -> Tensor:
    """Large enough that the sum of squares counts beside k."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 6),
    channels=st.integers(1, 9),
    alpha=st.sampled_from([1e-4, 1e-2, 1.0]),
    beta=st.sampled_from([0.75, 0.5, 1.0]),
    k=st.sampled_from([1.0, 2.0]),
    training=st.booleans(),
)
def test_norm_and_gradient_are_torch_s(
    size: int, channels: int, alpha: float, beta: float, k: float, training: bool
) -> None:
    mine, theirs = values(3, channels, 4, 5).requires_grad_(), values(3, channels, 4, 5).requires_grad_()
    direction = values(3, channels, 4, 5, scale=1.0, seed=1)

    found = LocalResponseNorm(size, alpha, beta, k).train(training)(mine)
    expected = nn.LocalResponseNorm(size, alpha, beta, k)(theirs)
    found.backward(direction)
    expected.backward(direction)

    assert mine.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-4, atol=1e-5)


def test_gradient_is_that_of_finite_differences() -> None:
    norm = LocalResponseNorm(5, alpha=0.1).train()

    assert torch.autograd.gradcheck(norm, values(2, 7, 2, 2, scale=2.0).double().requires_grad_())


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_stays_bfloat16_and_close(training: bool) -> None:
    x = values(2, 16, 8, 8)
    narrow = x.bfloat16().requires_grad_()

    found = LocalResponseNorm(alpha=1e-2).train(training)(narrow)
    found.sum().backward()

    assert found.dtype == torch.bfloat16
    assert narrow.grad is not None
    assert torch.isfinite(narrow.grad).all()
    torch.testing.assert_close(found.float(), nn.LocalResponseNorm(5, 1e-2, k=2.0)(x), rtol=0.03, atol=0.03)


def test_float16_values_whose_squares_overflow_are_normalised() -> None:
    x = values(1, 8, 2, 2, scale=2000.0)

    found = LocalResponseNorm()(x.half())

    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), nn.LocalResponseNorm(5, k=2.0)(x), rtol=2e-3, atol=1e-3)


def test_norm_follows_an_input_that_has_lost_channels() -> None:
    norm = LocalResponseNorm()
    norm(values(1, 16, 2, 2))

    found = norm(values(1, 6, 2, 2))

    torch.testing.assert_close(found, nn.LocalResponseNorm(5, k=2.0)(values(1, 6, 2, 2)))


def test_norm_can_be_trained_after_it_was_first_used_for_inference() -> None:
    norm = LocalResponseNorm()
    with torch.inference_mode():
        norm(values(1, 4, 2, 2))

    for training in (True, False):
        x = values(1, 4, 2, 2).requires_grad_()
        copy.deepcopy(norm).train(training)(x).sum().backward()
        assert x.grad is not None


def test_norm_keeps_nothing_in_the_state_dict() -> None:
    norm = LocalResponseNorm()
    norm(values(1, 4, 2, 2))

    assert not norm.state_dict()
