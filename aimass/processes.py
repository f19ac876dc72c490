"""The suite as four processes: starts them, waits until they are ready, restarts one that dies, stops them all."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from gateway.settings import GatewaySettings
from services.common.channels import host_and_port, open_channel, reachable
from services.common.errors import SettingsError
from services.common.server import SUPERVISED_VARIABLE, StopSignal
from services.common.settings import ServiceSettings, load_settings
from services.inference.settings import InferenceSettings
from services.preprocess.settings import PreprocessSettings
from services.trainer.settings import TrainerSettings

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.1
RESTART_SECONDS = 0.2
"""Wait before the first restart; doubled by each further one, up to the longest."""
LONGEST_RESTART_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
"""The same of a process that predictions do not need: what keeps it from starting may last until a person helps."""
STEADY_SECONDS = 30.0
"""A process that lived this long is restarted as if for the first time."""
KILL_SECONDS = 5.0
"""Beyond a process's own grace: how long it may take to stop before it is killed."""


@dataclass(frozen=True)
class Process:
    """How one service is started and asked for its health."""

    name: str
    module: str
    settings: ServiceSettings
    port: int
    """Of the gRPC server, which tells the health."""
    http_port: int = 0
    """0 where it has none."""
    needed: bool = True
    """Whether predictions need it, so that the suite is not ready without it."""

    @property
    def ports(self) -> list[int]:
        """All ports that it listens on."""
        return [port for port in (self.port, self.http_port, self.settings.metrics_port) if port]


def suite_processes() -> list[Process]:
    """Return the four processes in the order in which they stop: first the door, last what everything needs.

    Raises:
        SettingsError: The environment is wrong.
    """
    gateway, preprocess = load_settings(GatewaySettings), load_settings(PreprocessSettings)
    trainer, inference = load_settings(TrainerSettings), load_settings(InferenceSettings)
    return [
        Process("gateway", "gateway", gateway, gateway.grpc_port, gateway.http_port),
        Process("preprocess", "services.preprocess", preprocess, preprocess.port),
        Process("trainer", "services.trainer", trainer, trainer.port, needed=False),
        Process("inference", "services.inference", inference, inference.port),
    ]


async def run_processes(stop: StopSignal, on_ready: Callable[[], None]) -> None:
    """Run the suite as four processes until *stop*.

    Raises:
        SettingsError: The environment is wrong, a port is taken, or a process that predictions need ended before it
            was ready.
    """
    processes = suite_processes()
    with ExitStack() as held:  # all at once, so that two of the same number show too
        for process in processes:
            _require_free_ports(process, held)
    environ = {**_addresses(processes), **os.environ, SUPERVISED_VARIABLE: "1"}
    keepers = [_Keeper(process, environ) for process in processes]
    stopping = asyncio.ensure_future(stop.wait())
    try:
        for keeper in keepers:
            await keeper.spawn()
        ready = asyncio.gather(*(keeper.wait_ready() for keeper in keepers))
        await asyncio.wait((ready, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set:
            await ready
            on_ready()
            keeping = [asyncio.create_task(keeper.keep()) for keeper in keepers]
            await stopping
            for task in keeping:
                task.cancel()
            await asyncio.wait(keeping)
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)
    finally:
        stopping.cancel()
        for keeper in keepers:
            await keeper.stop()


def _addresses(processes: Sequence[Process]) -> dict[str, str]:
    """Return the settings by which the processes find each other, so that a changed port is changed once."""
    at = {each.name: host_and_port(reachable(each.settings.host), each.port) for each in processes}
    sources = [
        host_and_port(reachable(each.settings.host), each.settings.metrics_port)
        for each in processes
        if each.name != "gateway" and each.settings.metrics_port
    ]
    return {
        "GATEWAY_METRICS_SOURCES": ",".join(sources),
        "GATEWAY_PREPROCESS_ADDRESS": at["preprocess"],
        "GATEWAY_INFERENCE_ADDRESS": at["inference"],
        "GATEWAY_TRAINER_ADDRESS": at["trainer"],
        "PREPROCESS_INFERENCE_ADDRESS": at["inference"],
        "TRAINER_INFERENCE_ADDRESS": at["inference"],
    }


def _require_free_ports(process: Process, held: ExitStack) -> None:
    """Make sure that the health to be asked for is our own: another suite's process would say SERVING there.

    Raises:
        SettingsError: A port is taken.
    """
    host = process.settings.host
    for port in process.ports:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            held.enter_context(socket.create_server((host, port), family=family))
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {host}:{port} for {process.name}: is another suite running? ({error.strerror})"
            ) from error


class _Keeper:
    """Keeps one process alive."""

    def __init__(self, process: Process, environ: Mapping[str, str]) -> None:
        self._process = process
        self._environ = environ
        self._child: asyncio.subprocess.Process | None = None

    async def spawn(self) -> None:
        """Start the process, away from this terminal's Ctrl-C: it is stopped in order, not all at once."""
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # not a folder `services` or `gateway` of whoever's directory this is
            "-m",
            self._process.module,
            stdin=asyncio.subprocess.PIPE,
            env=self._environ,
            start_new_session=True,
        )
        log.info("process started", process=self._process.name, pid=self._child.pid)

    async def wait_ready(self) -> None:
        """Return when the process says SERVING; one that predictions do not need may end before, and is kept.

        Raises:
            SettingsError: One that is needed ended before.
        """
        settings = self._process.settings
        address = host_and_port(reachable(settings.host), self._process.port)
        async with open_channel(address) as channel:
            health = HealthStub(channel)
            while not await _is_serving(health):
                if self._child is not None and self._child.returncode is not None:
                    if not self._process.needed:
                        return
                    raise SettingsError(
                        f"{self._process.name} ended with exit code {self._child.returncode}; see above"
                    )
                await asyncio.sleep(POLL_SECONDS)

    async def keep(self) -> None:
        """Start the process again whenever it ends."""
        wait = RESTART_SECONDS
        longest = LONGEST_RESTART_SECONDS if self._process.needed else LONGEST_PAUSE_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            assert self._child is not None
            begin = loop.time()
            code = await self._child.wait()
            wait = RESTART_SECONDS if loop.time() - begin > STEADY_SECONDS else wait
            log.warning("process ended, starting it again", process=self._process.name, exit_code=code, wait=wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)
            try:
                await self.spawn()
            except OSError as error:  # no memory or no process left; the ended child makes the next round try again
                log.error("process cannot be started", process=self._process.name, reason=str(error))

    async def stop(self) -> None:
        """Ask the process to stop, wait for it, and kill it where it does not."""
        child, settings = self._child, self._process.settings
        if child is None or child.returncode is not None:
            return
        child.terminate()
        try:
            grace = settings.drain_seconds + settings.stop_grace_seconds + KILL_SECONDS
            await asyncio.wait_for(child.wait(), grace)
        except TimeoutError:
            log.warning("process does not stop, killing it", process=self._process.name)
            child.kill()
            await child.wait()


async def _is_serving(health: HealthStub) -> bool:
    try:
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
