"""How the process of an analyst is started, and how it is known whether one is at work."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.trainer.runs.locks import is_locked, try_lock
from services.trainer.settings import TrainerSettings

ANALYST_MODULE = "services.trainer.analyst"
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Read when numpy is imported: more threads would get in the way of serving."""


def start_analyst(model: str, settings: TrainerSettings) -> "subprocess.Popen[bytes]":
    """Start the analyst of a model in a session of its own; one that finds another at work ends at once.

    Not to be called by the event loop itself: a fork runs handlers of grpc that take their time.

    Args:
        model: Name of the model.
        settings: What the process is told.

    Raises:
        OSError: It cannot be started.
    """
    environment = {**os.environ, **settings.environment(), **_ONE_THREAD, "PYTHONSAFEPATH": "1"}
    environment.pop("AIMASS_SUPERVISED", None)
    return subprocess.Popen(
        [sys.executable, "-m", ANALYST_MODULE, model],
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


@contextmanager
def at_work(runs: Path, model: str) -> Iterator[bool]:
    """Be the analyst of a model for as long as the block lasts; give whether nobody else is.

    Args:
        runs: Folder of all runs.
        model: Name of the model.
    """
    runs.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(_lock_path(runs, model), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


def is_at_work(runs: Path, model: str) -> bool:
    """Whether an analyst of the model is at work."""
    return is_locked(_lock_path(runs, model))


def _lock_path(runs: Path, model: str) -> Path:
    return runs / f".analyst-{model}.lock"
