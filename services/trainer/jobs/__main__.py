"""The process of a run: `python -m services.trainer.jobs <run folder>`.

Ends with 0 when the outcome is written, be it success or failure, and with `INTERRUPTED` when it was asked to stop and
can go on from its checkpoint.
"""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from torch import distributed as dist

from services.common.settings import load_settings
from services.trainer.clock import now
from services.trainer.jobs.conversion import run_conversion
from services.trainer.jobs.evaluation import run_evaluation
from services.trainer.jobs.failures import known_reason, reason
from services.trainer.jobs.inspection import run_inspection
from services.trainer.jobs.job import Job, StopRequest
from services.trainer.jobs.priority import stand_back
from services.trainer.jobs.reporting import Reporter, Silent
from services.trainer.jobs.training import run_training
from services.trainer.jobs.tuning import run_tuning
from services.trainer.runs.folder import BEST_FILE, CHECKPOINT_FILE, OUTCOME_FILE, RunFolder, write_document
from services.trainer.runs.launcher import INTERRUPTED
from services.trainer.runs.record import Outcome, RunKind, RunState
from services.trainer.settings import TrainerSettings
from services.trainer.training.loop import Interrupted

RUN: dict[RunKind, Callable[[Job], Outcome]] = {
    RunKind.TRAINING: run_training,
    RunKind.TUNING: run_tuning,
    RunKind.CONVERSION: run_conversion,
    RunKind.EVALUATION: run_evaluation,
    RunKind.INSPECTION: run_inspection,
}
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def main(path: Path, settings: TrainerSettings) -> int:
    """Do the run in *path* and return the exit code."""
    stand_back(settings.nice)
    folder = RunFolder(path)
    stop = StopRequest()
    stop.listen()
    request = folder.request()
    if request.trusted:
        sys.path.append(os.getcwd())  # where a network of the user's own may lie
    first, together = dist.get_node_local_rank(0) == 0, dist.is_torchelastic_launched()
    if not together:
        folder.sign(os.getpid())  # the service may have died before it could
    else:
        _end_with_parent()
        if folder.outcome() is not None:
            return 0  # torchrun begins again because another worker has not ended well, as it had to
    with Reporter(folder) if first else Silent() as reporter:
        try:
            outcome = RUN[request.kind](Job(folder, request, settings, reporter, stop))
        except Interrupted:
            return INTERRUPTED
        except Exception as error:
            if together and known_reason(error, path) is None:
                raise  # as when another worker has died: torchrun lets all begin again
            traceback.print_exc()  # into the run's log
            outcome = Outcome(state=RunState.FAILED, reason=reason(error, path), finish_time=now())
    if first:
        write_document(folder / OUTCOME_FILE, outcome)
        if outcome.state is RunState.SUCCEEDED:  # only now: whoever is killed before goes on from them
            for name in (CHECKPOINT_FILE, BEST_FILE):
                (folder / name).unlink(missing_ok=True)
    return 0


def _end_with_parent() -> None:
    """Have the kernel end this process with torchrun, also where that is killed; it leads a session of its own.

    Where torchrun is gone already, the workers do not find each other: it holds the store where they meet.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), load_settings(TrainerSettings)))
