"""A running suite, and the command line as a person runs it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aimass import cli, console
from services.trainer.runs.folder import PROGRESS_FILE, RunFolder
from services.trainer.runs.progress import read_progress
from services.trainer.runs.store import Run, RunStore
from services.trainer.storage.database import Database
from tests.aimass import command_process
from tests.aimass.loop_service import ToldLoop
from tests.end_to_end.conftest import suites
from tests.end_to_end.suite import clean_environment, poll
from tests.trainer.forks import FORKS

__all__ = ["suites"]

COMMAND = Path(__file__).with_name("counting_command.py")


def _hear_hangups() -> None:
    """The tests themselves may have been started by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Commands:
    """Starts commands in a home of their own, whose runs have jobs that only count."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = RunFolder(home / "runs" / "x")
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        command = subprocess.Popen(
            [sys.executable, str(COMMAND), *arguments],
            env=clean_environment(AIMASS_HOME=str(self.home), TRAINER_MIN_FREE_BYTES="0", **settings),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hear_hangups,
        )
        self._started.append(command)
        return command

    def train(self, epochs: int, **behaviour: int) -> subprocess.Popen[str]:
        """Start the run `x`, and return when its job is at work."""
        command = self.start("train", "quick", "--run-id", "x", *options(epochs, **behaviour))
        self.wait_for_work(command)
        return command

    def wait_for_work(self, command: subprocess.Popen[str]) -> None:
        kinds = ("step", "epoch")
        poll(lambda: any(e.kind in kinds for _, e in read_progress(self.folder / PROGRESS_FILE)), command, self.home)

    def run(self, *arguments: str, **settings: str) -> tuple[int | None, str, str]:
        command = self.start(*arguments, **settings)
        printed, complained = command.communicate(timeout=100)
        return command.returncode, printed, complained

    def end(self) -> None:
        """End what a test that failed has left running."""
        for command in self._started:
            command.kill()
            command.communicate()
        if (job := self.folder.signed()) is not None:
            os.killpg(job, signal.SIGKILL)

    @property
    def row(self) -> Run:
        return RunStore(Database(f"sqlite:///{self.home / 'trainer.db'}")).get("x")


def options(epochs: int, **behaviour: int) -> list[str]:
    return ["--set", f"epochs={epochs}", "--set", f"network_options={json.dumps(behaviour)}"]


@pytest.fixture
def suite(suites):
    """The suite of one process; what a user of the client sees is the same in both modes."""
    return suites["pipeline"]


@pytest.fixture
def run(tmp_path):
    """A function that runs `aimass` in a process of its own: run("predict", file, AIMASS_ADDRESS=...)."""

    def run(*arguments, **settings):
        environment = clean_environment(AIMASS_HOME=str(tmp_path / "home"), **settings)
        process = FORKS.Process(target=command_process.run, args=(arguments, environment, tmp_path))
        process.start()
        process.join(60)
        process.kill()  # where it hangs
        process.join()
        printed, complained = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(arguments, process.exitcode, printed, complained)

    return run


@pytest.fixture
def aimass(run, suite):
    """A function that runs `aimass` with arguments against the running suite."""
    return lambda *arguments: run(*arguments, AIMASS_ADDRESS=suite.address)


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path)
    yield commands
    commands.end()


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """A function that runs a command in a thread of this process: `await typed("loop", "tiny", "--address", …)`.

    It returns what was printed, and raises what the command line would tell as a sentence.
    """
    monkeypatch.setenv("AIMASS_HOME", str(tmp_path / "home"))
    for name in ("AIMASS_ADDRESS", "AIMASS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for each in (console.out, console.err):
        monkeypatch.setattr(each, "width", 200)

    async def typed(*arguments, answers=""):
        result = await asyncio.to_thread(CliRunner().invoke, cli.app, [str(each) for each in arguments], answers)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return typed


@pytest.fixture
def told():
    """A loop service that answers as it was told to."""
    return ToldLoop()


@pytest.fixture
async def loop(typed, serve, told):
    """A function that runs a command of the loop at that service: `await loop("events", "pets")`."""
    served = await serve(lambda stop: told)

    async def loop(*arguments, answers=""):
        return await typed("loop", *arguments, "--address", served.address, answers=answers)

    return loop
