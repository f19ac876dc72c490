"""What is done every hour: what is too old or of no more use goes, with files of nobody; deletions are seen through.

Figures need nothing here: the oldest of a kind go with each new one. Events are never removed.
"""

import asyncio
from collections.abc import Callable, Collection
from datetime import UTC, timedelta
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import select

from services.common.errors import ServiceError
from services.trainer.feedback.counting import fold_counts
from services.trainer.feedback.policy import PolicyOf
from services.trainer.feedback.retention import expire, sweep
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.loop.log import Clock, utc_now
from services.trainer.loop.pruning import prune_answers
from services.trainer.provenance.deletion import Deletions
from services.trainer.provenance.erasure import Erasure
from services.trainer.storage.database import Database

EVERY_SECONDS = 3600.0
OVERDUE_SECONDS = 3600.0
"""After which rows are removed by whoever sees them: the model has no loop that would do it."""

log = structlog.get_logger(__name__)


class Upkeep:
    """Keeps the trainer's data in order; any number of trainers on the same database may.

    Args:
        database: Migrated before `start`.
        blobs: Folder of pictures.
        policy_of: Says how long pictures are kept.
        deletions: Those that are open.
        erasure: Removes what no loop does.
        in_use: Returns the versions of a model that have a part in its traffic or its cycle, or may come back; of
            a model that inference does not know, none, and then none is pruned. Raises NotReady while it is away.
        clock: Gives the present time.
    """

    def __init__(
        self,
        database: Database,
        blobs: Path,
        policy_of: PolicyOf,
        deletions: Deletions,
        erasure: Erasure,
        in_use: Callable[[str], Collection[int]],
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._policy_of = policy_of
        self._deletions = deletions
        self._erasure = erasure
        self._in_use = in_use
        self._clock = clock
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, at once and then every hour."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Let the step under way be the last one."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    def tidy(self) -> None:
        """Do all of it once; what fails does not keep the rest from being done."""
        with self._database.read() as session:
            models = list(session.scalars(select(LoopModelRow.model).order_by(LoopModelRow.model)))
        steps: list[Callable[[], object]] = [self._deletions.renew]
        steps += [partial(self._expire, model) for model in models]
        steps += [partial(self._fold_counts, model) for model in models]
        steps += [partial(self._prune, model) for model in models]
        steps += [partial(sweep, self._database, self._blobs, self._clock()), self._erase_overdue]
        for step in steps:
            if self._stopping.is_set():
                return
            _try(step)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            await asyncio.to_thread(_try, self.tidy)
            try:
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def _expire(self, model: str) -> None:
        counts = expire(self._database, self._blobs, model, self._policy_of(model).retention, self._clock())
        if counts.observations:
            log.info("old pictures were forgotten", model=model, pictures=counts.observations, files=counts.blobs)

    def _fold_counts(self, model: str) -> None:
        long_ago = self._clock() - timedelta(days=self._policy_of(model).retention.days)
        fold_counts(self._database, model, long_ago.astimezone(UTC).isoformat(timespec="milliseconds"))

    def _prune(self, model: str) -> None:
        in_use = self._in_use(model)
        removed = prune_answers(self._database, model, in_use) if in_use else 0
        if removed:
            log.info("answers of versions of the past were removed", model=model, answers=removed)

    def _erase_overdue(self) -> None:
        for deletion_id, model in self._deletions.overdue(OVERDUE_SECONDS):
            self._erasure.rows(model, deletion_id)


def _try(step: Callable[[], object]) -> None:
    try:
        step()
    except ServiceError as error:
        log.warning("upkeep waits for its next turn", reason=error.message)
    except Exception as error:  # whatever it is, the next turn may go well
        log.error("a fault in the upkeep", exc_info=error)
