"""Networks that were not written here: torchvision's, and a user's own."""

import importlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from services.common.errors import InvalidInput, Unsupported
from services.trainer.networks.classifier import Network
from services.trainer.networks.upsampling import UpSampling


class ForeignNetwork(Network):
    """Any module from float NCHW images to logits.

    Args:
        module: Stays as it is, and so do the names of its weights, behind `module.`.
        classes: Number of labels.
        input_side: Images are up-sampled to this inside the network; None takes them as they are.
    """

    def __init__(self, module: nn.Module, classes: int, input_side: int | None = None) -> None:
        super().__init__()
        self.up_sampling = nn.Identity() if input_side is None else UpSampling(input_side)
        self.module = module
        self._head_name = next(
            (name for name, part in reversed(list(module.named_modules())) if _is_head(part, classes)), None
        )

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that makes the logits.

        Raises:
            Unsupported: There is none that is fully connected.
        """
        if self._head_name is None:
            raise Unsupported(
                f"{type(self.module).__name__} does not end in a fully connected layer, so it has no features to give; "
                "use another network"
            )
        layer = self.module.get_submodule(self._head_name)
        assert isinstance(layer, nn.Linear)
        return layer

    def embed(self, images: Tensor) -> Tensor:
        """Return what the last layer is given, (B, features).

        Raises:
            Unsupported: No layer at the end is fully connected.
        """
        seen: list[Tensor] = []
        hook = self.last_layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
        try:
            self(images)
        finally:
            hook.remove()
        return seen[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.module(self.up_sampling(images))
        return logits


def _is_head(part: nn.Module, classes: int) -> bool:
    return isinstance(part, nn.Linear) and part.out_features == classes


def load_factory(name: str) -> Callable[..., Any]:
    """Import what *name*, `<module>:<factory>`, means.

    This runs code of the module, so *name* must come from the configuration of this machine.

    Raises:
        InvalidInput: The module cannot be imported, or has no such function.
    """
    module_name, _, factory_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InvalidInput(
            f"network {name!r}: module {module_name!r} cannot be imported: {type(error).__name__}: {error}; "
            "put its folder on PYTHONPATH or mend it",
            field="network",
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        known = [each for each in vars(module) if not each.startswith("_") and callable(vars(module)[each])]
        nearest = get_close_matches(factory_name, known, n=1)
        meant = f"did you mean {nearest[0]}?" if nearest else "define it there, or name another"
        raise InvalidInput(
            f"network {name!r}: module {module_name!r} has no function {factory_name!r}; {meant}", field="network"
        )
    return factory  # type: ignore[no-any-return]


def build_own(name: str, classes: int, options: Mapping[str, Any]) -> Network:
    """Call the factory *name*, `<module>:<factory>`, with *classes* and *options*.

    Raises:
        InvalidInput: It cannot be imported, or does not return a module.
    """
    built = load_factory(name)(classes, **options)
    if isinstance(built, Network):
        return built
    if not isinstance(built, nn.Module):
        raise InvalidInput(
            f"network {name!r} returned {type(built).__name__}; its factory must return a torch.nn.Module",
            field="network",
        )
    return ForeignNetwork(built, classes)
