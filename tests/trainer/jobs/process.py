"""The process of a run, for tests: forked where everything is imported already, which saves seconds each time."""

import importlib
import os
import resource
import shutil
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

from services.common.settings import load_settings
from services.trainer.export import comparison
from services.trainer.jobs import evaluation, product
from services.trainer.jobs.__main__ import RUN, _end_with_parent, job_function, main
from services.trainer.runs.folder import LOG_FILE
from services.trainer.settings import TrainerSettings

HURRY_SECONDS = 0.01
importlib.import_module("torch.utils.tensorboard")
for each in RUN:
    job_function(each)


def run(path: Path, environment: dict[str, str], more_memory: int, free_disk: int) -> None:
    """Do what `python -m services.trainer.jobs` does, with little time for measurements of speed.

    Args:
        path: Folder of the run.
        environment: What the launcher would give.
        more_memory: Bytes that may be taken beside what is in use now; 0 is any number.
        free_disk: What the disk is said to have left; 0 is the truth.
    """
    os.environ.update(environment)
    log = os.open(path / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    product.LATENCY_SECONDS = evaluation.LATENCY_SECONDS = comparison._ROUND_SECONDS = HURRY_SECONDS
    if more_memory:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + more_memory, resource.RLIM_INFINITY))
    if free_disk:
        shutil.disk_usage = lambda path: SimpleNamespace(free=free_disk)
    sys.exit(main(path, load_settings(TrainerSettings)))


def leave_a_worker(told: Connection) -> None:
    """Start a child as torchrun starts a worker, tell its process id, and live on."""
    child = os.fork()
    if child == 0:
        os.setsid()
        _end_with_parent()
        told.send(os.getpid())
    signal.pause()
