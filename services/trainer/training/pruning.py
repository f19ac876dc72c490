"""Removes channels from a network, with all that hangs on them, so that it has fewer multiplications to do."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from services.common.errors import InvalidInput, Unsupported
from services.trainer.networks.classifier import Network
from services.trainer.networks.counting import count_multiply_adds
from services.trainer.options import Pruning

_MOST = 0.9
"""Share of a layer's channels that may go; a layer without any would end the network."""
_MULTIPLE = 8
"""Of channels, which is what vector units want: of the starter model with half of its multiply-adds, ONNX Runtime
makes 1.1 to 1.3 times the speed with widths such as 31 and 63, 1.7 times with multiples of 8."""
_HALVINGS = 9
"""Of the interval that the share of channels is sought in: to 1 in 512."""


def prune_network(network: Network, example: Tensor, options: Pruning) -> None:
    """Remove the least important channels until *network* has `speedup` times fewer multiply-adds; in place.

    A channel's importance is the norm of all weights that go with it, relative to its layer: the group norm of
    DepGraph (Fang et al., CVPR 2023). In each of `steps` rounds, every layer loses about the same share of its
    channels, so that the multiply-adds fall by the same factor; the weights that are left are judged anew. Widths stay
    multiples of 8. The layer that makes the logits keeps its outputs, and what does not learn keeps its shape.

    Args:
        network: Leaves in evaluation mode; train it on, the removed channels are missed.
        example: Normalised images, float32 (B, 3, H, W), B at least 1.
        options: How far, and in how many rounds.

    Raises:
        Unsupported: The package torch-pruning is missing, or the network has parts that it cannot follow.
        InvalidInput: There are not that many channels to remove.
    """
    wanted = count_multiply_adds(network, example[:1])
    for step in range(1, options.steps + 1):
        _prune_once(network, example[:1], int(wanted / options.speedup ** (step / options.steps)), options)


def _prune_once(network: Network, example: Tensor, target: int, options: Pruning) -> None:
    """Remove the same share of channels from every layer: the smallest that leaves at most *target* multiply-adds."""
    low, high = 0.0, _MOST
    if count_multiply_adds(_pruned(copy.deepcopy(network), example, high), example) > target:
        raise InvalidInput(
            f"pruning.speedup {options.speedup:g} needs more than {_MOST:.0%} of the channels of each layer removed; "
            "ask for less",
            field="pruning.speedup",
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if count_multiply_adds(_pruned(copy.deepcopy(network), example, middle), example) > target:
            low = middle
        else:
            high = middle
    _pruned(network, example, high)


def _pruned(network: Network, example: Tensor, share: float) -> Network:
    """Remove *share* of the channels of every layer of *network*, and return it."""
    pruning = _library()
    network.eval()
    kept = _kept(network, example)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in kept]
    try:
        pruner = pruning.pruner.BasePruner(
            network,
            example,
            importance=pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            # The library cuts fractions off, so half a channel more keeps what is meant.
            pruning_ratio_dict={
                layer: 1 - (_width_left(len(layer.weight), share) + 0.5) / len(layer.weight) for layer in layers
            },
            ignored_layers=kept,
        )
        pruner.step()
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise Unsupported(
            f"the channels of {type(network).__name__} cannot be followed through the network: {error}; "
            "set pruning.speedup to 1"
        ) from error
    return network


def _width_left(width: int, share: float) -> int:
    """Return how many of *width* channels are left without *share* of them: a multiple of 8 where there are enough."""
    if width < 2 * _MULTIPLE:
        return max(1, round(width * (1 - share)))
    return max(_MULTIPLE, _MULTIPLE * round(width * (1 - share) / _MULTIPLE))


def _kept(network: Network, example: Tensor) -> list[nn.Module]:
    """Return the layers that keep their outputs: those that do not learn, and the one that makes the logits."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    called: list[nn.Module] = []
    hooks = [layer.register_forward_hook(lambda module, inputs, output: called.append(module)) for layer in layers]
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [*(layer for layer in layers if not layer.weight.requires_grad), called[-1]]


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise Unsupported("pruning needs the package torch-pruning; pip install 'aimass[pruning]'") from error
    return torch_pruning
