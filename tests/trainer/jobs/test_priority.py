"""The priority of a run's process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

STAND_BACK = """
import os
from pathlib import Path
from services.trainer.jobs.priority import stand_back
before = os.nice(0)
stand_back(7)
print(os.nice(0) - before, Path("/proc/self/autogroup").read_text())
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no groups by session")
def test_the_session_of_a_run_stands_back_as_its_process_does() -> None:
    command = [sys.executable, "-c", STAND_BACK]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, check=True)

    assert re.fullmatch(r"7 /autogroup-\d+ nice 7\s*", done.stdout)
