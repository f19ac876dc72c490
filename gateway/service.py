"""The gateway put together."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace

import structlog
import uvicorn
from prometheus_client.registry import Collector

from aimass.gateway.v1 import gateway_pb2
from aimass.gateway.v1.gateway_pb2_grpc import add_GatewayServiceServicer_to_server
from gateway.access import Access, KeyBook
from gateway.backends import Backends
from gateway.capture import Capture
from gateway.feedback import Feedback
from gateway.http import create_app
from gateway.http_server import HttpServer, listen
from gateway.journal import Journal
from gateway.metrics import GatewayFigures
from gateway.prediction import Predictor
from gateway.servicer import GatewayServicer
from gateway.settings import GatewaySettings
from services.common.metrics import Sources
from services.common.server import Service, StopSignal
from services.common.traffic import TrafficFollower

log = structlog.get_logger(__name__)

LAST_RECEIPTS_SECONDS = 2.0
"""How long the trainer may take at the end to take in what was captured."""


class GatewayComponent:
    """The public edge: prediction over gRPC and HTTP, the page, forwarded services."""

    def __init__(self, settings: GatewaySettings, backends: Backends, stop: StopSignal) -> None:
        self._settings = settings
        self._stop = stop
        self._backends = backends
        self._follower = TrafficFollower(backends.watch_traffic)
        self._figures = GatewayFigures(self._follower)
        self._keys = KeyBook(backends.watch_keys)
        self._access = Access(self._keys, settings.authentication)
        self._capture = Capture(
            backends.capture,
            self._figures.capture,
            Journal(settings.capture_journal),
            max_bytes=settings.capture_queue_bytes,
            max_message_bytes=settings.max_message_bytes,
        )
        predictor = Predictor(
            backends,
            self._follower,
            self._figures.stages,
            self._capture,
            settings.request_timeout_seconds,
            settings.max_images,
        )
        feedback = Feedback(backends.feedback, self._capture)
        self._servicer = GatewayServicer(predictor, feedback, self._follower, stop, settings.stream_window)
        app = create_app(
            settings, predictor, feedback, self._access, self._follower, backends, stop, self._figures.http
        )
        self._http = HttpServer(
            uvicorn.Config(
                app,
                http="httptools",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=int(settings.stop_grace_seconds),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    @property
    def services(self) -> Sequence[Service]:
        """The gateway contract and what is passed through, all behind the same guard."""
        own = Service.of(
            gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"],
            add_GatewayServiceServicer_to_server,
            self._servicer,
        )
        return [replace(service, guard=self._access.guard) for service in (own, *self._backends.forwarded)]

    @property
    def collectors(self) -> Sequence[Collector]:
        """What is counted at the edge, and what the services behind tell."""
        figures = self._figures
        return (figures.stages, figures.http, figures.capture, Sources(self._settings.metrics_sources))

    async def start(self) -> None:
        """Answer HTTP at once, so that liveness shows, and wait for the models.

        Raises:
            SettingsError: The HTTP port is taken.
        """
        listener = listen(self._settings.host, self._settings.http_port)
        log.info("listening for HTTP", host=self._settings.host, port=listener.getsockname()[1])
        self._serving = asyncio.create_task(self._serve_http(listener))
        self._keys.start()
        self._capture.start()
        await self._follower.start()

    async def _serve_http(self, listener: socket.socket) -> None:
        """Serve until the process has drained; HTTP stops while gRPC does."""
        serving = asyncio.create_task(self._http.serve(sockets=[listener]))
        drained = asyncio.create_task(self._stop.wait_drained())
        await asyncio.wait((serving, drained), return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():  # half a gateway is none: let the process end, and be started again
            log.error("the HTTP server ended by itself")
            self._stop.set()
        self._http.should_exit = True
        drained.cancel()
        await serving

    async def close(self) -> None:
        """Finish the HTTP requests in flight, give what was captured to the trainer, and stop."""
        if self._serving is not None:
            await self._serving
        await self._capture.close(LAST_RECEIPTS_SECONDS)
        await self._keys.close()
        await self._follower.close()
