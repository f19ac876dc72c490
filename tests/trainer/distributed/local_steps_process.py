"""A run with local steps; its folder holds `options.json`."""

import json
from pathlib import Path

from services.trainer.distributed.local_steps import train_with_local_steps
from services.trainer.options import TrainingOptions
from services.trainer.training.hardware import prepare
from services.trainer.training.loop import Watcher
from tests.trainer.distributed.task import make_task, task_of, tell


def run(folder: Path) -> None:
    """Begin the run in *folder* or go on with it, and leave its history there."""
    task = task_of(TrainingOptions.model_validate_json((folder / "options.json").read_bytes()))
    device = prepare(task.options)
    history = train_with_local_steps(
        task.model,
        task.dataset,
        task.options,
        maker=f"{make_task.__module__}:{make_task.__name__}",
        run_folder=folder,
        device=device,
        checkpoint=folder / "checkpoint.pt",
        watcher=Watcher(on_epoch=lambda result: tell(folder, f"epoch {result.epoch}")),
    )
    (folder / "history.json").write_text(json.dumps([result.model_dump() for result in history]))
