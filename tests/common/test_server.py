"""Start, health, reflection, limits, and an end that loses no call."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from services.common import server
from services.common.errors import NotAllowed, NotReady, SettingsError
from services.common.identity import Caller, bind_caller, bound_caller
from services.common.server import GrpcServer, StopSignal
from services.common.server import serve as run_component
from services.common.settings import ServiceSettings
from services.common.streaming import answer_in_order

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


async def echo(request, context):
    return request


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("name", ["", "test.Test"])
async def test_health_follows_the_life_of_the_server(serve_handlers, name):
    served = await serve_handlers(Echo=echo)
    health = HealthStub(served.channel)
    watch = health.Watch(HealthCheckRequest(service=name))
    assert (await health.Check(HealthCheckRequest(service=name))).status == SERVING
    assert (await watch.read()).status == SERVING

    await served.server.set_ready(False)
    assert (await watch.read()).status == NOT_SERVING
    assert (await health.Check(HealthCheckRequest(service=name))).status == NOT_SERVING


@pytest.fixture
async def guarded(serve, handlers):
    """A channel to behaviours of every arity, which answer who calls, behind a guard that knows only anna."""

    async def unary(request, context):
        return bound_caller().contributor.encode()

    async def stream(request, context):
        yield await unary(request, context)
        yield bound_caller().contributor.encode()  # it is still known when the stream goes on

    async def in_a_task(requests, context):
        async def answer(request):
            return await unary(request, context)

        async for answered in answer_in_order(requests, answer, 2):
            yield answered

    async def guard(method, context):
        if dict(context.invocation_metadata()).get("name") != "anna":
            raise NotAllowed(f"{method} is for anna; be anna")
        bind_caller(Caller("anna", frozenset()))

    component = handlers(
        {
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "Requests": grpc.stream_unary_rpc_method_handler(unary),
            "Stream": grpc.unary_stream_rpc_method_handler(stream),
            "Both": grpc.stream_stream_rpc_method_handler(stream),
            "Tasks": grpc.stream_stream_rpc_method_handler(in_a_task),
        }
    )
    component.services = [replace(each, guard=guard) for each in component.services]
    return (await serve(lambda _stop: component)).channel


CALLS = {
    "Unary": lambda channel, **sent: channel.stream_stream("/test.Test/Unary")(iter([b""]), **sent),
    "Requests": lambda channel, **sent: channel.stream_stream("/test.Test/Requests")(iter([b"", b""]), **sent),
    "Stream": lambda channel, **sent: channel.stream_stream("/test.Test/Stream")(iter([b""]), **sent),
    "Both": lambda channel, **sent: channel.stream_stream("/test.Test/Both")(iter([b""]), **sent),
    "Tasks": lambda channel, **sent: channel.stream_stream("/test.Test/Tasks")(iter([b"", b""]), **sent),
}


@pytest.mark.parametrize("name", CALLS)
async def test_what_a_guard_binds_is_known_to_handlers_of_every_arity(guarded, name):
    answers = [each async for each in CALLS[name](guarded, metadata=[("name", "anna")])]

    assert set(answers) == {b"anna"}


@pytest.mark.parametrize("name", CALLS)
async def test_what_a_guard_raises_ends_the_call(guarded, name):
    call = CALLS[name](guarded, metadata=[("name", "ben")])

    assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
    assert await call.details() == f"/test.Test/{name} is for anna; be anna"


async def test_a_call_beside_does_not_change_who_calls(guarded):
    call = guarded.unary_unary("/test.Test/Unary")

    assert await call(b"", metadata=[("name", "anna")]) == b"anna"
    with pytest.raises(grpc.aio.AioRpcError, match="be anna"):
        await call(b"")


async def test_health_of_an_unknown_service_is_not_found(serve_handlers):
    served = await serve_handlers(Echo=echo)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await HealthStub(served.channel).Check(HealthCheckRequest(service="nobody"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watcher_learns_of_the_stop_and_does_not_delay_it(serve_handlers):
    served = await serve_handlers(Echo=echo)
    watch = HealthStub(served.channel).Watch(HealthCheckRequest())
    assert (await watch.read()).status == SERVING

    await served.server.stop(grace_seconds=3600)

    assert (await watch.read()).status == NOT_SERVING


async def test_reflection_lists_the_services(serve_handlers):
    served = await serve_handlers(Echo=echo)
    call = ServerReflectionStub(served.channel).ServerReflectionInfo()
    await call.write(ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}

    assert {"test.Test", "grpc.health.v1.Health"} < names


async def test_stop_finishes_what_is_in_flight_and_refuses_what_is_new(serve_handlers, monkeypatch):
    monkeypatch.setattr(server, "SETTLE_SECONDS", 0)
    entered, gate = asyncio.Event(), asyncio.Event()

    async def slow(request, context):
        entered.set()
        await gate.wait()
        return bytes(100_000)

    served = await serve_handlers(Slow=slow, Echo=echo)
    accepted = served.channel.unary_unary("/test.Test/Slow")(b"")
    await entered.wait()
    stopping = asyncio.ensure_future(served.server.stop(grace_seconds=3600))
    await served.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.channel.unary_unary("/test.Test/Echo")(b"")
    gate.set()

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(await accepted) == 100_000
    await stopping


async def test_stop_cancels_no_call_of_those_that_call_again_at_once(serve_handlers):
    refused, busy = [], asyncio.Event()

    async def call_again(call) -> None:
        while True:
            try:
                await call(b"")
                busy.set()
            except grpc.aio.AioRpcError as error:
                refused.append((error.code().name, error.details()))
                if not refused[-1][1].startswith("the server is stopping"):
                    return

    served = await serve_handlers(Echo=echo)
    callers = [asyncio.ensure_future(call_again(served.channel.unary_unary("/test.Test/Echo"))) for _ in range(16)]
    await busy.wait()
    await served.server.stop(grace_seconds=3600)
    await asyncio.gather(*callers)

    assert {code for code, _ in refused} == {"UNAVAILABLE"}
    told = [details for _, details in refused if details.startswith("the server is stopping")]
    assert len(told) <= len(callers)  # nobody was told before the server had gone


async def test_stop_ends_calls_that_outlive_the_grace(serve_handlers):
    entered = asyncio.Event()

    async def endless(request, context):
        entered.set()
        await asyncio.Event().wait()

    served = await serve_handlers(Endless=endless)
    call = served.channel.unary_unary("/test.Test/Endless")(b"")
    await entered.wait()
    await served.server.stop(grace_seconds=0.01)

    assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_long_stream_ends_in_order_when_the_process_stops(serve_handlers):
    stop = StopSignal()

    async def ticks():
        yield b"tick"
        await asyncio.Event().wait()

    async def tick(request, context):
        async for item in stop.until(ticks()):
            yield item

    served = await serve_handlers(Tick=grpc.unary_stream_rpc_method_handler(tick))
    stream = served.channel.unary_stream("/test.Test/Tick")(b"")
    assert await stream.read() == b"tick"
    stop.set_drained()

    await served.server.stop(grace_seconds=3600)
    assert await stream.code() is grpc.StatusCode.UNAVAILABLE
    assert await stream.details() == "the server is stopping; send what was not answered again"


async def test_streams_that_never_pause_end_before_their_connection_does(serve_handlers, monkeypatch):
    monkeypatch.setattr(server, "QUIET_SECONDS", 0.5)
    stop = StopSignal()

    async def ticks():
        while True:
            yield await asyncio.sleep(0, b"tick")

    async def tick(request, context):
        async for item in stop.until(ticks()):
            yield item

    served = await serve_handlers(Echo=echo, Tick=grpc.unary_stream_rpc_method_handler(tick))
    stream = served.channel.unary_stream("/test.Test/Tick")(b"")
    assert await stream.read() == b"tick"
    stop.set_drained()
    stopping = asyncio.ensure_future(served.server.stop(3600, stop))
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await stream.read():
            pass
    assert await stream.details() == "the server is stopping; send what was not answered again"

    # The server refuses the next call, where grpc would say that the connection is closed.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.channel.unary_unary("/test.Test/Echo")(b"")
    assert refused.value.details() == "the server is stopping; call another one, or try again"
    await stopping


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_until_leaves_no_reader_behind_when_its_own_reader_goes_away(how):
    left = asyncio.Event()

    async def items():
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            left.set()

    async def read(started: asyncio.Event) -> None:
        async for _ in stream:
            started.set()

    started, stream = asyncio.Event(), StopSignal().until(items())
    reader = asyncio.ensure_future(read(started))
    await started.wait()
    reader.cancel()
    if how == "closed":
        await asyncio.wait((reader,))
        await stream.aclose()

    await left.wait()


async def test_until_passes_on_the_end_and_the_errors_of_its_items():
    async def items():
        yield 1
        raise ValueError("broken")

    stream = StopSignal().until(items())

    assert await anext(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "open"])
async def test_until_yields_what_has_arrived_by_the_stop_and_then_says_whether_it_was_all(ended):
    arrived = asyncio.Queue()

    async def items():
        while (item := await arrived.get()) is not None:
            yield item

    stop, seen = StopSignal(), []
    for item in (1, 2, 3, *([None] if ended else [])):
        arrived.put_nowait(item)
    stop.set_drained()

    with contextlib.nullcontext() if ended else pytest.raises(NotReady, match="send what was not answered again"):
        async for item in stop.until(items()):
            seen.append(item)
    assert seen == [1, 2, 3]


async def test_until_ends_a_stream_that_never_pauses(monkeypatch):
    monkeypatch.setattr(server, "LAST_SECONDS", 0.01)

    async def items():
        while True:
            yield await asyncio.sleep(0, "more")

    stop = StopSignal()
    stop.set_drained()

    with pytest.raises(NotReady):
        async for _ in stop.until(items()):
            pass


async def test_a_process_that_drains_still_accepts_calls_and_streams(handlers, free_port):
    async def items():
        yield b"item"
        await asyncio.Event().wait()

    async def follow(request, context):
        async for item in stop.until(items()):
            yield item

    stop, ready = StopSignal(), asyncio.Event()
    component = handlers({"Follow": grpc.unary_stream_rpc_method_handler(follow)})
    settings = ServiceSettings(drain_seconds=1)
    serving = asyncio.ensure_future(run_component(component, settings, free_port, stop, ready.set))
    await ready.wait()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{free_port}") as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        stop.set()
        assert (await watch.read()).status == NOT_SERVING

        stream = channel.unary_stream("/test.Test/Follow")(b"")
        assert await stream.read() == b"item"
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE
        await serving


async def test_calls_beyond_the_most_at_the_same_time_are_refused(handlers):
    entered, gate = asyncio.Event(), asyncio.Event()

    async def wait(request, context):
        entered.set()
        await gate.wait()
        return request

    component = handlers({"Wait": grpc.unary_unary_rpc_method_handler(wait)})
    bounded = GrpcServer("127.0.0.1:0", component.services, max_message_bytes=1000, max_concurrent_calls=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await bounded.start()}") as channel:
        call = channel.unary_unary("/test.Test/Wait")
        first = call(b"first")
        await entered.wait()

        assert await call(b"second").code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        gate.set()
        assert await first == b"first"
        assert await call(b"third") == b"third"
    await bounded.stop(0)


@pytest.mark.parametrize(("size", "code"), [(4 * 1024 * 1024, "OK"), (4 * 1024 * 1024 + 1, "RESOURCE_EXHAUSTED")])
async def test_message_over_the_limit_is_refused(serve_handlers, size, code):
    async def length(request, context):
        return str(len(request)).encode()

    served = await serve_handlers(Length=length)
    async with grpc.aio.insecure_channel(served.address) as channel:  # a channel that sends anything
        call = channel.unary_unary("/test.Test/Length")(bytes(size))

        assert (await call.code()).name == code


async def test_port_that_is_taken_is_a_wrong_setting_and_is_not_shared(start_server):
    _, port = await start_server()

    with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}"):
        await start_server(port=port)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_server_listens_on_an_ipv6_address(start_server):
    _, port = await start_server(host="::1")

    async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
        assert (await HealthStub(channel).Check(HealthCheckRequest())).status == NOT_SERVING


class Slowly:
    """A component that needs a gate opened to start."""

    services = collectors = ()

    def __init__(self) -> None:
        self.starting, self.gate, self.closed = asyncio.Event(), asyncio.Event(), False

    async def start(self) -> None:
        self.starting.set()
        await self.gate.wait()

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
async def slowly(free_port):
    """A component, its `serve` as a task, and a channel to it."""
    component, stop, ready = Slowly(), StopSignal(), asyncio.Event()
    settings = ServiceSettings(stop_grace_seconds=5)
    serving = asyncio.ensure_future(run_component(component, settings, free_port, stop, ready.set))
    return component, serving, stop, ready, f"127.0.0.1:{free_port}"


async def test_process_is_not_serving_until_its_component_started(slowly):
    component, serving, stop, ready, address = slowly
    await component.starting.wait()
    async with grpc.aio.insecure_channel(address) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING

        component.gate.set()
        await ready.wait()
        assert (await watch.read()).status == SERVING

        stop.set()
        assert (await watch.read()).status == NOT_SERVING
        await serving
    assert component.closed


async def test_process_that_is_told_to_stop_does_not_wait_for_its_start(slowly):
    component, serving, stop, ready, _ = slowly
    await component.starting.wait()
    stop.set()

    await serving
    assert component.closed
    assert not ready.is_set()


WAIT_FOR_THE_END = """
from services.common.server import run_until_signalled
async def main(stop):
    print("started", flush=True)
    await stop.wait()
    print("stopped", flush=True)
