"""A supervisor in a process that can be killed: says on standard output when the run has begun."""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))  # as pytest does

from services.trainer.runs.folder import RunFolder
from services.trainer.runs.store import RunStore
from services.trainer.runs.supervisor import Supervisor
from services.trainer.runs.watching import watch_run
from services.trainer.storage.database import Database
from tests.trainer.runs.conftest import QUEUE, CountingLauncher


async def main(folder: Path, run_id: str) -> None:
    store = RunStore(Database(f"sqlite:///{folder / 'trainer.db'}"))
    await Supervisor(store, CountingLauncher({}), folder / "runs", queue=QUEUE).start()
    async for update in watch_run(store, RunFolder(folder / "runs" / run_id), run_id):
        if update.entries:
            print("begun", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
