"""Suites under measurement: started as a person would, found again by their ports, weighed by their CPU time."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

START_SECONDS = 60.0
SERVICES = ("GATEWAY", "PREPROCESS", "INFERENCE", "TRAINER")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Suite:
    """A running suite."""

    mode: str
    http_port: int
    grpc_port: int
    inference_port: int
    metrics_port: int
    pid: int

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its processes so far, those that have ended included."""
        return sum(map(cpu_seconds, _family(self.pid)))

    def resident_bytes(self) -> int:
        """Return the memory of all its processes."""
        pages = (Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in _family(self.pid))
        return sum(map(int, pages)) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running_suite(mode: str, home: Path, **settings: str) -> Iterator[Suite]:
    """Start `aimass up --mode MODE` on free ports, with further *settings*, and stop it at the end."""
    http, public, preprocess, inference, trainer, *metrics = _free_ports(9)
    environ = os.environ | {
        "AIMASS_HOME": str(home),
        "GATEWAY_HTTP_PORT": str(http),
        "GATEWAY_GRPC_PORT": str(public),
        "GATEWAY_PREPROCESS_ADDRESS": f"127.0.0.1:{preprocess}",
        "GATEWAY_INFERENCE_ADDRESS": f"127.0.0.1:{inference}",
        "GATEWAY_TRAINER_ADDRESS": f"127.0.0.1:{trainer}",
        "GATEWAY_LOG_LEVEL": "WARNING",
        "PREPROCESS_PORT": str(preprocess),
        "PREPROCESS_INFERENCE_ADDRESS": f"127.0.0.1:{inference}",
        "TRAINER_INFERENCE_ADDRESS": f"127.0.0.1:{inference}",
        "PREPROCESS_LOG_LEVEL": "WARNING",
        "INFERENCE_PORT": str(inference),
        "INFERENCE_LOG_LEVEL": "WARNING",
        "TRAINER_PORT": str(trainer),
        "TRAINER_LOG_LEVEL": "WARNING",
        **{f"{name}_METRICS_PORT": str(port) for name, port in zip(SERVICES, metrics, strict=True)},
        **settings,
    }
    command = [sys.executable, "-m", "aimass", "up", "--mode", mode]
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as process:
        try:
            for port in (inference, public) if mode == "pipeline" else (preprocess, inference, public):
                _wait_serving(port, process)
            yield Suite(mode, http, public, inference, metrics[0], process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def running_inference(repository: Path, threads: int) -> Iterator[str]:
    """Start the inference service alone, with its graphs on the CPU, and stop it at the end; yield its address."""
    settings = {"REPOSITORY": str(repository), "DEVICE": "cpu", "THREADS": str(threads)}
    with _running_service("inference", **settings) as (address, _):
        yield address


@contextmanager
def running_trainer(home: Path) -> Iterator[tuple[str, int]]:
    """Start the trainer service alone, and stop it at the end; yield its address and the number of its process."""
    folders = {"RUNS": str(home / "runs"), "BLOBS": str(home / "blobs")}
    with _running_service("trainer", DATABASE=f"sqlite:///{home / 'trainer.db'}", **folders) as (address, pid):
        yield address, pid


@contextmanager
def _running_service(name: str, **settings: str) -> Iterator[tuple[str, int]]:
    """Start one service on a free port; yield its address and the number of its process."""
    (port,) = _free_ports(1)
    settings |= {"PORT": str(port), "METRICS_PORT": "0", "LOG_LEVEL": "WARNING"}
    environ = os.environ | {f"{name.upper()}_{setting}": value for setting, value in settings.items()}
    with subprocess.Popen([sys.executable, "-m", f"services.{name}"], env=environ) as process:
        try:
            _wait_serving(port, process)
            yield f"127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _wait_serving(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = HealthStub(channel)
        while True:
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=1.0, wait_for_ready=True)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nothing got ready on port {port}")
            time.sleep(0.1)


def _family(pid: int) -> list[int]:
    """Return a process and all that it, or one of these, has started."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for thread in threads for child in thread.read_text().split()]
    return [pid, *(each for child in children for each in _family(child))]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has taken, and those that it has started and that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / _TICKS
