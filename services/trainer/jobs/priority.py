"""How a run's process stands back behind those that serve."""

import os
from contextlib import suppress
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")
"""Of Linux (sched(7)): each session is a group of its own, groups share the processors by the niceness written here,
and that of a process counts only inside its group. A run's process leads a session, so without this it would take as
much as the whole service."""


def stand_back(niceness: int) -> None:
    """Lower the priority of this process, and of the session that was started for it, by *niceness* from 0 to 19."""
    os.nice(niceness)
    with suppress(OSError):  # there are no such groups here, or another worker of this run has just written the same
        _AUTOGROUP.write_text(str(niceness))
