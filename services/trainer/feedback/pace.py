"""How much a contributor may say at a time."""

import threading
import time
from collections.abc import Callable

from services.common.errors import Overloaded

_MINUTE = 60.0


class VotePace:
    """Lets each contributor say so many words a minute; a minute's worth may come at once. Any thread may ask.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}
        """By contributor: words left at a time."""

    def take(self, contributor: str, per_minute: int) -> None:
        """Count one word.

        Raises:
            Overloaded: It is one too many; the error says when to try again.
        """
        with self._lock:
            time_now = self._clock()
            left, since = self._left.get(contributor, (float(per_minute), time_now))
            left = min(per_minute, left + (time_now - since) * per_minute / _MINUTE)
            if left < 1:
                wait = (1 - left) * _MINUTE / per_minute
                raise Overloaded(
                    f"{contributor} has said something of {per_minute} pictures within a minute, which is the limit; "
                    f"wait {wait:.1f} seconds",
                    reason="TOO_MANY_VOTES",
                    retry_after_seconds=wait,
                )
            self._left[contributor] = (left - 1, time_now)
