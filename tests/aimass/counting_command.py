"""The command `aimass`, whose runs have jobs that only count."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # as pytest does

from aimass.cli import main
from services.trainer import service
from tests.trainer.runs.conftest import CountingLauncher

if __name__ == "__main__":
    service.LocalLauncher = CountingLauncher  # type: ignore[misc]
    main()
