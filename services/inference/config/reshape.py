"""A tensor's shape in requests and responses beside that which the graph gives it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.errors import Conflict, InvalidInput
from services.inference.engine import Arrays

Run = Callable[[Arrays, Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True)
class Reshape:
    """Two shapes of the same elements, both without the batch; -1 stands for a dimension that varies.

    The varying dimensions of both correspond in their order, as in Triton.
    """

    outside: tuple[int, ...]
    """Of requests and responses."""
    graph: tuple[int, ...]

    def check(self, name: str) -> None:
        """Refuse shapes that do not hold the same elements.

        Raises:
            InvalidInput: They don't.
        """
        if any(side == 0 or side < -1 for side in self.graph):
            raise InvalidInput(f"tensor {name!r} has reshape {list(self.graph)}; use dimensions from 1, or -1")
        if _runs(self.outside) != _runs(self.graph):
            raise InvalidInput(
                f"tensor {name!r} has dims {list(self.outside)} and reshape {list(self.graph)}, which hold different "
                "numbers of elements; make them equal between the dimensions of -1"
            )

    def inverse(self) -> "Reshape":
        """Return the way back."""
        return Reshape(self.graph, self.outside)

    def apply(self, name: str, array: np.ndarray, batched: bool) -> np.ndarray:
        """View *array*, which has the outside shape, in the graph's.

        Raises:
            Conflict: It has another one.
        """
        first = int(batched)
        sides = array.shape[first:]
        if len(sides) != len(self.outside) or any(
            want not in (-1, own) for own, want in zip(sides, self.outside, strict=True)
        ):
            raise Conflict(
                f"tensor {name!r} has shape {list(array.shape)}, which its reshape from {list(self.outside)} to "
                f"{list(self.graph)} does not fit; correct the model's config"
            )
        free = iter([own for own, want in zip(sides, self.outside, strict=True) if want == -1])
        target = [next(free) if side == -1 else side for side in self.graph]
        return array.reshape((*array.shape[:first], *target))


def _runs(shape: tuple[int, ...]) -> list[int]:
    """Return the elements between the dimensions that vary."""
    counts = [1]
    for side in shape:
        if side == -1:
            counts.append(1)
        else:
            counts[-1] *= side
    return counts


@dataclass(frozen=True)
class ReshapedRun:
    """A graph's `run` for tensors in the shapes of requests."""

    run: Run
    reshapes: Mapping[str, Reshape]
    """Of those tensors that have one; inputs and outputs of one name share it."""
    batched: bool

    def __call__(self, inputs: Arrays, outputs: Sequence[str]) -> list[np.ndarray]:
        """Run the graph; no array is copied."""
        given = {name: self._to_graph(name, array) for name, array in inputs.items()}
        return [self._to_outside(name, array) for name, array in zip(outputs, self.run(given, outputs), strict=True)]

    def _to_graph(self, name: str, array: np.ndarray) -> np.ndarray:
        reshape = self.reshapes.get(name)
        return array if reshape is None else reshape.apply(name, array, self.batched)

    def _to_outside(self, name: str, array: np.ndarray) -> np.ndarray:
        reshape = self.reshapes.get(name)
        return array if reshape is None else reshape.inverse().apply(name, array, self.batched)
