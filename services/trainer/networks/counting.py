"""How much arithmetic an image costs a network."""

import torch
from torch import Tensor, nn


def count_multiply_adds(network: nn.Module, example: Tensor) -> int:
    """Count the multiply-adds of *network* for one image.

    A multiply-add is one product that is added to a sum, in the convolutions (`Conv2d`: outputs times kernel area times
    input channels per group) and the fully connected layers (`Linear`: outputs times inputs). Biases, norms, pooling,
    activations and what a network computes outside of such layers are not counted. In convolutional networks that is a
    few per mille, counted differently everywhere; in transformers, whose attention is among it, it is more.

    Args:
        network: Left as it is; computes in evaluation mode.
        example: An input, (B, …); the count is divided by B.
    """
    counted: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        counted.append(output.numel() * weight[0].numel())  # each output value is a sum over one filter

    modes = {module: module.training for module in network.modules()}
    layers = [module for module in modes if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return sum(counted) // len(example)
