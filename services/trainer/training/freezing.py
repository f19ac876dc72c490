"""Parts of a network that do not learn."""

from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from services.common.errors import InvalidInput


class Frozen:
    """Modules whose parameters and buffers stay as they are, bit for bit."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        for module in modules:
            module.requires_grad_(False)

    def keep(self) -> None:
        """Call after `train()` of the whole: in training mode, batch norms would go on averaging what they see."""
        for module in self._modules:
            module.eval()


def freeze(network: nn.Module, prefixes: Sequence[str]) -> Frozen:
    """Freeze the modules of *network* whose dotted names are, or begin with, one of *prefixes*.

    Raises:
        InvalidInput: A prefix fits no module, or nothing would learn.
    """
    names = [name for name, _ in network.named_modules() if name]
    for prefix in prefixes:
        if not any(_fits(name, prefix) for name in names):
            nearest = get_close_matches(prefix, names, n=3, cutoff=0.3)
            known = nearest or [name for name, _ in network.named_children()]
            raise InvalidInput(
                f"freeze names {prefix!r}, which is no module of the network; use one such as {', '.join(known)}",
                field="freeze",
            )
    frozen = Frozen([module for name, module in network.named_modules() if any(_fits(name, p) for p in prefixes)])
    if prefixes and not any(parameter.requires_grad for parameter in network.parameters()):
        raise InvalidInput(
            f"freeze leaves nothing that learns of the network: it names {', '.join(prefixes)}; leave one out",
            field="freeze",
        )
    return frozen


def _fits(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
