"""The job of a run, as small as one can be: epochs that only count, each with its checkpoint.

`network_options` says how it behaves:
    hold_at        epoch that is never finished: the process waits there until it is told to stop
    stubborn       it does not stop when told
    die_in         epoch in which it kills itself, every time it comes there
    die_after_each it kills itself after each epoch
    exit_code      it ends with this code, after a last word
    fail           the sentence with which it fails
    children       it leaves a child behind that never ends by itself
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from services.trainer.clock import now
from services.trainer.options import RefitOptions, TrainingOptions
from services.trainer.runs.folder import CHECKPOINT_FILE, OUTCOME_FILE, PROGRESS_FILE, RunFolder, write_document
from services.trainer.runs.launcher import INTERRUPTED
from services.trainer.runs.progress import Progress, ProgressWriter, read_epochs
from services.trainer.runs.record import Outcome, RunState

EPOCH_SECONDS = 0.005


def main(path: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before that, it ends the process
    folder = RunFolder(Path(path))
    options = folder.request().options
    assert isinstance(options, TrainingOptions | RefitOptions)
    epochs, does = _behaviour(options)
    checkpoint = folder / CHECKPOINT_FILE
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    if "children" in does:
        descriptors = [int(name) for name in os.listdir("/dev/fd") if int(name) > 2]
        subprocess.Popen(["sleep", "1000"], close_fds=False, pass_fds=[each for each in descriptors if _open(each)])
    told = read_epochs(folder / PROGRESS_FILE)
    with ProgressWriter(folder / PROGRESS_FILE) as progress:
        for epoch in range(told + 1, done + 1):  # killed when the checkpoint was safe and nobody knew yet
            progress.append(_entry("epoch", epoch, epochs))
        progress.append(Progress(time=time.time(), kind="stage", stage="train", fraction=done / epochs))
        for epoch in range(done + 1, epochs + 1):
            if epoch == does.get("hold_at"):
                progress.append(_entry("step", epoch - 1, epochs))
                while signal.sigwait({signal.SIGTERM}) and does.get("stubborn"):
                    continue
                sys.exit(INTERRUPTED)
            if epoch == does.get("die_in"):
                os.kill(os.getpid(), signal.SIGKILL)
            if signal.sigtimedwait({signal.SIGTERM}, EPOCH_SECONDS):
                sys.exit(INTERRUPTED)
            aside = checkpoint.with_suffix(".part")
            aside.write_text(str(epoch))
            aside.replace(checkpoint)
            progress.append(_entry("epoch", epoch, epochs))
            if "die_after_each" in does:
                os.kill(os.getpid(), signal.SIGKILL)
    if "exit_code" in does:
        print("a last word", flush=True)
        sys.exit(does["exit_code"])
    write_document(folder / OUTCOME_FILE, _outcome(does.get("fail")))


def _behaviour(options: TrainingOptions | RefitOptions) -> tuple[int, dict[str, Any]]:
    """Return how many epochs the job counts, and what it does beside."""
    if isinstance(options, RefitOptions):
        return 1, {"hold_at": 1} if options.dataset == "held" else {}
    return options.epochs, options.network_options


def _entry(kind: str, epoch: int, epochs: int) -> Progress:
    return Progress.model_validate(
        {"time": time.time(), "kind": kind, "stage": "train", "fraction": epoch / epochs, "epoch": epoch}
    )


def _outcome(reason: str | None) -> Outcome:
    if reason:
        return Outcome(state=RunState.FAILED, reason=reason, finish_time=now())
    return Outcome(state=RunState.SUCCEEDED, metrics={"test_accuracy": 0.5}, finish_time=now())


def _open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