run_until_signalled(main)
"""


ENDLESS = """
import asyncio
from services.common import server
server.STOP_MARGIN_SECONDS = {margin}
async def main(stop):
    print("started", flush=True)
    await stop.wait()
    print("asked", flush=True)
    await asyncio.Event().wait()
server.run_until_signalled(main, 0.0)
"""


THREADS_STAY = """
import asyncio, threading
from services.common import server
server.LAST_SECONDS = 0.1
async def main(stop):
    threading.Thread(target=threading.Event().wait).start()
    working = asyncio.ensure_future(asyncio.to_thread(threading.Event().wait))
    print("started", flush=True)
    await stop.wait()
    print("closed")
server.run_until_signalled(main)
"""


@pytest.mark.parametrize("again", [True, False], ids=["asked twice", "time is over"])
def test_process_ends_though_its_work_does_not(again):
    program = ENDLESS.format(margin=3600 if again else 0.1)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        while again and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)

        assert process.wait() == (-signal.SIGTERM if again else 1)


def test_process_that_has_closed_everything_does_not_wait_for_threads():
    with subprocess.Popen([sys.executable, "-c", THREADS_STAY], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)

        assert process.stdout.readline() == "closed\n"
        assert process.wait() == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, "supervisor gone"])
def test_process_ends_in_order_on(end):
    environment = {**os.environ, "AIMASS_SUPERVISED": "1" if end == "supervisor gone" else ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", WAIT_FOR_THE_END], **pipes) as process:
        assert process.stdout.readline() == "started\n"
        if end == "supervisor gone":
            process.stdin.close()
        else:
            process.send_signal(end)

        assert process.stdout.read() == "stopped\n"
        assert process.wait() == 0
