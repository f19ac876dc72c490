"""Start-up and shutdown of a grpc.aio server: health, reflection, limits, signals, an orderly stop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import structlog
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from prometheus_client.registry import Collector

from services.common.calls import CALLS, ending_with_status
from services.common.channels import PING_SECONDS, host_and_port
from services.common.errors import NotReady, SettingsError
from services.common.interceptor import GRPC_INTERNAL, AroundInterceptor
from services.common.logs import configure_logs
from services.common.metrics import ProcessFigures, metrics_endpoint
from services.common.settings import ServiceSettings, load_settings
from services.common.statuses import status_of
from services.common.tracing import exporting_spans

if TYPE_CHECKING:
    from services.common.interceptor import Context, Handler

log = structlog.get_logger(__name__)
T = TypeVar("T")


SUPERVISED_VARIABLE = "AIMASS_SUPERVISED"
"""Set for processes that shall not outlive the one that started them."""

AGAIN_SECONDS = 1.0
"""A signal within this time after the first is the same one: a shell and a runner may both pass on one Ctrl-C."""
STOP_MARGIN_SECONDS = 4.0
"""How much longer than its settings allow a process may take to stop, before it ends whatever still runs."""
SETTLE_SECONDS = 0.02
"""What grpc accepted before a server was told to stop reaches its event loop within this time."""
QUIET_SECONDS = 0.1
"""Who got an answer and calls again at once has done so within this time."""
SWITCH_SECONDS = 0.001
"""How long a thread keeps the others from Python's lock where they want it: the loop, which answers, is one of them."""
LAST_SECONDS = 1.0
"""How long those who never pause are waited for, once the end was called out, and threads once all is closed."""


class StopSignal:
    """Tells everything in a process that it shall come to an end: first that it was asked to, then that it drained."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._drained = asyncio.Event()
        self._streams: set[asyncio.Future[Any]] = set()

    @property
    def is_set(self) -> bool:
        """Whether the process shall stop."""
        return self._asked.is_set()

    def set(self) -> None:
        """Ask the process to stop; may be called again."""
        self._asked.set()

    async def wait(self) -> None:
        """Wait until the process shall stop."""
        await self._asked.wait()

    def set_drained(self) -> None:
        """Say that load balancers had their time to look elsewhere: nothing new is accepted from here on."""
        self._drained.set()

    async def wait_drained(self) -> None:
        """Wait until nothing new shall be accepted."""
        await self._drained.wait()

    async def until(self, items: AsyncIterator[T]) -> AsyncIterator[T]:
        """Yield *items* until the process has drained, and then those that have arrived.

        Raises:
            NotReady: The process stops, and *items* had not come to their end; a caller must not take it for that.
        """
        iterator = aiter(items)
        drained = asyncio.ensure_future(self._drained.wait())
        ended = asyncio.get_running_loop().create_future()
        self._streams.add(ended)
        following: asyncio.Future[T] | None = None
        last = math.inf
        try:
            while asyncio.get_running_loop().time() < last:
                following = asyncio.ensure_future(anext(iterator))
                await asyncio.wait((drained, following), return_when=asyncio.FIRST_COMPLETED)
                if drained.done():
                    last = min(last, asyncio.get_running_loop().time() + LAST_SECONDS)
                    await asyncio.wait((following,), timeout=SETTLE_SECONDS)
                if not following.done():
                    break
                try:
                    item = following.result()
                except StopAsyncIteration:
                    return
                yield item
            raise NotReady("the server is stopping; send what was not answered again")
        finally:
            for waiting in (drained, following):
                if waiting is not None:
                    waiting.cancel()
            self._streams.remove(ended)
            ended.set_result(None)

    async def wait_streams(self) -> None:
        """Wait until all that `until` yields has ended, as it does once the process has drained; not without an end."""
        if self._streams:
            await asyncio.wait(self._streams, timeout=LAST_SECONDS + QUIET_SECONDS)


Guard = Callable[[str, "Context"], Awaitable[None]]


@dataclass(frozen=True)
class Service:
    """One gRPC service that a server offers."""

    name: str
    """Full name, as the contract has it."""
    register: Callable[[grpc.aio.Server], None]
    """Adds its handlers to a server."""
    guard: Guard | None = None
    """Awaited before each call with the method's full name; raises what the call then ends with."""

    @classmethod
    def of(
        cls, descriptor: ServiceDescriptor, add: Callable[[Any, grpc.aio.Server], None], servicer: object
    ) -> Service:
        """Return the service that *descriptor* describes and *servicer* implements; *add* is generated with both."""
        return cls(descriptor.full_name, partial(add, servicer))


