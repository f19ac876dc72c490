"""The process of a run: `python -m services.trainer.jobs <run folder>`.

Ends with 0 when the outcome is written, be it success or failure, and with `INTERRUPTED` when it was asked to stop and
can go on from its checkpoint.
"""

import ctypes
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from services.common.settings import load_settings
from services.trainer.clock import now
from services.trainer.jobs.failures import known_reason, reason
from services.trainer.jobs.job import Job, StopRequest
from services.trainer.jobs.priority import stand_back
from services.trainer.jobs.reporting import Reporter, Silent
from services.trainer.runs.folder import BEST_FILE, CHECKPOINT_FILE, OUTCOME_FILE, RunFolder, write_document
from services.trainer.runs.launcher import INTERRUPTED
from services.trainer.runs.record import Outcome, RunKind, RunState
from services.trainer.settings import TrainerSettings
from services.trainer.training.results import Interrupted

RUN = {
    RunKind.TRAINING: "services.trainer.jobs.training:run_training",
    RunKind.TUNING: "services.trainer.jobs.tuning:run_tuning",
    RunKind.CONVERSION: "services.trainer.jobs.conversion:run_conversion",
    RunKind.EVALUATION: "services.trainer.jobs.evaluation:run_evaluation",
    RunKind.INSPECTION: "services.trainer.jobs.inspection:run_inspection",
    RunKind.REFIT: "services.trainer.jobs.refit:run_refit",
}
"""The functions of each kind, `module:function`; imported when needed, for not every kind needs torch."""
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
    # What torch.distributed looks at too: torchrun sets both.
    first, together = os.environ.get("LOCAL_RANK", "0") == "0", "TORCHELASTIC_RUN_ID" in os.environ
    if not together:
        folder.sign(os.getpid())  # the service may have died before it could
    else:
        _end_with_parent()
        if folder.outcome() is not None:
            return 0  # torchrun begins again because another worker has not ended well, as it had to
    with Reporter(folder) if first else Silent() as reporter:
        try:
            outcome = job_function(request.kind)(Job(folder, request, settings, reporter, stop))
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


def job_function(kind: RunKind) -> Callable[[Job], Outcome]:
    """Import what does runs of *kind*."""
    module, _, name = RUN[kind].partition(":")
    function: Callable[[Job], Outcome] = getattr(importlib.import_module(module), name)
    return function


def _end_with_parent() -> None:
    """Have the kernel end this process with torchrun, also where that is killed; it leads a session of its own.

    Where torchrun is gone already, the workers do not find each other: it holds the store where they meet.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), load_settings(TrainerSettings)))
