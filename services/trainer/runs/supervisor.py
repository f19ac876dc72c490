"""Starts queued runs, watches over their processes, and takes down how they end."""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import structlog
from pydantic import ValidationError

from services.common.errors import Conflict, InvalidInput, NotReady, Overloaded, ServiceError
from services.trainer.runs.folder import LOG_FILE, PROGRESS_FILE, RunFolder
from services.trainer.runs.launcher import INTERRUPTED, Launcher, Process
from services.trainer.runs.progress import read_epochs
from services.trainer.runs.record import Outcome, RunState, now
from services.trainer.runs.store import Run, RunFilter, RunStore

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often the table is looked at for what other processes have written there."""
AGAIN_SECONDS = 0.05
OUT_OF_MEMORY = -9
"""Exit code of what the kernel kills when memory runs out."""


class Supervisor:
    """The runs of one queue.

    Args:
        store: The table of runs.
        launcher: Where their processes live.
        runs_dir: Where their folders lie.
        queue: Only its runs are started here.
        most_parallel: Runs that may be at work at once.
        min_free_bytes: With less disk space than this none is started.
        grace_seconds: How long a process that is told to stop may take to leave its checkpoint.
    """

    def __init__(
        self,
        store: RunStore,
        launcher: Launcher,
        runs_dir: Path,
        *,
        queue: str,
        most_parallel: int = 1,
        min_free_bytes: int = 0,
        grace_seconds: float = 30.0,
    ) -> None:
        self._store = store
        self._launcher = launcher
        self._runs_dir = runs_dir
        self._queue = queue
        self._most_parallel = most_parallel
        self._min_free_bytes = min_free_bytes
        self._grace_seconds = grace_seconds
        self._watches: dict[str, _Watch] = {}
        self._awake = asyncio.Event()
        self._supervising: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def queue(self) -> str:
        """The queue whose runs are started here."""
        return self._queue

    @property
    def running(self) -> Mapping[str, Process]:
        """The processes that are watched, by the ids of their runs."""
        return MappingProxyType({run_id: watch.process for run_id, watch in self._watches.items()})

    def folder(self, run_id: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self._runs_dir / run_id)

    async def start(self) -> None:
        """Take over what an earlier life has left running, then start what waits."""
        self._runs_dir.mkdir(parents=True, exist_ok=True)
        running = RunFilter(states=(RunState.RUNNING,), queue=self._queue)
        for run in await asyncio.to_thread(self._store.list, running):
            await self.take_over(run)
        self._supervising = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Start nothing more and have all processes leave a checkpoint; their runs go on at the next start."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    def wake(self) -> None:
        """Look at the table now: something in it has changed."""
        self._awake.set()

    async def take_over(self, run: Run) -> None:
        """Watch a running run whose process was started elsewhere; take down its end where the process is gone."""
        if run.id in self._watches:
            return
        folder = self.folder(run.id)
        try:
            with folder.locked():
                settled = await asyncio.to_thread(self.settle, run)
                log.info("run found without its process", run=run.id, state=settled.state)
        except Conflict:
            log.info("run found with its process", run=run.id)
            self._watch(run, self._launcher.find(folder))

    def check_disk(self) -> None:
        """Make sure that there is room for what a run writes.

        Raises:
            Overloaded: There is too little.
        """
        self._runs_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._runs_dir).free
        if free < self._min_free_bytes:
            raise Overloaded(
                f"{_size(free)} of disk space are free for runs and TRAINER_MIN_FREE_BYTES is "
                f"{_size(self._min_free_bytes)}; remove runs that are no longer needed"
            )

    def settle(self, run: Run, code: int | None = None, asked: bool = False) -> Run:
        """Take down the end of a run's process; the lock must be held.

        Args:
            run: As it was when the process was at work.
            code: The exit code, where it is known.
            asked: Whether the process was told to stop.
        """
        current = self._store.get(run.id)
        if (current.state, current.attempts) != (RunState.RUNNING, run.attempts):
            return current
        folder = self.folder(run.id)
        outcome = _outcome(folder)
        if outcome is not None:
            return self._store.finish(run.id, outcome)
        if asked or code == INTERRUPTED:
            return self._store.requeue(run.id)
        return self._store.bury(run.id, _epochs(folder, current.epochs), *_death(folder, code))

    async def _supervise(self) -> None:
        while self._stopping is None:
            self._awake.clear()
            try:
                await self._stop_cancelled()
                await self._start_queued()
            except NotReady as error:
                log.warning("cannot look after runs", reason=error.message)
            except Exception as error:  # whatever it is, the other runs must not be left alone
                log.error("a fault in looking after runs", exc_info=error)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._awake.wait()
            except TimeoutError:
                continue

    async def _stop_cancelled(self) -> None:
        watches = dict(self._watches)
        for run_id in await asyncio.to_thread(self._store.to_be_cancelled, list(watches)):
            watches[run_id].stop()

    async def _start_queued(self) -> None:
        for run_id in await asyncio.to_thread(self._store.waiting, self._queue):
            if self._stopping is not None or len(self._watches) >= self._most_parallel:
                return
            try:
                self.check_disk()
                with self.folder(run_id).locked() as lock:
                    run = await asyncio.to_thread(self._store.claim, run_id, self._queue, self._most_parallel)
                    if run is None:
                        return
                    await self._launch(run, lock)
            except Conflict:  # its former process is just ending
                continue
            except (Overloaded, OSError) as error:
                await asyncio.to_thread(self._store.note, run_id, f"waits: {error}")
                return

    async def _launch(self, run: Run, lock: int) -> None:
        folder = self.folder(run.id)
        try:
            request = run.request()
            folder.create(request)
            process = await self._launcher.start(folder, request, lock)
        except (OSError, ServiceError, ValidationError) as error:
            log.error("run cannot be started", run=run.id, reason=str(error))
            failed = Outcome(state=RunState.FAILED, reason=f"its process cannot be started: {error}", finish_time=now())
            await asyncio.to_thread(self._store.finish, run.id, failed)
            return
        log.info("run started", run=run.id, attempt=run.attempts)
        self._watch(run, process)

    def _watch(self, run: Run, process: Process) -> None:
        watch = _Watch(process, self._grace_seconds)
        watch.task = asyncio.create_task(self._see_through(run, watch))
        self._watches[run.id] = watch

    async def _see_through(self, run: Run, watch: "_Watch") -> None:
        code = await watch.process.wait()
        watch.gone()
        while True:
            try:
                with self.folder(run.id).locked():
                    settled = await asyncio.to_thread(self.settle, run, code, watch.asked)
                log.info("run's process ended", run=run.id, exit_code=code, state=settled.state, reason=settled.reason)
                break
            except Conflict:  # somebody glances at the lock, or has taken the run over
                if await asyncio.to_thread(self._goes_on_elsewhere, run):
                    break
                await asyncio.sleep(AGAIN_SECONDS)
            except (NotReady, OSError) as error:
                log.warning("cannot take down how a run ended", run=run.id, reason=str(error))
                await asyncio.sleep(LOOK_SECONDS)
        if self._watches.get(run.id) is watch:
            del self._watches[run.id]
        self.wake()

    def _goes_on_elsewhere(self, run: Run) -> bool:
        current = self._store.get(run.id)
        return (current.state, current.attempts) != (RunState.RUNNING, run.attempts)

    async def _stop(self) -> None:
        self.wake()
        if self._supervising is not None:
            await self._supervising
        watches = list(self._watches.values())
        for watch in watches:
            watch.stop()
        await asyncio.gather(*(watch.task for watch in watches if watch.task is not None))


class _Watch:
    """A process that is watched."""

    def __init__(self, process: Process, grace_seconds: float) -> None:
        self.process = process
        self.task: asyncio.Task[None] | None = None
        self.asked = False
        """Whether it was told to stop."""
        self._grace_seconds = grace_seconds
        self._kill: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Tell the process to stop, and end it where it does not; may be called again."""
        if not self.asked:
            self.asked = True
            self.process.terminate()
            self._kill = asyncio.get_running_loop().call_later(self._grace_seconds, self.process.kill)

    def gone(self) -> None:
        """Send nothing to the process any more."""
        if self._kill is not None:
            self._kill.cancel()


def _outcome(folder: RunFolder) -> Outcome | None:
    try:
        return folder.outcome()
    except InvalidInput as error:
        return Outcome(state=RunState.FAILED, reason=error.message, finish_time=now())


def _epochs(folder: RunFolder, before: int) -> int:
    try:
        return max(read_epochs(folder / PROGRESS_FILE), before)
    except InvalidInput:  # what cannot be read gives no hope
        return before


def _death(folder: RunFolder, code: int | None) -> tuple[str, str]:
    """Return what happened to a process, and what else helps."""
    line = folder.last_line()
    hint = f"; see {LOG_FILE}: {line}" if line else ""
    if code is None:
        return "vanished", f", as when the machine stops or the kernel ends all that runs for lack of memory{hint}"
    if code == OUT_OF_MEMORY:
        return "was killed by signal 9", f", as the kernel does when memory runs out{hint}"
    if code < 0:
        return f"was killed by signal {-code}", hint
    return f"ended with exit code {code}", hint


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
