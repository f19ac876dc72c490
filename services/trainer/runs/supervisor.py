"""Starts queued runs, watches over their processes, and takes down how they end."""

import asyncio
import shutil
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType

import structlog

from services.common.errors import Conflict, InvalidInput, NotReady, Overloaded, ServiceError
from services.trainer.clock import now
from services.trainer.runs.folder import (
    ID_FILE,
    LOG_FILE,
    OUTCOME_FILE,
    PROGRESS_FILE,
    SUPERVISED_FILE,
    RunFolder,
    identify_folder,
)
from services.trainer.runs.launcher import INTERRUPTED, Launcher, Process
from services.trainer.runs.progress import read_epochs
from services.trainer.runs.record import Outcome, RunKind, RunState
from services.trainer.runs.store import LONG_KINDS, SHORT_KINDS, Run, RunFilter, RunStore

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often the table is looked at for what other processes have written there."""
AGAIN_SECONDS = 0.05
GLANCES = 3
"""How often a lock is tried, which somebody may only be glancing at."""
SHORT_RUNS = 1
"""How many runs of the short kinds may be at work beside those of the others."""
OUT_OF_MEMORY = -9
"""Exit code of what the kernel kills when memory runs out."""


class Supervisor:
    """The runs of one queue; runs of others are looked at only where nobody is left who sees them through.

    Args:
        store: The table of runs.
        launcher: Where their processes live.
        runs_dir: Where their folders lie.
        queue: Only its runs are started here.
        most_parallel: Runs that may be at work at once; one of `SHORT_KINDS` more may be.
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
        """Take in what lies in the folder, take over what an earlier life has left running, then start what waits.

        Raises:
            Conflict: The runs of the database lie in another folder.
            OSError: The folder cannot be written.
        """
        self._runs_dir.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._check_folder)
        await asyncio.to_thread(self._adopt_finished)
        await self._look_after_abandoned()
        self._supervising = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Start nothing more and have all processes leave a checkpoint; their runs go on at the next start."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    def wake(self) -> None:
        """Look at the table now: something in it has changed."""
        self._awake.set()

    async def take_over(self, run: Run) -> Run:
        """Make a running run ours whose supervisor is gone; where its process is gone too, take down its end.

        Returns:
            The run as it is then: where its supervisor lives, as it was.
        """
        for attempt in range(1, GLANCES + 1):
            if run.id in self._watches:
                break
            with ExitStack() as supervision:
                try:
                    supervision.enter_context(self.folder(run.id).supervised())
                except Conflict:
                    if attempt < GLANCES:
                        await asyncio.sleep(AGAIN_SECONDS)
                    continue
                return await self._take_over(run, supervision)
        return await asyncio.to_thread(self._store.get, run.id)

    async def _take_over(self, run: Run, supervision: ExitStack) -> Run:
        folder = self.folder(run.id)
        try:
            with folder.locked():
                settled = await asyncio.to_thread(self.settle, run)
                log.info("run found without its process", run=run.id, state=settled.state)
                return settled
        except Conflict:
            current = await asyncio.to_thread(self._store.move, run, self._queue)
            if (current.state, current.attempts, current.queue) == (RunState.RUNNING, run.attempts, self._queue):
                log.info("run found with its process", run=run.id)
                self._watch(current, self._launcher.find(folder), supervision.pop_all())
            return current

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

    def _check_folder(self) -> None:
        """Make sure that the folder is the database's: the locks of its runs would lie elsewhere."""
        found = identify_folder(self._runs_dir)
        known, path = self._store.bind_folder(found, str(self._runs_dir.absolute()))
        if found != known:
            raise Conflict(
                f"the runs of the trainer's database lie in {path}, and TRAINER_RUNS is {self._runs_dir}, another "
                "folder; set TRAINER_RUNS to the former or TRAINER_DATABASE to a database of its own; where the former "
                f"is lost, write {known} into {self._runs_dir / ID_FILE}"
            )

    def _adopt_finished(self) -> None:
        """Enter runs that have ended and that the table does not know: those of the package, or of another machine."""
        for run_id in self._store.unknown([path.parent.name for path in self._runs_dir.glob(f"*/{OUTCOME_FILE}")]):
            folder = self.folder(run_id)
            try:
                request, outcome = folder.request(), folder.outcome()
            except ServiceError as error:
                log.warning("run cannot be taken in", run=run_id, reason=error.message)
                continue
            if outcome is not None and request.id == run_id:
                self._store.adopt(request, outcome, self._queue)
                log.info("run taken in", run=run_id, state=outcome.state)

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
                await self._look_after_abandoned()
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

    async def _look_after_abandoned(self) -> None:
        """Watch the running runs of our queue that nobody watches, and take down the end of such runs of others.

        A process of another queue that is still at work is left alone: it goes on without a supervisor, until somebody
        resumes or cancels its run.
        """
        for run in await asyncio.to_thread(self._store.list, RunFilter(states=(RunState.RUNNING,))):
            folder = self.folder(run.id)
            if run.queue == self._queue:
                if run.id not in self._watches and not folder.is_supervised:
                    await self.take_over(run)
            elif (folder / SUPERVISED_FILE).exists() and not folder.is_supervised:
                with suppress(Conflict), folder.locked():  # a process is at work
                    settled = await asyncio.to_thread(self.settle, run)
                    log.info("run found without process and supervisor", run=run.id, state=settled.state)

    async def _stop_cancelled(self) -> None:
        watches = dict(self._watches)
        for run_id in await asyncio.to_thread(self._store.to_be_cancelled, list(watches)):
            watches[run_id].stop()

    async def _start_queued(self) -> None:
        await self._start_some(SHORT_KINDS, SHORT_RUNS)
        await self._start_some(LONG_KINDS, self._most_parallel)

    async def _start_some(self, kinds: Collection[RunKind], most: int) -> None:
        """Start queued runs of these *kinds* as long as fewer than *most* of them are at work."""
        for run_id in await asyncio.to_thread(self._store.waiting, self._queue, kinds):
            if self._stopping is not None or sum(watch.kind in kinds for watch in self._watches.values()) >= most:
                return
            try:
                self.check_disk()
                with self.folder(run_id).locked() as lock, ExitStack() as supervision:
                    supervision.enter_context(self.folder(run_id).supervised())
                    run = await asyncio.to_thread(self._store.claim, run_id, self._queue, most)
                    if run is None:
                        return
                    await self._launch(run, lock, supervision)
            except Conflict:  # its former process is just ending
                continue
            except (Overloaded, OSError) as error:
                await asyncio.to_thread(self._store.note, run_id, f"waits: {error}")
                if isinstance(error, Overloaded):  # there is room for no run; else it is this one's folder
                    return

    async def _launch(self, run: Run, lock: int, supervision: ExitStack) -> None:
        folder = self.folder(run.id)
        try:
            request = run.request()
            folder.create(request)
            process = await self._launcher.start(folder, request, lock)
        except Exception as error:  # whatever it is, a run that is not ended here would keep its place for ever
            log.error("run cannot be started", run=run.id, exc_info=error)
            failed = Outcome(state=RunState.FAILED, reason=f"its process cannot be started: {error}", finish_time=now())
            await asyncio.to_thread(self._store.finish, run.id, failed)
            return
        log.info("run started", run=run.id, attempt=run.attempts)
        self._watch(run, process, supervision.pop_all())

    def _watch(self, run: Run, process: Process, supervision: ExitStack) -> None:
        watch = _Watch(run.kind, process, supervision, self._grace_seconds)
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
        watch.supervision.close()
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

    def __init__(self, kind: RunKind, process: Process, supervision: ExitStack, grace_seconds: float) -> None:
        self.kind = kind
        self.process = process
        self.supervision = supervision
        """Says that we see the run through, until it is closed."""
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
