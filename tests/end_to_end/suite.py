"""A suite that runs as a person runs it: `aimass up`, in a home folder and on ports of its own."""

import asyncio
import contextlib
import inspect
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from aimass.gateway.v1.gateway_pb2_grpc import GatewayServiceStub

MODES = ("pipeline", "services")
AIMASS = Path(sys.executable).with_name("aimass")
MIB = 1024 * 1024
MAX_BODY_BYTES, MAX_MESSAGE_BYTES, MAX_IMAGES = 6 * MIB, 8 * MIB, 40
START_SECONDS = STOP_SECONDS = 60
HOST, ORIGIN = "models.example", "https://page.example"
"""A name and a foreign page that the suite is told to accept."""

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
"""Where the graphs of the services under test run."""

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""Which of how many processes the tests of a run are shared by; none takes another's ports."""
_GIVEN: set[int] = set()
_SUITES = pytest.StashKey[dict[str, "Suite"]]()


@dataclass(frozen=True)
class Ports:
    """Where the parts of a suite listen."""

    http: int
    grpc: int
    preprocess: int
    inference: int
    trainer: int
    metrics: int
    preprocess_metrics: int
    inference_metrics: int
    trainer_metrics: int

    @classmethod
    def free(cls) -> "Ports":
        """Choose ports that nobody has, out of the range from which clients' connections get theirs."""
        ports: list[int] = []
        while len(ports) < len(cls.__annotations__):
            port = random.randrange(15_000 + _WORKER, 30_000, _WORKERS)
            with socket.socket() as listener, contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                if port not in _GIVEN:  # to another suite, which may not listen yet
                    _GIVEN.add(port)
                    ports.append(port)
        return cls(*ports)

    def environment(self) -> dict[str, str]:
        """Return the settings that put a suite here."""
        inference = f"127.0.0.1:{self.inference}"
        return {
            "GATEWAY_HTTP_PORT": str(self.http),
            "GATEWAY_GRPC_PORT": str(self.grpc),
            "GATEWAY_PREPROCESS_ADDRESS": f"127.0.0.1:{self.preprocess}",
            "GATEWAY_INFERENCE_ADDRESS": inference,
            "GATEWAY_TRAINER_ADDRESS": f"127.0.0.1:{self.trainer}",
            "PREPROCESS_PORT": str(self.preprocess),
            "PREPROCESS_INFERENCE_ADDRESS": inference,
            "TRAINER_INFERENCE_ADDRESS": inference,
            "INFERENCE_PORT": str(self.inference),
            "TRAINER_PORT": str(self.trainer),
            "GATEWAY_METRICS_PORT": str(self.metrics),
            "PREPROCESS_METRICS_PORT": str(self.preprocess_metrics),
            "INFERENCE_METRICS_PORT": str(self.inference_metrics),
            "TRAINER_METRICS_PORT": str(self.trainer_metrics),
        }


def clean_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with *settings*, and without any other of the suite's."""
    prefixes = ("AIMASS_", "GATEWAY_", "PREPROCESS_", "INFERENCE_", "TRAINER_", "OTEL_")
    return {key: value for key, value in os.environ.items() if not key.startswith(prefixes)} | settings


