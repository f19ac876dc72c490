"""What is done every hour: what is too old or of no more use goes, with files of nobody; deletions are seen through.

And every few seconds: where pictures hardly have room, the oldest go.

Figures need nothing here: the oldest of a kind go with each new one. Events are never removed.
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import select

from services.common.errors import ServiceError
from services.trainer.clock import as_row
from services.trainer.feedback.counting import fold_counts
from services.trainer.feedback.policy import PolicyOf
from services.trainer.feedback.retention import expire, make_room, sweep
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.loop.log import Clock, gate_is_open, utc_now
from services.trainer.loop.pruning import prune_answers
from services.trainer.provenance.deletion import Deletions
from services.trainer.provenance.erasure import Erasure
from services.trainer.storage.database import Database

EVERY_SECONDS = 3600.0
ROOM_SECONDS = 5.0
"""Between two looks at whether pictures have room."""
ALL_HELD_SECONDS = 60.0
"""After a look that found no room and no picture that might go, until the next one at that model: all are read."""
SILENT = timedelta(days=7)
"""So long a gateway is not heard of, which tells its counts every hour as long as it lives, until it counts as gone."""
LISTENED = timedelta(hours=2)
"""So long this process must have been there to hear of the gateways that live: before, it was perhaps away."""
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
        self._begin_time = clock()
        self._all_held: dict[str, float] = {}
        """By model: when it was seen, on the monotonic clock, that there is no room and nothing may go."""
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, at once."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Let the step under way be the last one."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    def tidy(self) -> None:
        """Do all of it once; what fails does not keep the rest from being done."""
        models = self._models()
        steps: list[Callable[[], object]] = [self._deletions.renew]
        steps += [partial(self._expire, model) for model in models]
        steps += [partial(self._fold_counts, model) for model in models]
        steps += [partial(self._prune, model) for model in models]
        steps += [partial(sweep, self._database, self._blobs, self._clock()), self._erase_overdue]
        for step in steps:
            if self._stopping.is_set():
                return
            _try(step)

    def make_room(self) -> None:
        """Let the oldest pictures go where all of a model hardly have room, so that capture goes on."""
        for model in self._models():
            if not self._stopping.is_set():
                _try(partial(self._make_room, model))

    async def _run(self) -> None:
        due = -math.inf
        while not self._stopping.is_set():
            if time.monotonic() >= due:
                due = time.monotonic() + EVERY_SECONDS
                await asyncio.to_thread(_try, self.tidy)
            await asyncio.to_thread(_try, self.make_room)
            try:
                async with asyncio.timeout(ROOM_SECONDS):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def _models(self) -> list[str]:
        with self._database.read() as session:
            return list(session.scalars(select(LoopModelRow.model).order_by(LoopModelRow.model)))

    def _make_room(self, model: str) -> None:
        if time.monotonic() - self._all_held.get(model, -math.inf) < ALL_HELD_SECONDS:
            return
        policy = self._policy_of(model).capture
        counts = make_room(self._database, self._blobs, model, policy, self._clock(), gate_is_open)
        if counts is None:
            return
        if not counts.observations:
            self._all_held[model] = time.monotonic()
        else:
            log.info("pictures made room", model=model, pictures=counts.observations, files=counts.blobs)

    def _expire(self, model: str) -> None:
        policy = self._policy_of(model).retention
        counts = expire(self._database, self._blobs, model, policy, self._clock(), gate_is_open)
        if counts.observations:
            log.info("old pictures were forgotten", model=model, pictures=counts.observations, files=counts.blobs)

    def _fold_counts(self, model: str) -> None:
        present = self._clock()
        if present - self._begin_time >= LISTENED:
            fold_counts(self._database, model, as_row(present - SILENT))

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
