"""Starts the processes of runs on this machine, and finds those that an earlier life of the service has started."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from services.trainer.options import TrainingOptions
from services.trainer.runs.folder import LOG_FILE, RunFolder
from services.trainer.runs.record import Options, Request, RunKind

INTERRUPTED = 75
"""Exit code of a process that was told to stop and has left a checkpoint to go on from (EX_TEMPFAIL)."""
JOBS_MODULE = "services.trainer.jobs"
RESTARTS = 3
"""How often several workers begin again together when one of them has died, before their run counts as dead."""
RENDEZVOUS_FILE = "rendezvous"
"""Where several workers meet; of the present process only."""
POLL_SECONDS = 0.1
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""For numpy's products: sums in another order have other last bits, and a refit shall give the same ones anywhere."""


class Process(Protocol):
    """The process of one run, with all that it has started."""

    async def wait(self) -> int | None:
        """Return the exit code once nothing of the process is left: negative for a signal, None where unknown."""

    def terminate(self) -> None:
        """Ask it to leave a checkpoint and stop; the process passes that on to what it has started."""

    def kill(self) -> None:
        """End it at once, with all that it has started in its session."""


class Launcher(Protocol):
    """Where processes of runs live; another one may put them on other machines."""

    async def start(self, folder: RunFolder, request: Request, lock: int) -> Process:
        """Start the process of a run.

        Args:
            folder: Of the run; holds the request.
            request: What the run does.
            lock: Descriptor of the run's lock, which the process keeps for as long as it lives.

        Raises:
            OSError: It cannot be started.
        """

    def find(self, folder: RunFolder) -> Process:
        """Return the process that holds the run."""


class LocalLauncher:
    """Processes on this machine, each in a session of its own: a Ctrl-C in our terminal does not reach them.

    Args:
        environment: What they are told beside our own environment.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment, "PYTHONSAFEPATH": "1"}  # no folder `services` of somebody's
        self._environment.pop("AIMASS_SUPERVISED", None)

    async def start(self, folder: RunFolder, request: Request, lock: int) -> Process:
        """Start `python -m services.trainer.jobs <folder>`, or that many times under torchrun."""
        return await asyncio.to_thread(self._start, folder, request, lock)

    def _start(self, folder: RunFolder, request: Request, lock: int) -> Process:
        (folder / RENDEZVOUS_FILE).unlink(missing_ok=True)
        with (folder / LOG_FILE).open("ab") as log:
            # Not the event loop's own: that forks, and grpc's handlers of a fork crash the child now and then.
            child = subprocess.Popen(
                self.command(folder, request.options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment | (_ONE_THREAD if request.kind is RunKind.REFIT else {}),
                start_new_session=True,
                pass_fds=(lock,),
            )
        folder.sign(child.pid)
        return _Child(child, folder)

    def find(self, folder: RunFolder) -> Process:
        """Return the process that holds the run, or will in a moment have let go of it."""
        return _Found(folder)

    def command(self, folder: RunFolder, options: Options) -> list[str]:
        """Return the program of the run and its arguments."""
        job = ["-m", JOBS_MODULE, str(folder.path)]
        if isinstance(options, TrainingOptions):
            workers = options.workers
            if workers.count > 1 and workers.synchronisation == "every-step":
                return [sys.executable, *torchrun(folder / RENDEZVOUS_FILE, workers.count), *job]
        return [sys.executable, *job]


def torchrun(rendezvous: Path, count: int) -> list[str]:
    """Return the arguments of Python that start *count* processes of the program that follows.

    They meet through the file *rendezvous*, which must not exist yet. torchrun's own `--standalone` would listen on all
    interfaces and unpickle whatever anybody sends there.
    """
    return [
        "-m",
        "torch.distributed.run",
        "--nnodes=1",
        f"--nproc-per-node={count}",
        f"--max-restarts={RESTARTS}",
        "--rdzv-backend=c10d",
        "--rdzv-conf=store_type=file",
        f"--rdzv-endpoint={rendezvous}",
        "--rdzv-id=run",
        "--local-addr=127.0.0.1",
    ]


class _Child:
    """Started by ourselves."""

    def __init__(self, child: subprocess.Popen[bytes], folder: RunFolder) -> None:
        self._child = child
        self._folder = folder

    async def wait(self) -> int | None:
        while True:
            code = self._child.poll()
            if code is not None:
                await _end_orphans(self._folder, self._child.pid)
                return code
            await asyncio.sleep(POLL_SECONDS)

    def terminate(self) -> None:
        self._child.terminate()  # does nothing where it has ended

    def kill(self) -> None:
        if self._child.poll() is None:
            _kill_session(self._child.pid)


class _Found:
    """Started by an earlier life of the service: no child of ours, but known by its lock."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    async def wait(self) -> int | None:
        while self._folder.is_held:
            pid = self._folder.signed()
            if pid is not None and not _lives(pid):
                await _end_orphans(self._folder, pid)
            await asyncio.sleep(POLL_SECONDS)
        return None

    def terminate(self) -> None:
        pid = self._folder.signed()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        pid = self._folder.signed()
        if pid is not None:
            _kill_session(pid)


async def _end_orphans(folder: RunFolder, pid: int) -> None:
    """End what a process that is gone has left in its session, and see the lock free."""
    while folder.is_held and folder.signed() == pid:
        _kill_session(pid)
        await asyncio.sleep(POLL_SECONDS)


def _kill_session(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
