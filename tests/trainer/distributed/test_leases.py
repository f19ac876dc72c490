import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from services.trainer.distributed.leases import Lease, LeaseBook

settings_of_tests = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Leases(RuleBasedStateMachine):
    """Workers that take, finish and die in any order, and a coordinator that measures and is itself resumed."""

    workers = Bundle("workers")

    @initialize(epochs=st.integers(1, 4), per_epoch=st.integers(1, 7), size=st.integers(1, 8))
    def begin(self, epochs: int, per_epoch: int, size: int) -> None:
        self.shape = (epochs, per_epoch, size)
        self.book = LeaseBook(*self.shape)
        self.held: dict[int, Lease] = {}
        self.done: list[Lease] = []
        self.names = 0

    @rule(target=workers)
    def come(self) -> int:
        self.names += 1
        return self.names

    @rule(worker=workers)
    def take(self, worker: int) -> None:
        if worker not in self.held:
            lease = self.book.take(worker)
            if lease is not None:
                assert lease not in self.held.values()
                assert lease not in self.done
                self.held[worker] = lease

    @rule(worker=workers)
    def finish(self, worker: int) -> None:
        if worker in self.held:
            lease = self.held.pop(worker)
            assert self.book.finish(worker, loss=float(lease.count)) == lease
            self.done.append(lease)

    @rule(worker=workers)
    def die(self, worker: int) -> None:
        self.book.lose(worker)
        self.held.pop(worker, None)

    @rule()
    def measure(self) -> None:
        self.book.measured = self.book.epochs_done

    @rule()
    def resume(self) -> None:
        self.book = LeaseBook(*self.shape, finished=self.book.finished, measured=self.book.measured)
        self.held.clear()

    @invariant()
    def each_batch_belongs_to_one_lease(self) -> None:
        batches = [
            (lease.epoch, batch)
            for lease in [*self.done, *self.held.values()]
            for batch in range(lease.first, lease.first + lease.count)
        ]
        assert len(set(batches)) == len(batches)
        assert self.book.steps == sum(lease.count for lease in self.done)

    def teardown(self) -> None:
        """One worker that lives can finish what the others have left."""
        if not hasattr(self, "book"):
            return
        for worker in list(self.held):
            self.book.lose(worker)
        while not self.book.complete:
            self.book.measured = self.book.epochs_done
            lease = self.book.take("last")
            assert lease is not None
            self.done.append(self.book.finish("last", float(lease.count)))
        epochs, per_epoch, _ = self.shape
        assert sorted((lease.epoch, lease.first) for lease in self.done) == sorted(
            {(lease.epoch, lease.first) for lease in self.done}
        )
        assert self.book.steps == epochs * per_epoch
        assert [self.book.mean_loss(epoch) for epoch in range(epochs)] == [1.0] * epochs


TestLeases = Leases.TestCase
TestLeases.settings = settings_of_tests


def test_the_last_lease_of_an_epoch_is_shorter() -> None:
    book = LeaseBook(1, per_epoch=5, size=3)

    assert [book.take("a"), book.take("b"), book.take("c")] == [Lease(0, 0, 0, 3), Lease(1, 0, 3, 2), None]


def test_workers_wait_when_two_epochs_are_not_measured() -> None:
    book = LeaseBook(3, per_epoch=1, size=1)
    book.take("a")
    book.take("b")

    assert book.take("c") is None
    book.measured = 1
    assert book.take("c") == Lease(2, 2, 0, 1)


def test_a_lost_lease_comes_before_later_ones() -> None:
    book = LeaseBook(1, per_epoch=4, size=1)
    book.take("a")
    book.take("b")
    book.lose("a")

    assert book.take("c") == Lease(0, 0, 0, 1)


def test_an_epoch_is_done_when_those_before_are() -> None:
    book = LeaseBook(2, per_epoch=2, size=2)
    book.take("slow")
    book.take("fast")
    book.finish("fast", 3.0)
    before = book.epochs_done
    book.finish("slow", 1.0)

    assert (before, book.epochs_done) == (0, 2)
    assert book.mean_loss(1) == pytest.approx(1.5)
