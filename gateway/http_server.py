"""uvicorn as a part of a process: bound before it serves, and stopped without a loss for who is connected."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from services.common.errors import SettingsError
from services.common.server import LAST_SECONDS, SETTLE_SECONDS


class HttpServer(uvicorn.Server):
    """Leaves signals to the process, which has more to stop than HTTP, and resets no connection that is in use."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept who has connected and nobody else, give each connection one more answer, which closes it, and stop.

        uvicorn by itself closes connections that are idle, while their clients may just be sending.
        """
        loop = asyncio.get_running_loop()
        connected = [connection for listener in sockets or () for connection in _connected(listener)]
        for server in self.servers:
            server.close()
        for connection in connected:
            await loop.connect_accepted_socket(self._protocol, connection)
        end = loop.time() + LAST_SECONDS
        while self.server_state.connections and loop.time() < end:  # noqa: ASYNC110 uvicorn has no event for it
            await asyncio.sleep(SETTLE_SECONDS)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _connected(listener: socket.socket) -> Iterator[socket.socket]:
    """Yield the connections that *listener* has not accepted yet; they are reset where it is closed before."""
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            yield connection


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address.

    Raises:
        SettingsError: The address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"cannot listen on {host}:{port}: is another suite running? ({error.strerror})") from error
    return listener
