"""Follows a run from the outside: reads what its process writes anyway, so that it costs the run nothing."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from services.trainer.runs.folder import PROGRESS_FILE, RunFolder
from services.trainer.runs.progress import Progress, read_progress
from services.trainer.runs.store import Run, RunStore

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Update:
    """What has happened since the one before."""

    run: Run | None
    """The run where its row has changed, and in the first update."""
    entries: Sequence[Progress]
    position: int
    """Behind the entries: where to go on."""


async def watch_run(store: RunStore, folder: RunFolder, run_id: str, position: int = 0) -> AsyncIterator[Update]:
    """Yield all that has happened to a run behind *position*, and what happens then, until the run has ended.

    Raises:
        NotFound: There is no such run.
        InvalidInput: *position* is not one that an update gave.
    """
    told: Run | None = None
    while True:
        # In this order: once the row says that a run has ended, nothing more is written to its folder.
        run = await asyncio.to_thread(store.get, run_id)
        entries = await asyncio.to_thread(read_progress, folder / PROGRESS_FILE, position)
        if entries or run != told:
            position = entries[-1][0] if entries else position
            yield Update(None if run == told else run, [entry for _, entry in entries], position)
            told = run
        elif run.state.final:
            return
        else:
            await asyncio.sleep(LOOK_SECONDS)
