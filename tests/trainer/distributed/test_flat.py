import pytest
import torch
from torch import nn

from services.common.errors import Conflict
from services.trainer.distributed.flat import CHUNK_BYTES, Flat


def small_network() -> nn.Sequential:
    """With frozen weights, statistics, a counter and a tensor that lies in another order."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    network[2].weight.requires_grad_(False)
    network(torch.randn(2, 3, 5, 5))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def test_a_network_takes_the_state_of_another_one() -> None:
    first, second = small_network(), small_network()

    Flat.of(first).write_to(second)

    assert all(torch.equal(second.state_dict()[name], value) for name, value in first.state_dict().items())
    assert second[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_what_is_learnt_comes_first() -> None:
    network = small_network()

    flat = Flat.of(network)

    assert torch.equal(flat.weights[:108], network[0].weight.detach().reshape(-1))
    assert flat.learnt == 108 + 4 + 4 + 4 + 2
    assert flat.statistics.numel() == 4 + 4 + 1 + 8


def test_shared_weights_are_held_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    network[1].weight = network[0].weight

    assert Flat.of(network).numbers.numel() == 9


@pytest.mark.parametrize("count", [0, 1, CHUNK_BYTES // 4, CHUNK_BYTES // 4 + 1])
def test_chunks_make_the_same_row_again(count: int) -> None:
    row = Flat(torch.randn(count), count)
    chunks = list(row.chunks())

    assert all(len(chunk) <= CHUNK_BYTES for chunk in chunks)
    assert torch.equal(Flat(torch.zeros(count), count).replaced(chunks).numbers, row.numbers)


@pytest.mark.parametrize("size", [0, 39, 41])
def test_a_row_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(Conflict, match=f"{size} bytes of weights came where the model has 40"):
        Flat(torch.zeros(10), 6).replaced([b"\0" * size])
