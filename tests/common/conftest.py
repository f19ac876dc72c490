"""Servers that answer with a test's own functions."""

from collections.abc import Awaitable, Callable

import grpc
import pytest

from services.common.server import Service


class Handlers:
    """A component that offers `test.Test` with the given method handlers."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        generic = grpc.method_handlers_generic_handler("test.Test", handlers)
        self.services = (Service("test.Test", lambda server: server.add_generic_rpc_handlers((generic,))),)

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def serve_handlers(serve) -> Callable[..., Awaitable]:
    """A function that serves unary behaviours, or handlers of any arity, as `/test.Test/<name>`; messages are bytes."""

    async def start(**behaviors):
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(behavior) if callable(behavior) else behavior
            for name, behavior in behaviors.items()
        }
        return await serve(lambda _stop: Handlers(handlers))

    return start
