"""The suite of the demonstration: `aimass up` in a folder and on ports of its own, as a person would run it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from aimass.client import Client, PredictionError
from services.common.errors import SettingsError

STOP_SECONDS = 60.0
_PORTS = (
    "GATEWAY_HTTP_PORT",
    "GATEWAY_GRPC_PORT",
    "GATEWAY_METRICS_PORT",
    "PREPROCESS_PORT",
    "PREPROCESS_METRICS_PORT",
    "INFERENCE_PORT",
    "INFERENCE_METRICS_PORT",
    "TRAINER_PORT",
    "TRAINER_METRICS_PORT",
)
_PREFIXES = ("AIMASS_", "GATEWAY_", "PREPROCESS_", "INFERENCE_", "TRAINER_", "OTEL_")


class Suite:
    """A suite in *home*; use it as a context manager.

    Args:
        home: Folder of all its files.
        mode: `pipeline` or `services`.
        settings: Further environment variables.
    """

    def __init__(self, home: Path, mode: str, settings: Mapping[str, str]) -> None:
        self._ports = _free_ports()
        self._home = home
        self._mode = mode
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}
        ports = {name: str(port) for name, port in self._ports.items()}
        inference = {"TRAINER_INFERENCE_ADDRESS": f"127.0.0.1:{ports['INFERENCE_PORT']}"}
        self._environment = kept | {"AIMASS_HOME": str(home)} | ports | inference | dict(settings)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Of the gateway's gRPC port."""
        return f"127.0.0.1:{self._ports['GATEWAY_GRPC_PORT']}"

    @property
    def inference_address(self) -> str:
        """Where versions are published."""
        return f"127.0.0.1:{self._ports['INFERENCE_PORT']}"

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self._ports['GATEWAY_HTTP_PORT']}"

    @property
    def log(self) -> Path:
        """File that all of its processes log to."""
        return self._home / "suite.log"

    def command(self, *arguments: str) -> None:
        """Run `aimass ARGUMENTS` on the suite's folders.

        Raises:
            SettingsError: It failed.
        """
        command = [sys.executable, "-P", "-m", "aimass", *arguments]
        with self.log.open("ab") as log:
            code = subprocess.run(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            ).returncode
        if code:
            raise SettingsError(f"`aimass {' '.join(arguments)}` ended with {code}; see {self.log}")

    def start(self) -> None:
        """Start the suite and wait until it is ready.

        Raises:
            SettingsError: It ended instead.
        """
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "aimass", "up", "--mode", self._mode],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demonstration, which then stops the suite in order
            )
        with Client(self.address) as client:
            while not _is_ready(client):
                try:
                    code = self._process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
                raise SettingsError(f"the suite ended with {code} before it was ready; see {self.log}")

    def pids(self) -> dict[str, int]:
        """Return the newest process of each service, by name; none in pipeline mode."""
        lines = self.log.read_text(errors="replace").splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return {event["process"]: event["pid"] for event in events if event["event"] == "process started"}

    def kill(self, service: str) -> None:
        """End a service as a crash would, with SIGKILL; the suite starts it again."""
        os.kill(self.pids()[service], signal.SIGKILL)

    def stop(self) -> None:
        """Stop the suite."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _free_ports() -> dict[str, int]:
    with ExitStack() as held:  # all at once, so that no two are the same
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in _PORTS]
        return {name: each.getsockname()[1] for name, each in zip(_PORTS, sockets, strict=True)}


def _is_ready(client: Client) -> bool:
    try:
        return any(model.ready for model in client.models(timeout=1))
    except PredictionError:
        return False
