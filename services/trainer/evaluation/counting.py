"""How large a network is, and how much arithmetic an image costs it."""

from typing import Any

import torch
from torch import Tensor, nn

from services.trainer.evaluation.card import NetworkSize


def count_network(network: nn.Module, example: Tensor) -> NetworkSize:
    """Count the parameters of *network* and its multiply-adds for one image.

    A multiply-add is one product that is added to a sum, in the convolutions (`Conv2d`: outputs times kernel area times
    input channels per group) and the fully connected layers (`Linear`: outputs times inputs). Biases, norms, pooling,
    activations and what a network computes with a layer's weights outside that layer are not counted: they are a few
    per mille of such networks, and counted differently everywhere.

    Args:
        network: Left as it is; computes in evaluation mode.
        example: An input, (B, …); the count is divided by B.
    """
    found = {"multiply_adds": 0}

    def on_convolution(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        found["multiply_adds"] += output.numel() * layer.weight[0].numel()

    def on_linear(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        found["multiply_adds"] += output.numel() * layer.in_features

    hooks = []
    modes = {module: module.training for module in network.modules()}
    for module in modes:
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(on_convolution))
        elif isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(on_linear))
    try:
        network.eval()
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return NetworkSize(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds=found["multiply_adds"] // len(example),
    )