class Component(Protocol):
    """The inside of a process: what it offers, and its life."""

    @property
    def services(self) -> Sequence[Service]:
        """What the component offers over gRPC."""

    @property
    def collectors(self) -> Sequence[Collector]:
        """What is counted inside, beside what every process counts."""

    async def start(self) -> None:
        """Return when calls can be answered."""

    async def close(self) -> None:
        """Free what the component holds; no call is in flight any more."""


class _Door(grpc.aio.ServerInterceptor):
    """Lets calls in until the server stops; knows those that it owes an answer, until that has left."""

    def __init__(self, guards: Mapping[str, Guard]) -> None:
        self._guards = guards
        self._calls: set[asyncio.Task[Any]] = set()
        self._moved = -math.inf
        self._closed = False
        self._stopping = asyncio.Event()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Remember the task of the call, in which grpc asks for the handler, receives, runs it and sends."""
        call = asyncio.current_task()
        if call is not None and not handler_call_details.method.startswith(GRPC_INTERNAL):
            self._moved = asyncio.get_running_loop().time()
            self._calls.add(call)
            call.add_done_callback(self._left)
        return await continuation(handler_call_details)

    def _left(self, call: asyncio.Task[Any]) -> None:
        self._moved = asyncio.get_running_loop().time()
        self._calls.discard(call)

    def close(self) -> None:
        """Refuse from here on what begins; tell nobody yet: who is refused may call again at once, without an end."""
        self._closed = True

    def tell(self) -> None:
        """Answer those that were refused; when they call again, grpc turns them away."""
        self._stopping.set()

    @contextlib.asynccontextmanager
    async def entering(self, method: str, context: Context) -> AsyncIterator[None]:
        """Let a call in, and end it with its status."""
        if self._closed:
            await self._stopping.wait()
            status = status_of(NotReady("the server is stopping; call another one, or try again"))
            await context.abort_with_status(rpc_status.to_status(status.proto))
        async with ending_with_status(method, context):
            guard = self._guards.get(method.rpartition("/")[0].lstrip("/"))
            if guard is not None:
                await guard(method, context)
            yield

    async def wait_quiet(self) -> None:
        """Wait until no call has begun or ended for a while; not without an end, as ever others may call."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LAST_SECONDS
        while loop.time() < end:
            moved = self._moved
            await asyncio.sleep(max(moved + QUIET_SECONDS - loop.time(), SETTLE_SECONDS))
            if self._moved == moved:
                break

    async def wait_idle(self, seconds: float) -> None:
        """Wait until no call is left, at most *seconds*."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=seconds)


class GrpcServer:
    """A grpc.aio server that is NOT_SERVING until told, and stops without losing an accepted call.

    Args:
        address: `host:port`, where port 0 is any that is free, or `unix:<path>`.
        services: What it offers.
        max_message_bytes: Of a request or an answer.
        max_concurrent_calls: Further ones are refused; None is any number.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[Service],
        *,
        max_message_bytes: int,
        max_concurrent_calls: int | None = None,
    ) -> None:
        self._address = address
        self._names = ("", *(service.name for service in services))
        self._health = health.aio.HealthServicer()
        self._door = _Door({service.name: service.guard for service in services if service.guard is not None})
        self._server = grpc.aio.server(
            interceptors=[
                self._door,
                AroundInterceptor(self._door.entering),
            ],
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Without this a second suite would silently share the port and get half of the calls.
                ("grpc.so_reuseport", 0),
                # Followers on other machines ask whether a silent connection still is one.
                ("grpc.http2.min_ping_interval_without_data_ms", PING_SECONDS * 500),
            ],
            maximum_concurrent_rpcs=max_concurrent_calls,
        )
        for service in services:
            service.register(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            [*self._names[1:], health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )

    async def start(self) -> int:
        """Listen, still NOT_SERVING, and return the port.

        Raises:
            SettingsError: The address is taken or not ours.
        """
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise SettingsError(f"cannot listen on {self._address}: is another suite running? ({error})") from error
        await self.set_ready(False)
        await self._server.start()
        return port

    async def set_ready(self, ready: bool) -> None:
        """Say SERVING or NOT_SERVING for the whole server and for each service."""
        status = health_pb2.HealthCheckResponse.ServingStatus
        for name in self._names:
            await self._health.set(name, status.SERVING if ready else status.NOT_SERVING)

    async def stop(self, grace_seconds: float, drained: StopSignal | None = None) -> None:
        """Refuse new calls, wait for those in flight, then stop.

        Args:
            grace_seconds: How long those in flight are waited for.
            drained: What ends the streams of this server, where anything does.
        """
        await self.set_ready(False)
        self._door.close()
        # Once told to stop, grpc closes a connection as its last call ends, and a client that writes to one that is
        # closed may not read how its stream ended. So those that never pause hear it before.
        if drained is not None:
            await drained.wait_streams()
        # What grpc has received and not begun when it stops ends as CANCELLED, which no client tries again. So it
        # stops in a pause, which comes as all that call again and again wait for an answer.
        await self._door.wait_quiet()
        # Two stops that run out of time together make grpc free its server twice: this one must not, ours ends it.
        stopped = asyncio.ensure_future(self._server.stop(grace_seconds + 3600))
        await asyncio.sleep(SETTLE_SECONDS)  # the word of it shall reach clients before the answers do
        self._door.tell()
        await self._door.wait_idle(grace_seconds)
        # What is left are health watchers and reflection clients; they would hold the server for the whole grace.
        await self._server.stop(None)
        await stopped


async def serve(
    component: Component,
    settings: ServiceSettings,
    port: int,
    stop: StopSignal,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve *component* on *port* until *stop*: listen, start, say SERVING, wait, drain, close."""
    figures = (ProcessFigures(settings.service(), CALLS), *component.collectors)
    with (
        exporting_spans(settings.service()),
        metrics_endpoint(settings.host, settings.metrics_port, figures),
    ):
        await _serve(component, settings, port, stop, on_ready)


async def _serve(
    component: Component, settings: ServiceSettings, port: int, stop: StopSignal, on_ready: Callable[[], None]
) -> None:
    server = GrpcServer(
        host_and_port(settings.host, port),
        component.services,
        max_message_bytes=settings.max_message_bytes,
        max_concurrent_calls=settings.max_concurrent_calls,
    )
    log.info("listening", host=settings.host, port=await server.start())
    try:
        await _start_or_stop(component, stop)
    except SettingsError:
        await server.stop(0)  # grpc would say more of a server that is left running than the error does of itself
        raise
    if not stop.is_set:
        await server.set_ready(True)
        log.info("ready", settings=settings.model_dump(mode="json"))
        on_ready()
    await stop.wait()
    log.info("stopping")
    await server.set_ready(False)
    await asyncio.sleep(settings.drain_seconds)
    stop.set_drained()
    await server.stop(settings.stop_grace_seconds, stop)
    await component.close()


async def _start_or_stop(component: Component, stop: StopSignal) -> None:
    """Start *component*, but don't make a process that shall stop wait for what may never come."""
    starting, stopping = asyncio.ensure_future(component.start()), asyncio.ensure_future(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if starting.done():
        starting.result()
    else:
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting


S = TypeVar("S", bound=ServiceSettings)


def run_process(name: str, settings_type: type[S], main: Callable[[S, StopSignal], Coroutine[Any, Any, None]]) -> None:
    """Run a service process: settings, logs, signals, then *main* on uvloop; wrong settings end it with a sentence."""
    try:
        settings = load_settings(settings_type)
        configure_logs(name, settings.log_level, settings.log_style)
        run_until_signalled(lambda stop: main(settings, stop), settings.drain_seconds + settings.stop_grace_seconds)
    except SettingsError as error:
        sys.exit(f"{name}: {error}")


def run_until_signalled(
    main: Callable[[StopSignal], Coroutine[Any, Any, None]], stop_seconds: float = math.inf
) -> None:
    """Run *main* on uvloop; SIGTERM, Ctrl-C and the end of a supervising parent ask it to stop.

    A later second signal ends the process at once. So does the time, with exit code 1. Threads are not waited for once
    *main* has returned, as the interpreter would without an end: nobody needs the model that one is still loading.

    Args:
        main: Returns when everything is closed.
        stop_seconds: What it is given for that, beside a margin.
    """

    async def signalled() -> None:
        stop = StopSignal()
        loop = asyncio.get_running_loop()

        def ask() -> None:
            if stop.is_set:
                return
            stop.set()
            loop.call_later(AGAIN_SECONDS, _end_at_the_next_signal)
            if stop_seconds < math.inf:
                _after(stop_seconds + STOP_MARGIN_SECONDS, _give_up)

        def parent_gone() -> None:
            loop.remove_reader(sys.stdin.fileno())  # an ended file stays readable, and the loop would spin on it
            ask()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ask)
        if os.environ.get(SUPERVISED_VARIABLE):
            # The supervisor holds the other end of standard input and never writes: end of file means it is gone.
            loop.add_reader(sys.stdin.fileno(), parent_gone)
        await main(stop)
        _end_at_the_next_signal()  # while the interpreter waits for threads
        _after(LAST_SECONDS, _leave_threads)

    sys.setswitchinterval(SWITCH_SECONDS)
    uvloop.run(signalled())


def _after(seconds: float, act: Callable[[], None]) -> None:
    """Call *act* after *seconds*, whatever the other threads do, where the process has not ended before."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def _end_at_the_next_signal() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _give_up() -> None:
    log.error("some work does not come to an end, ending without it")
    os._exit(1)


def _leave_threads() -> None:
    log.info("all is closed, not waiting for threads that still work")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
