"""Servers that answer with a test's own functions."""

from collections.abc import Awaitable, Callable

import grpc
import pytest

from services.common.channels import host_and_port
from services.common.server import GrpcServer, Service
from tests.collector import running_collector


class Handlers:
    """A component that offers `test.Test` with the given method handlers."""

    collectors = ()

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


@pytest.fixture
async def start_server():
    """A function that starts a bare server, of a component where one is given, and returns it with its port."""
    servers: list[GrpcServer] = []

    async def start(component=None, host: str = "127.0.0.1", port: int = 0) -> tuple[GrpcServer, int]:
        services = component.services if component else ()
        servers.append(GrpcServer(host_and_port(host, port), services, max_message_bytes=10_000_000))
        return servers[-1], await servers[-1].start()

    yield start
    for server in servers:
        await server.stop(0)


@pytest.fixture
def handlers() -> type[Handlers]:
    """The component that offers handlers as `test.Test`."""
    return Handlers


@pytest.fixture
def collector():
    """A collector of traces."""
    with running_collector() as collector:
        yield collector
