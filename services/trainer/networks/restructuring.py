"""Gives a network the widths that its saved weights have."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from services.common.errors import InvalidInput


def restructure(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Resize the layers of *network*, as it was constructed, to *weights*, as pruning left them; values are not set.

    Args:
        network: Convolutions, fully connected layers and norms are resized in place.
        weights: A state dict of the same network with fewer channels.

    Raises:
        InvalidInput: The two differ in more than widths.
    """
    for name, module in network.named_modules():
        own = _own_tensors(module)
        shapes = {each: weights[f"{name}.{each}"].shape for each in own if f"{name}.{each}" in weights}
        if any(shape != own[each].shape for each, shape in shapes.items()):
            _tell_widths(module, shapes)
            for each, shape in shapes.items():
                _resize(module, each, shape)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise InvalidInput(
            f"the saved weights do not fit the network in {len(differing)} places, first {name}: "
            f"{found.get(name, 'missing')} is saved, {expected.get(name, 'nothing')} is wanted; "
            "use the network and the options that they were saved with"
        )


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _tell_widths(module: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Set what *module* remembers of its widths beside its tensors."""
    if isinstance(module, nn.Conv2d):
        outputs, inputs_of_a_group = shapes["weight"][:2]
        if module.groups == module.in_channels:  # depthwise: a channel that goes takes its group along
            module.groups = outputs * module.groups // module.out_channels
        module.in_channels, module.out_channels = inputs_of_a_group * module.groups, outputs
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shapes["weight"]
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
        module.num_features = shapes["running_mean"][0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = shapes["weight"][0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shapes["weight"])


def _resize(module: nn.Module, name: str, shape: torch.Size) -> None:
    before = getattr(module, name)
    empty = torch.empty(shape, dtype=before.dtype, device=before.device)
    if isinstance(before, nn.Parameter):
        setattr(module, name, nn.Parameter(empty, requires_grad=before.requires_grad))
    else:
        setattr(module, name, empty)
