"""Where workers meet: they take leases, bring what they have learnt and may vanish at any moment."""

import math
import time
from collections.abc import Hashable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Condition

from services.trainer.distributed.flat import Flat
from services.trainer.distributed.leases import Lease, LeaseBook
from services.trainer.distributed.outer import OuterState, follow
from services.trainer.options import TrainingOptions


@dataclass(frozen=True)
class Began:
    """The first lease is given out."""

    time: float
    """As `time.monotonic`."""


@dataclass(frozen=True)
class Exchanged:
    """A lease is done."""

    lease: Lease
    loss_sum: float
    """Over its batches."""
    steps: int
    """Done by all workers, over all epochs."""


@dataclass(frozen=True)
class Snapshot:
    """Everything at one moment; what it holds never changes."""

    time: float
    """As `time.monotonic`."""
    state: OuterState
    average: Flat | None
    """Moving average over exchanges, where the options ask for it."""
    finished: dict[int, float]
    """Finished leases, with the sums of their losses."""


@dataclass(frozen=True)
class EpochDone:
    """All leases of an epoch are done; some of the next one may be, too."""

    mean_loss: float
    snapshot: Snapshot


class Exchange:
    """The outer optimiser and the leases of a run, for the threads that serve workers and the one that watches.

    Args:
        state: What the first workers start from.
        average: The moving average so far.
        book: The leases.
        options: Of the run.

    Attributes:
        events: What happened, in order; epochs that were done and not measured before come first.
    """

    def __init__(self, state: OuterState, average: Flat | None, book: LeaseBook, options: TrainingOptions) -> None:
        self.events: SimpleQueue[Began | Exchanged | EpochDone] = SimpleQueue()
        self._state = state
        self._average = average
        self._book = book
        self._options = options
        self._told = book.measured
        self._gone: set[Hashable] = set()
        self._began = False
        self._closed = False
        self._changed = Condition()
        self._tell_epochs()

    def take(self, worker: Hashable) -> tuple[Lease, OuterState] | None:
        """Wait for a lease and return it with what to start from, or nothing where there is no work left."""
        with self._changed:
            while not (self._closed or self._book.complete or worker in self._gone):
                lease = self._book.take(worker)
                if lease is not None:
                    if not self._began:
                        self._began = True
                        self.events.put(Began(time.monotonic()))
                    return lease, self._state
                self._changed.wait()
        return None

    def finish(self, worker: Hashable, start: OuterState, end: Flat, loss_sum: float) -> None:
        """Take in what *worker* has learnt from *start* to *end* by its lease, unless it had lost it by then."""
        with self._changed:
            if not self._book.holds(worker):
                return
            lease = self._book.finish(worker, loss_sum)
            if math.isfinite(loss_sum):  # otherwise whoever watches ends the run, and the weights stay what they were
                self._state = self._state.exchange(start, end, self._options.workers)
                if self._options.average_decay:
                    decay = self._options.average_decay**lease.count  # it is meant per step
                    self._average = follow(self._average, self._state.model, decay)
            self.events.put(Exchanged(lease, loss_sum, self._book.steps))
            self._tell_epochs()
            self._changed.notify_all()

    def lose(self, worker: Hashable) -> None:
        """Let another one have the lease of a *worker* that is gone."""
        with self._changed:
            self._gone.add(worker)
            self._book.lose(worker)
            self._changed.notify_all()

    def measured(self, epochs: int) -> None:
        """Let the workers go further: so many *epochs* are measured."""
        with self._changed:
            self._book.measured = epochs
            self._changed.notify_all()

    def close(self) -> None:
        """Give out no more leases."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def snapshot(self) -> Snapshot:
        """Return everything as it is now."""
        with self._changed:
            return Snapshot(time.monotonic(), self._state, self._average, dict(self._book.finished))

    def _tell_epochs(self) -> None:
        for epoch in range(self._told, self._book.epochs_done):
            self.events.put(EpochDone(self._book.mean_loss(epoch), self.snapshot()))
            self._told = epoch + 1
