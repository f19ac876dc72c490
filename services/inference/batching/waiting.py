"""The requests that wait for one version: by priority, within a level in the order of arrival."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import Overloaded
from services.inference.engine import Arrays


@dataclass(frozen=True)
class QueuePolicy:
    """How requests of one priority level wait; as Triton's `ModelQueuePolicy`."""

    timeout_seconds: float = math.inf
    """Longest wait."""
    delays: bool = False
    """Whether a request that waited too long goes behind all others of its level, instead of being refused."""
    allows_override: bool = False
    """Whether a request may shorten its wait."""
    max_requests: int = 0
    """Requests that may wait; 0 means no limit."""

    def timeout_of(self, wanted_seconds: float) -> float:
        """Return how long a request may wait that wants to wait *wanted_seconds* at most."""
        return min(wanted_seconds, self.timeout_seconds) if self.allows_override else self.timeout_seconds


@dataclass(frozen=True)
class QueueOptions:
    """The levels of a queue, of which 1 is the highest, and their policies."""

    levels: int = 1
    default_level: int = 1
    default_policy: QueuePolicy = QueuePolicy()
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)
    """Of the levels that differ."""

    def level_of(self, priority: int) -> int:
        """Return the level of a request's *priority*; 0 and what lies outside the levels stand for the default."""
        return priority if 1 <= priority <= self.levels else self.default_level

    def policy_of(self, level: int) -> QueuePolicy:
        """Return the policy of *level*."""
        return self.policies.get(level, self.default_policy)


@dataclass(eq=False)
class Pending:
    """A request that was accepted."""

    inputs: Arrays
    outputs: tuple[str, ...]
    samples: int
    deadline: float
    """Event-loop time after which it is not run."""
    future: "asyncio.Future[Any]"
    arrival: int
    """`time.perf_counter_ns`."""
    level: int = 1
    timer: asyncio.TimerHandle | None = None
    """Ends its wait."""
    answer: Any = None
    """What is given when those before it have theirs."""
    alone: bool = False
    """Set after a batch with it failed, so that it can spoil no other's answer."""

    def fits(self, other: "Pending") -> bool:
        """Whether both can share a batch: same outputs, same shapes behind the batch dimension."""
        return (
            not (self.alone or other.alone)
            and self.outputs == other.outputs
            and all(array.shape[1:] == other.inputs[name].shape[1:] for name, array in self.inputs.items())
        )


class WaitingRequests:
    """A queue of several levels from which anything can be taken at any time."""

    def __init__(self, options: QueueOptions) -> None:
        self._options = options
        self._levels = {level: _Level() for level in range(1, options.levels + 1)}
        self.samples = 0

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __iter__(self) -> Iterator[Pending]:
        """Yield in the order in which they shall run; not to be changed meanwhile."""
        for level in self._levels.values():
            yield from level.in_time
            yield from level.put_off

    def add(self, pending: Pending) -> None:
        """Queue a request behind those of its level.

        Raises:
            Overloaded: As many as may wait do so already.
        """
        most = self._options.policy_of(pending.level).max_requests
        level = self._levels[pending.level]
        if most and len(level) >= most:
            raise Overloaded(
                f"{len(level)} requests of priority {pending.level} wait for this model and its config lets at most "
                f"{most} wait (max_queue_size); send fewer at once or try again",
                retry_after_seconds=1.0,
            )
        level.in_time[pending] = None
        self.samples += pending.samples

    def add_first(self, pending: Pending) -> None:
        """Queue a request before those of its level, whatever the limits: it was accepted before."""
        level = self._levels[pending.level]
        level.in_time[pending] = None
        level.in_time.move_to_end(pending, last=False)
        self.samples += pending.samples

    def put_off(self, pending: Pending) -> None:
        """Move a waiting request behind all others of its level."""
        level = self._levels[pending.level]
        if pending in level.in_time:
            del level.in_time[pending]
            level.put_off[pending] = None

    def remove(self, pending: Pending) -> bool:
        """Take a request out; return whether it was there."""
        for requests in self._levels[pending.level].both:
            if pending in requests:
                del requests[pending]
                self.samples -= pending.samples
                return True
        return False

    def samples_before(self, level: int) -> int:
        """Return the samples that run before a request which arrives at *level* now."""
        if len(self._levels) == 1:
            return self.samples
        before = [requests for number in range(1, level) for requests in self._levels[number].both]
        return sum(pending.samples for requests in (*before, self._levels[level].in_time) for pending in requests)


class _Level:
    """Waiting requests of one priority."""

    def __init__(self) -> None:
        # Ordered dictionaries: callers go away from the middle of a queue, and all at once.
        self.in_time: OrderedDict[Pending, None] = OrderedDict()
        self.put_off: OrderedDict[Pending, None] = OrderedDict()

    @property
    def both(self) -> tuple[OrderedDict[Pending, None], OrderedDict[Pending, None]]:
        return self.in_time, self.put_off

    def __len__(self) -> int:
        return len(self.in_time) + len(self.put_off)
