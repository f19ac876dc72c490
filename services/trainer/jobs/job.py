"""One run as its process sees it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from services.trainer.jobs.reporting import Reporter
from services.trainer.options import InspectionOptions, TuningOptions
from services.trainer.runs.folder import RunFolder
from services.trainer.runs.launcher import INTERRUPTED
from services.trainer.runs.record import Request
from services.trainer.settings import TrainerSettings


class StopRequest:
    """The wish of others that this process ends; it does so at once, save in blocks that `delayed` holds open."""

    def __init__(self) -> None:
        self._asked = False
        self._delayed = False

    def __call__(self) -> bool:
        """Whether it was."""
        return self._asked

    def listen(self) -> None:
        """Take SIGTERM and SIGINT for the wish to end; whoever cannot wait sends SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Only remember the wish until the block ends, which asks for it and comes to an end where it can go on."""
        self._delayed = True
        try:
            yield
        finally:
            self._delayed = False
            if self._asked:
                sys.exit(INTERRUPTED)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if not self._delayed:
            sys.exit(INTERRUPTED)


@dataclass(frozen=True)
class Job:
    """What a run's process works on, and whom it tells."""

    folder: RunFolder
    request: Request
    settings: TrainerSettings
    reporter: Reporter
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def threads(self) -> int:
        """Threads for the arithmetic: what the options want, at most what the settings allow; 0 is one per core."""
        options = self.request.options
        wanted = (options.training if isinstance(options, TuningOptions | InspectionOptions) else options).threads
        limit = self.settings.threads
        return min(wanted or limit, limit) if limit else wanted
