"""The worker processes of a run."""

import subprocess
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import structlog

from services.common.errors import NotReady

log = structlog.get_logger(__name__)

RESTARTS = 3
"""How often a worker is started again; after that the others go on without it."""


class Pool:
    """Processes that are started, and started again where they die, until the block ends.

    Args:
        command: Of the worker with a number, from 0.
        count: How many.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], count: int) -> None:
        self._command = command
        self._count = count
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._restarts = dict.fromkeys(range(count), 0)

    def __enter__(self) -> Self:
        for number in range(self._count):
            self._start(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whatever they are doing, nobody waits for it any more.
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The present process of each worker."""
        return list(self._processes.values())

    def _start(self, number: int) -> None:
        self._processes[number] = subprocess.Popen(self._command(number))

    def mend(self) -> None:
        """Start those again that have died.

        Raises:
            NotReady: None is left.
        """
        for number, process in self._processes.items():
            code = process.poll()
            if code and self._restarts[number] < RESTARTS:
                self._restarts[number] += 1
                log.warning("worker died", worker=number, exit_code=code, restarts=self._restarts[number])
                self._start(number)
        codes = [process.poll() for process in self.processes]
        if all(codes):
            raise NotReady(
                f"all {self._count} workers have ended {RESTARTS + 1} times, the last with exit code {codes[-1]}; "
                "look at what they printed in the run's log, then resume the run"
            )
