from collections.abc import Iterator
from queue import SimpleQueue

import grpc
import pytest
import torch

from aimass.trainer.v1 import local_steps_pb2 as pb
from aimass.trainer.v1.local_steps_pb2_grpc import LocalStepsServiceStub
from services.trainer.distributed.exchange import Exchange
from services.trainer.distributed.flat import CHUNK_BYTES, Flat
from services.trainer.distributed.leases import LeaseBook
from services.trainer.distributed.outer import OuterState
from services.trainer.distributed.serving import serving
from tests.trainer.distributed.task import plain_options

NUMBERS = CHUNK_BYTES // 4 + 10
"""More than goes into one chunk."""
WORKERS = {"synchronisation": "local-steps", "outer_learning_rate": 1, "outer_momentum": 0}


@pytest.fixture
def exchange() -> Exchange:
    options = plain_options({"workers": WORKERS})
    state = OuterState.begin(Flat(torch.arange(NUMBERS, dtype=torch.float32), NUMBERS - 2))
    return Exchange(state, None, LeaseBook(1, per_epoch=5, size=3), options)


@pytest.fixture
def stub(exchange: Exchange) -> Iterator[LocalStepsServiceStub]:
    with serving(exchange, 2) as address, grpc.insecure_channel(address) as channel:
        yield LocalStepsServiceStub(channel)


class Worker:
    """One call."""

    def __init__(self, stub: LocalStepsServiceStub) -> None:
        self.requests: SimpleQueue[pb.TrainRequest | None] = SimpleQueue()
        self.call = stub.Train(iter(self.requests.get, None))

    def receive(self) -> tuple[bytes, pb.Lease]:
        data = b""
        for response in self.call:
            if response.HasField("lease"):
                return data, response.lease
            data += response.weights
        raise StopIteration

    def send(self, model: Flat, loss_sum: float) -> None:
        for chunk in model.chunks():
            self.requests.put(pb.TrainRequest(weights=chunk))
        self.requests.put(pb.TrainRequest(loss_sum=loss_sum))


def test_a_worker_gets_weights_and_leases_until_all_is_done(exchange: Exchange, stub: LocalStepsServiceStub) -> None:
    worker = Worker(stub)
    learnt = Flat(torch.full((NUMBERS,), 7.0), NUMBERS - 2)

    data, first = worker.receive()
    worker.send(learnt, 1.0)
    newer, second = worker.receive()
    worker.send(learnt, 1.0)

    assert list(worker.call) == []
    assert worker.call.code() is grpc.StatusCode.OK
    assert data == torch.arange(NUMBERS, dtype=torch.float32).numpy().tobytes()
    assert newer == learnt.numbers.numpy().tobytes()
    assert first == pb.Lease(epoch=0, first_batch=0, batch_count=3)
    assert second == pb.Lease(epoch=0, first_batch=3, batch_count=2)


@pytest.mark.parametrize("halfway", [False, True])
def test_the_lease_of_a_worker_that_is_gone_goes_to_another_one(
    exchange: Exchange, stub: LocalStepsServiceStub, halfway: bool
) -> None:
    gone, other = Worker(stub), Worker(stub)
    _, lost = gone.receive()
    _, own = other.receive()
    if halfway:
        gone.requests.put(pb.TrainRequest(weights=b"\0" * 100))

    gone.call.cancel()
    other.send(Flat(torch.zeros(NUMBERS), NUMBERS - 2), 1.0)
    _, next_one = other.receive()

    assert {lost.first_batch, own.first_batch} == {0, 3}
    assert next_one == lost
    assert exchange.snapshot().state.exchanges == 1


def test_weights_of_another_network_are_refused(exchange: Exchange, stub: LocalStepsServiceStub) -> None:
    worker = Worker(stub)
    worker.receive()

    worker.send(Flat(torch.zeros(3), 2), 1.0)

    assert worker.call.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert worker.call.details() == (
        f"12 bytes of weights came where the model has {NUMBERS * 4}; a worker has to make the same network"
    )
    assert exchange.snapshot().state.exchanges == 0


def test_workers_are_let_go_when_serving_ends(exchange: Exchange) -> None:
    with serving(exchange, 2) as address, grpc.insecure_channel(address) as channel:
        worker = Worker(LocalStepsServiceStub(channel))
        worker.receive()
    assert worker.call.code() is not grpc.StatusCode.OK
