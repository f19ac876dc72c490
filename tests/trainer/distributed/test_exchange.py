import math
import threading

import pytest
import torch

from services.trainer.distributed.exchange import Began, EpochDone, Exchange, Exchanged
from services.trainer.distributed.flat import Flat
from services.trainer.distributed.leases import Lease, LeaseBook
from services.trainer.distributed.outer import OuterState
from tests.trainer.distributed.task import plain_options

WORKERS = {"synchronisation": "local-steps", "outer_learning_rate": 1, "outer_momentum": 0}


def exchange_of(epochs: int = 2, per_epoch: int = 4, size: int = 2, average_decay: float = 0.0) -> Exchange:
    options = plain_options({"workers": WORKERS, "average_decay": average_decay})
    state = OuterState.begin(Flat(torch.zeros(3), 2))
    return Exchange(state, None, LeaseBook(epochs, per_epoch, size), options)


def taken(exchange: Exchange, worker: str) -> tuple[Lease, OuterState]:
    given = exchange.take(worker)
    assert given is not None
    return given


def finish(exchange: Exchange, worker: str, start: OuterState, value: float, loss_sum: float = 1.0) -> None:
    exchange.finish(worker, start, Flat(torch.full((3,), value), 2), loss_sum)


def drained(exchange: Exchange) -> list[Began | Exchanged | EpochDone]:
    return [exchange.events.get() for _ in range(exchange.events.qsize())]


def test_what_was_learnt_is_what_the_next_one_starts_from() -> None:
    exchange = exchange_of()
    _, start = taken(exchange, "a")
    finish(exchange, "a", start, 5.0)

    _, state = taken(exchange, "b")

    assert torch.equal(state.model.numbers, torch.full((3,), 5.0))


def test_what_comes_late_is_discounted() -> None:
    exchange = exchange_of()
    starts = {worker: taken(exchange, worker)[1] for worker in ("a", "b")}

    finish(exchange, "a", starts["a"], 1.0)
    finish(exchange, "b", starts["b"], 1.0)

    assert torch.equal(exchange.snapshot().state.model.weights, torch.full((2,), 1.5))


def test_nothing_is_taken_from_a_worker_that_was_given_up() -> None:
    exchange = exchange_of()
    lease, start = taken(exchange, "a")
    exchange.lose("a")

    finish(exchange, "a", start, 5.0)

    assert exchange.take("a") is None
    assert exchange.snapshot().state is start
    assert taken(exchange, "b")[0] == lease


def test_a_waiting_worker_gets_the_lease_of_one_that_died() -> None:
    exchange = exchange_of(epochs=1, per_epoch=2)
    lease, _ = taken(exchange, "a")
    found: list[Lease] = []
    waiting = threading.Thread(target=lambda: found.append(taken(exchange, "b")[0]))
    waiting.start()

    exchange.lose("a")
    waiting.join(10)

    assert found == [lease]


@pytest.mark.parametrize("end", ["close", "finish"])
def test_a_waiting_worker_is_let_go_when_nothing_is_left(end: str) -> None:
    exchange = exchange_of(epochs=1, per_epoch=2)
    _, start = taken(exchange, "a")
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(exchange.take("b")))
    waiting.start()

    if end == "close":
        exchange.close()
    else:
        finish(exchange, "a", start, 1.0)
    waiting.join(10)

    assert found == [None]


def test_epochs_are_told_in_order_with_the_weights_of_that_moment() -> None:
    exchange = exchange_of(epochs=2, per_epoch=4)

    for value in (1.0, 2.0, 3.0):
        lease, start = taken(exchange, "a")
        finish(exchange, "a", start, value, loss_sum=lease.count * value)

    began, first, second, epoch, third = drained(exchange)
    assert isinstance(began, Began)
    assert [event.steps for event in (first, second, third) if isinstance(event, Exchanged)] == [2, 4, 6]
    assert isinstance(epoch, EpochDone)
    assert epoch.mean_loss == 1.5
    assert torch.equal(epoch.snapshot.state.model.numbers, torch.full((3,), 2.0))
    assert epoch.snapshot.finished == {0: 2.0, 1: 4.0}


def test_epochs_that_a_stop_kept_from_being_measured_are_told_first() -> None:
    options = plain_options({"workers": WORKERS})
    book = LeaseBook(2, per_epoch=2, size=2, finished={0: 3.0})

    exchange = Exchange(OuterState.begin(Flat(torch.zeros(3), 2)), None, book, options)

    (event,) = drained(exchange)
    assert isinstance(event, EpochDone)
    assert event.mean_loss == 1.5


def test_a_loss_that_is_not_finite_leaves_the_weights_alone() -> None:
    exchange = exchange_of()
    _, start = taken(exchange, "a")

    finish(exchange, "a", start, math.nan, loss_sum=math.nan)

    assert exchange.snapshot().state is start
    event = drained(exchange)[-1]
    assert isinstance(event, Exchanged)
    assert math.isnan(event.loss_sum)


def test_the_average_decays_by_step() -> None:
    exchange = exchange_of(average_decay=0.5)
    for value in (1.0, 5.0):
        _, start = taken(exchange, "a")
        finish(exchange, "a", start, value)

    average = exchange.snapshot().average

    assert average is not None
    assert torch.equal(average.numbers, torch.full((3,), 0.25 * 1.0 + 0.75 * 5.0))  # two steps of a half


def test_workers_go_on_when_epochs_are_measured() -> None:
    exchange = exchange_of(epochs=3, per_epoch=2)
    for _ in range(2):
        finish(exchange, "a", taken(exchange, "a")[1], 1.0)
    found: list[Lease] = []
    waiting = threading.Thread(target=lambda: found.append(taken(exchange, "a")[0]))
    waiting.start()

    exchange.measured(1)
    waiting.join(10)

    assert found == [Lease(2, 2, 0, 2)]
