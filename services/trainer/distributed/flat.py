"""A model's state as one row of numbers, as it is exchanged and computed with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from services.common.errors import Conflict

CHUNK_BYTES = 1 << 20
"""Size of the parts that a row is sent in."""


@dataclass(frozen=True)
class Flat:
    """All parameters and buffers of a model, one after the other.

    Attributes:
        numbers: Float32 (n,), on the CPU: what is learnt, then the rest. Integers up to 2**24 survive in them.
        learnt: How many of them are learnt by gradients. The others are buffers, such as statistics of batch norms,
            and frozen weights.
    """

    numbers: Tensor
    learnt: int

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return a copy of what *model* holds."""
        learnt, rest = _parts(model)
        numbers = torch.cat([tensor.detach().reshape(-1).float().cpu() for tensor in learnt + rest])
        return cls(numbers, sum(tensor.numel() for tensor in learnt))

    @property
    def weights(self) -> Tensor:
        """What is learnt, (learnt,)."""
        return self.numbers[: self.learnt]

    @property
    def statistics(self) -> Tensor:
        """The rest, (n - learnt,)."""
        return self.numbers[self.learnt :]

    def write_to(self, model: nn.Module) -> None:
        """Give *model*, which has the same structure as the one that this was made of, what this holds."""
        learnt, rest = _parts(model)
        at = 0
        with torch.no_grad():
            for tensor in learnt + rest:
                numbers = self.numbers[at : at + tensor.numel()].view(tensor.shape)
                tensor.copy_(numbers if tensor.is_floating_point() else numbers.round())
                at += tensor.numel()

    def chunks(self) -> Iterator[bytes]:
        """Yield the numbers as little-endian bytes, in parts of `CHUNK_BYTES`."""
        data = self.numbers.numpy().astype("<f4", copy=False).view(np.uint8)
        for at in range(0, len(data), CHUNK_BYTES):
            yield data[at : at + CHUNK_BYTES].tobytes()

    def replaced(self, chunks: Iterable[bytes]) -> Self:
        """Return the row that *chunks* make, of a model of the same structure as this.

        Raises:
            Conflict: They make a longer or a shorter one.
        """
        data = bytearray(self.numbers.numel() * 4)
        size = 0
        for chunk in chunks:
            if size + len(chunk) <= len(data):
                data[size : size + len(chunk)] = chunk
            size += len(chunk)
        if size != len(data):
            raise Conflict(
                f"{size} bytes of weights came where the model has {len(data)}; a worker has to make the same network"
            )
        return type(self)(torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32, copy=False)), self.learnt)


def _parts(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of *model* that are learnt, and the others, both in the order of its state."""
    # By identity: what two modules share has two names and is one tensor.
    state = list({id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}.values())
    return [t for t in state if t.requires_grad], [t for t in state if not t.requires_grad]
