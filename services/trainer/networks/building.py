"""Networks by name."""

from collections.abc import Callable, Mapping
from typing import Any

from services.common.errors import InvalidInput
from services.trainer.networks.classifier import Network
from services.trainer.networks.residual import ResidualNetwork

NETWORKS: dict[str, Callable[..., Network]] = {
    "residual": ResidualNetwork,
}


def build_network(name: str, classes: int, options: Mapping[str, Any]) -> Network:
    """Construct the network called *name* with random weights.

    Raises:
        InvalidInput: There is no such network, or it does not take these options.
    """
    if name not in NETWORKS:
        raise InvalidInput(f"network {name!r} is unknown; use one of {', '.join(NETWORKS)}", field="network")
    try:
        return NETWORKS[name](classes, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"network {name!r} refuses {dict(options)}: {error}", field="network_options") from error
