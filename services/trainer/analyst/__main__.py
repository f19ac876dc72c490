"""The process of an analyst: `python -m services.trainer.analyst MODEL`.

Ends with 0 when there was nothing to do for a minute, when it was told to stop, or when another one is at work, and
with 1 when something is in the way that waiting does not help.
"""

import os
import signal
import sys
import threading

import structlog

from services.common.errors import ServiceError
from services.common.logs import configure_logs
from services.common.settings import load_settings
from services.trainer.analyst.analyst import Analyst
from services.trainer.analyst.process import at_work
from services.trainer.jobs.priority import stand_back
from services.trainer.loop.policies import Policies
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database

NICENESS = 19
"""All there is: whatever else this machine does is more urgent."""
IDLE_SECONDS = 60.0

log = structlog.get_logger(__name__)


def main(model: str, settings: TrainerSettings, idle_seconds: float = IDLE_SECONDS) -> int:
    """Be the analyst of *model* until there is nothing to do, and return the exit code."""
    stand_back(NICENESS - os.nice(0))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    policies = Policies(settings.policy)
    with at_work(settings.runs, model) as alone:
        if not alone:
            log.info("another analyst is at work", model=model)
            return 0
        database = Database(settings.database.get_secret_value())
        try:
            analyst = Analyst(database, settings, model, policies.of, stop)
            try:
                analyst.run(idle_seconds)
            finally:
                analyst.close()
        except ServiceError as error:
            log.error("the analyst cannot go on", model=model, reason=error.message)
            return 1
        finally:
            database.close()
    return 0


if __name__ == "__main__":
    told = load_settings(TrainerSettings)
    configure_logs("analyst", told.log_level, told.log_style)
    sys.exit(main(sys.argv[1], told))
