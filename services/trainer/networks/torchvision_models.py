"""Classification models of torchvision, by name and with random weights."""

from difflib import get_close_matches
from typing import Any

from torch import nn

from services.common.errors import InvalidInput
from services.trainer.networks.foreign import ForeignNetwork

PREFIX = "torchvision:"

_WITH_BRANCHES = ("googlenet", "inception_v3")
"""Have auxiliary classifiers for training, which would give further logits."""
_OURS = ("weights", "weights_backbone", "pretrained", "progress", "num_classes", "aux_logits", "init_weights")


def torchvision_names() -> list[str]:
    """Return the names of all models, without the prefix."""
    import torchvision  # takes a second, and few networks are its

    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]


def build_torchvision(
    name: str, classes: int, *, input_side: int | None = None, small_images: bool = False, **options: Any
) -> ForeignNetwork:
    """Construct the model called *name* with as many outputs as there are *classes*.

    Args:
        name: As torchvision calls it, such as `resnet18`.
        classes: Number of labels.
        input_side: Images are up-sampled to this inside the network; None takes them as they are.
        small_images: The first convolution of a ResNet becomes 3x3 without stride, and its pool goes, as is usual for
            CIFAR-10 (He et al. 2015, section 4.2).
        options: Of the model's constructor, such as `dropout`.

    Raises:
        InvalidInput: There is no such model, or an option would download weights or is ours to set.
    """
    import torchvision

    known = torchvision_names()
    if name not in known:
        nearest = get_close_matches(name, known, n=1, cutoff=0.5)
        meant = f"did you mean {PREFIX}{nearest[0]}?" if nearest else f"use one of {', '.join(known)}"
        raise InvalidInput(f"torchvision has no classification model {name!r}; {meant}", field="network")
    for option in options:
        if option in _OURS:
            raise InvalidInput(
                f"network_options.{option} cannot be set: models of torchvision begin with random weights, nothing is "
                "downloaded, and outputs follow the labels; leave it out",
                field="network_options",
            )
    if name in _WITH_BRANCHES:
        options |= {"aux_logits": False, "init_weights": True}
    model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    if small_images:
        if not isinstance(model, torchvision.models.ResNet):
            raise InvalidInput(
                f"small_images changes the first layers of a ResNet and {name} is none; set input_side instead",
                field="network_options",
            )
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return ForeignNetwork(model, classes, input_side)