@dataclass
class Suite:
    """A running `aimass up`."""

    mode: str
    ports: Ports
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    _read: int = 0

    @property
    def address(self) -> str:
        """The public gRPC address."""
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def url(self) -> str:
        """The public HTTP address."""
        return f"http://127.0.0.1:{self.ports.http}"

    @property
    def printed(self) -> str:
        """What the suite wrote to standard output."""
        return (self.folder / "stdout").read_text()

    @property
    def logged(self) -> str:
        """What the suite wrote to standard error."""
        return (self.folder / "stderr").read_text()

    def events(self) -> list[dict[str, Any]]:
        """Return the log, one event per JSON line."""
        return [json.loads(line) for line in self.logged.splitlines() if line.startswith("{")]

    def pids(self) -> dict[str, int]:
        """Return the newest process of each service, by name; none in pipeline mode."""
        return {event["process"]: event["pid"] for event in self.events() if event["event"] == "process started"}

    def new_errors(self) -> list[dict[str, Any]]:
        """Return what was logged as a fault since the last time."""
        events = self.events()
        self._read, before = len(events), self._read
        return [event for event in events[before:] if event["level"] in ("error", "critical")]

    def wait_until_ready(self) -> None:
        """Wait until the suite says that it is ready, to load balancers and to the person."""
        with httpx.Client(base_url=self.url, trust_env=False) as client:
            poll(lambda: self._answers(client) and "Ctrl-C" in self.printed, self.process, self.folder)

    def wait_for_trainer(self) -> None:
        """Wait until the gateway has heard of the trainer's keys, without which nobody trains or administrates."""
        with self.client() as client:
            path = "/v1/models/nothing/analysis"
            poll(lambda: client.get(path).status_code != httpx.codes.SERVICE_UNAVAILABLE, self.process, self.folder)

    def _answers(self, client: httpx.Client) -> bool:
        try:
            return client.get("/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    @contextmanager
    def client(self, **options: Any) -> Iterator[httpx.Client]:
        """Open an HTTP client."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=30, **options) as client:
            yield client

    @contextmanager
    def stub(self) -> Iterator[GatewayServiceStub]:
        """Open a stub of the gateway."""
        with grpc.insecure_channel(self.address) as channel:
            yield GatewayServiceStub(channel)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that the person started, and to no other."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(STOP_SECONDS)

    def end(self) -> None:
        """Leave no process behind, whatever happened."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.pids().values():
            if is_ours(pid, self.folder):
                os.kill(pid, signal.SIGKILL)


def poll(condition: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    """Ask for *condition* until it holds; the end of *process*, which breaks it off, is the clock."""
    for _ in range(10 * START_SECONDS):
        if condition():
            return
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"the suite did not start:\n{(folder / 'stderr').read_text()}")


async def eventually(condition: Callable[[], Any]) -> None:
    """Ask for *condition*, which may be awaitable, until it holds: the state of another process has no event."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            outcome = condition()
            if await outcome if inspect.isawaitable(outcome) else outcome:
                return
            await asyncio.sleep(0.01)


def is_ours(pid: int, folder: Path) -> bool:
    """Whether *pid* still is a process of the suite in *folder*."""
    try:
        return f"AIMASS_HOME={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def wait_for_end(pid: int) -> bool:
    """Wait until the process *pid*, which need not be a child, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], STOP_SECONDS)[0])
    finally:
        os.close(descriptor)


def start_suite(mode: str, folder: Path, ports: Ports | None = None, **settings: str) -> Suite:
    """Start `aimass up` with its home in *folder*, and don't wait."""
    ports = ports or Ports.free()
    environment = clean_environment(
        AIMASS_HOME=str(folder),
        GATEWAY_MAX_BODY_BYTES=str(MAX_BODY_BYTES),
        GATEWAY_MAX_IMAGES=str(MAX_IMAGES),
        GATEWAY_ALLOWED_HOSTS=HOST,
        GATEWAY_ALLOWED_ORIGINS=ORIGIN,
        INFERENCE_THREADS="1",
        INFERENCE_DEVICE=DEVICE,
        **{f"{name}_MAX_MESSAGE_BYTES": str(MAX_MESSAGE_BYTES) for name in ("GATEWAY", "PREPROCESS", "INFERENCE")},
        **ports.environment(),
        **({"TRAINER_LOOP": "off"} | settings),  # it would embed thousands of pictures beside each test
    )
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [AIMASS, "up", "--mode", mode],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    return Suite(mode, ports, folder, environment, process)


def shared_suite(config: pytest.Config, mode: str, prepare: Callable[[], Path]) -> Suite:
    """Return the one suite of *mode* that all tests of this session share; *prepare* makes its home folder."""
    suites = config.stash.setdefault(_SUITES, {})
    if mode not in suites:
        suite = suites[mode] = start_suite(mode, prepare(), TRAINER_LOOP="on")
        config.add_cleanup(suite.end)
        suite.wait_until_ready()
        suite.wait_for_trainer()
    return suites[mode]


def is_serving(address: str) -> bool:
    """Ask a server for its health, waiting for it to listen."""
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest()
        answer = HealthStub(channel).Check(request, timeout=START_SECONDS, wait_for_ready=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
