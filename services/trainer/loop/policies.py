"""The policies in force: read from the file when the process starts, and again when the file changes."""

import threading
from pathlib import Path

import structlog

from services.common.errors import SettingsError
from services.trainer.loop.policy import LoopPolicy
from services.trainer.loop.policy_file import SHIPPED, load_policy

log = structlog.get_logger(__name__)


class Policies:
    """Gives the policy of each model; any thread may ask.

    Args:
        path: Of the file; None for the one that comes with the suite.

    Raises:
        SettingsError: The file cannot be read, or a value in it is wrong.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or SHIPPED
        self._lock = threading.Lock()
        self._changed = _change_time(self._path)
        self._file = load_policy(self._path)

    def of(self, model: str) -> LoopPolicy:
        """Return the policy of a model; where the file has become wrong, as it was when it was right."""
        changed = _change_time(self._path)
        with self._lock:
            if changed != self._changed:
                self._changed = changed
                try:
                    self._file = load_policy(self._path)
                    log.info("policy read again", path=str(self._path))
                except SettingsError as error:
                    log.warning("the policy is wrong, so that the one before goes on", reason=str(error))
            return self._file.of(model)


def _change_time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
