"""Networks by name."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch

from services.common.errors import InvalidInput, ServiceError, Unsupported
from services.trainer.networks.alexnet import AlexNet, SmallAlexNet
from services.trainer.networks.classifier import Network
from services.trainer.networks.foreign import build_own
from services.trainer.networks.residual import ResidualNetwork
from services.trainer.networks.torchvision_models import PREFIX, build_torchvision, torchvision_names

NETWORKS: dict[str, Callable[..., Network]] = {
    "residual": ResidualNetwork,
    "alexnet": AlexNet,
    "alexnet-small": SmallAlexNet,
}


def build_network(
    name: str,
    classes: int,
    options: Mapping[str, Any],
    *,
    image_size: tuple[int, int] | None = None,
    allow_code: bool = False,
) -> Network:
    """Construct the network called *name* with random weights.

    Args:
        name: One of `NETWORKS`, `torchvision:<model>`, or `<module>:<factory>`: a function of this machine that is
            called with the number of classes and the options, and returns a module from float (B, 3, H, W) to logits.
        classes: Number of labels.
        options: Keyword arguments of the network.
        image_size: (height, width) of the images; where given, the network is tried on a batch of them.
        allow_code: Whether `<module>:<factory>` may run, as it may where *name* is this machine's own configuration.

    Raises:
        InvalidInput: There is no such network, it does not take these options, or cannot take such images.
        Unsupported: Code is named where none may run.
    """
    try:
        network = _construct(name, classes, options, allow_code)
    except ServiceError:
        raise
    except Exception as error:  # what constructors say of wrong options is theirs to choose
        raise InvalidInput(
            f"network {name!r} refuses {dict(options)}: {_say(error)}", field="network_options"
        ) from error
    if image_size is not None:
        check_network(network, name, classes, image_size)
    return network


def check_network(network: Network, name: str, classes: int, image_size: tuple[int, int]) -> None:
    """Try *network* on two blank images.

    Raises:
        InvalidInput: It fails, or does not give one logit for each class and image.
    """
    height, width = image_size
    training = network.training
    try:
        with torch.no_grad():
            found = network.eval()(torch.zeros(2, 3, height, width))
    except ServiceError:
        raise
    except Exception as error:  # whatever a module of others raises
        raise InvalidInput(
            f"network {name!r} fails on images of {width}x{height} pixels: {type(error).__name__}: {error}; "
            "use larger images, or let the network up-sample them with network_options.input_side",
            field="network",
        ) from error
    finally:
        network.train(training)
    shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
    if shape != (2, classes):
        raise InvalidInput(
            f"network {name!r} answers two images with {shape}; it must be logits of shape {(2, classes)}",
            field="network",
        )


def _construct(name: str, classes: int, options: Mapping[str, Any], allow_code: bool) -> Network:
    if name in NETWORKS:
        _check_names(name, options)
        return NETWORKS[name](classes, **options)
    if name.startswith(PREFIX):
        return build_torchvision(name.removeprefix(PREFIX), classes, **options)
    if ":" not in name:
        known = [*NETWORKS, *(PREFIX + model for model in torchvision_names())]
        nearest = get_close_matches(name, known, n=1) or get_close_matches(PREFIX + name, known, n=1, cutoff=0.8)
        meant = f"did you mean {nearest[0]}?" if nearest else f"use {', '.join(NETWORKS)} or {PREFIX}<model>"
        raise InvalidInput(f"network {name!r} is unknown; {meant}", field="network")
    if not allow_code:
        raise Unsupported(
            f"network {name!r} is code, which only the command line of this machine may name; "
            f"use {', '.join(NETWORKS)} or {PREFIX}<model>",
            field="network",
        )
    return build_own(name, classes, options)


def _say(error: Exception) -> str:
    ours = isinstance(error, TypeError | ValueError | RuntimeError)
    return str(error) if ours else f"{type(error).__name__}: {error}"  # a KeyError says no more than the key


def _check_names(name: str, options: Mapping[str, Any]) -> None:
    known = list(inspect.signature(NETWORKS[name]).parameters)[1:]  # without the classes
    for option in options:
        if option not in known:
            nearest = get_close_matches(option, known, n=1)
            meant = f"did you mean {nearest[0]}?" if nearest else f"it takes {', '.join(known)}"
            raise InvalidInput(f"network {name!r} has no option {option!r}; {meant}", field="network_options")
