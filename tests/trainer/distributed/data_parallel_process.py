"""A data-parallel run under torchrun, and a worker of it: `… <folder>`; the folder holds `options.json`."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch.distributed import run as elastic

from services.trainer.distributed.data_parallel import joined
from services.trainer.runs.launcher import RENDEZVOUS_FILE, torchrun
from services.trainer.training.hardware import prepare
from services.trainer.training.loop import Watcher, train
from services.trainer.training.results import Interrupted
from tests.trainer.distributed.task import make_task, tell

INTERRUPTED = 75


def launch(folder: Path) -> None:
    """Be torchrun as the launcher starts it, with two workers that begin again where one dies.

    It forks them, so that they need not import what is imported here.
    """
    rendezvous = folder / RENDEZVOUS_FILE
    rendezvous.unlink(missing_ok=True)
    _, _, *arguments = torchrun(rendezvous, 2)  # `-m torch.distributed.run` is what we are
    elastic.main([*arguments, "--start-method=fork", "--run-path", __file__, str(folder)])


def main() -> None:
    folder = Path(sys.argv[1])
    task = make_task(folder)
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)

    watcher = Watcher(
        on_step=lambda result: tell(folder, f"step {result.step}"),
        on_epoch=lambda result: tell(folder, f"epoch {result.epoch}"),
        should_stop=lambda: stopping,
    )
    device = prepare(task.options)
    with joined(device) as group:
        (folder / f"pid-{group.rank}").write_text(str(os.getpid()))
        try:
            history = train(
                task.model,
                task.dataset,
                task.options,
                device=device,
                checkpoint=folder / "checkpoint.pt",
                watcher=watcher,
                group=group,
            )
        except Interrupted:
            (folder / f"interrupted-{group.rank}").touch()
            sys.exit(INTERRUPTED)
    torch.save(task.model.state_dict(), folder / f"model-{group.rank}.pt")
    (folder / f"history-{group.rank}.json").write_text(json.dumps([result.model_dump() for result in history]))


if __name__ == "__main__":
    main()
