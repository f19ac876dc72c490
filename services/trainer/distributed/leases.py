"""Who trains on which batches: each range of every epoch is done once, whoever dies."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

_AHEAD = 2
"""Epochs that may be begun at a time, so that workers go on while an epoch is measured, but not without end."""


@dataclass(frozen=True)
class Lease:
    """Consecutive batches of one epoch."""

    number: int
    """Over the whole run, from 0."""
    epoch: int
    """From 0."""
    first: int
    """Batch of the epoch, from 0."""
    count: int


class LeaseBook:
    """The leases of a run: free, held or finished. Not thread-safe.

    Args:
        epochs: Of the run.
        per_epoch: Batches of an epoch.
        size: Batches of a lease; the last one of an epoch may have fewer.
        finished: Leases that were finished before, by number, with the sum of their losses.
        measured: Epochs that were measured before.
    """

    def __init__(
        self, epochs: int, per_epoch: int, size: int, finished: Mapping[int, float] | None = None, measured: int = 0
    ) -> None:
        self.epochs = epochs
        self.per_epoch = per_epoch
        self.measured = measured
        """Epochs that are measured; whoever measures sets it."""
        self.finished = dict(finished or {})
        """Numbers of finished leases with the sums of their losses."""
        self._size = size
        self._each = -(-per_epoch // size)  # leases of an epoch
        self._held: dict[Hashable, Lease] = {}
        self._free = sorted(set(range(epochs * self._each)) - set(self.finished), reverse=True)

    def take(self, holder: Hashable) -> Lease | None:
        """Give *holder*, who holds none, the earliest free lease; nothing where it has to wait or all are given out."""
        assert holder not in self._held
        if not self._free or self._epoch_of(self._free[-1]) >= self.measured + _AHEAD:
            return None
        lease = self._lease(self._free.pop())
        self._held[holder] = lease
        return lease

    def finish(self, holder: Hashable, loss: float) -> Lease:
        """Note that *holder* has done its lease, at this sum of *loss* over its batches."""
        lease = self._held.pop(holder)
        self.finished[lease.number] = loss
        return lease

    def lose(self, holder: Hashable) -> None:
        """Free the lease of a *holder* that is gone, if it has one."""
        lease = self._held.pop(holder, None)
        if lease is not None:
            self._free.append(lease.number)
            self._free.sort(reverse=True)

    def holds(self, holder: Hashable) -> bool:
        """Whether *holder* has a lease."""
        return holder in self._held

    @property
    def complete(self) -> bool:
        """Whether every lease is finished."""
        return len(self.finished) == self.epochs * self._each

    @property
    def steps(self) -> int:
        """Steps done."""
        return sum(self._lease(number).count for number in self.finished)

    @property
    def epochs_done(self) -> int:
        """Epochs all of whose leases are finished, and those of all epochs before."""
        missing = (number for number in range(self.epochs * self._each) if number not in self.finished)
        return self._epoch_of(next(missing, self.epochs * self._each))

    def mean_loss(self, epoch: int) -> float:
        """Return the mean loss of a finished *epoch*."""
        leases = range(epoch * self._each, (epoch + 1) * self._each)
        return sum(self.finished[number] for number in leases) / self.per_epoch

    def _epoch_of(self, number: int) -> int:
        return number // self._each

    def _lease(self, number: int) -> Lease:
        epoch, part = divmod(number, self._each)
        first = part * self._size
        return Lease(number, epoch, first, min(self._size, self.per_epoch - first))
