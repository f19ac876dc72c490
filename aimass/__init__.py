"""AI Mass: a Model-as-a-Service Suite.

from aimass import Client

with Client() as client:
    print(client.predict("cat.jpg").label)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimass.client import AsyncClient, Client, Feedback, Label, Model, Prediction, PredictionError

__all__ = ["AsyncClient", "Client", "Feedback", "Label", "Model", "Prediction", "PredictionError"]


def __getattr__(name: str) -> Any:
    # The services import this package for its stubs; they need no client.
    if name in __all__:
        from aimass import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
