"""The starter model, and the run that made it: what a new home is given, so that the suite can answer and learn."""

import shutil
import uuid
from pathlib import Path

STARTER = Path(__file__).parent
MODEL = "cifar10"
VERSION = STARTER / MODEL / "1"
RUN = STARTER / "run"
"""What the run's folder holds beside the two files of the version: its weights are what other runs start from."""
RUN_ID = "starter"


def install_starter(repository: Path, runs: Path) -> None:
    """Copy the starter model to *repository* and its run to *runs*, where they are missing."""
    _copy(repository / MODEL, {VERSION: VERSION.name})
    _copy(runs / RUN_ID, {RUN: ".", VERSION: "."})


def _copy(destination: Path, sources: dict[Path, str]) -> None:
    """Make *destination* of folders, each at its place in it; nobody sees a part of it."""
    if destination.exists():
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    aside = destination.with_name(f".{destination.name}-{uuid.uuid4().hex}")
    for source, place in sources.items():
        shutil.copytree(source, aside / place, dirs_exist_ok=True)
    aside.rename(destination)
