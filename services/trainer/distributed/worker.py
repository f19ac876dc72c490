"""A worker of a run with local steps; it trains by itself on the batches that it is given.

`python -m services.trainer.distributed.worker <maker> <folder> <address> <number> <threads>`. The momentum of its
optimiser stays with it.
"""

import os
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import grpc
import torch

from aimass.trainer.v1 import local_steps_pb2 as pb
from aimass.trainer.v1.local_steps_pb2_grpc import LocalStepsServiceStub
from services.trainer.distributed.flat import Flat
from services.trainer.distributed.task import Task, find_maker, share_batches
from services.trainer.training.batches import Batches
from services.trainer.training.hardware import choose_precision, computing_in, prepare
from services.trainer.training.loop import ALONE, cross_entropy
from services.trainer.training.schedules import momentum_at, rate_at
from services.trainer.training.state import State


class Worker:
    """Trains leases of *task*.

    Args:
        task: What is trained.
        number: Of this worker, from 0.
        threads: For its arithmetic.
    """

    def __init__(self, task: Task, number: int, threads: int) -> None:
        # The average of weights is kept where all of them come together.
        self._options = options = share_batches(task.options).model_copy(update={"average_decay": 0.0})
        self._device = prepare(options, threads)
        if self._device.type == "cuda":
            torch.cuda.set_device(number % torch.cuda.device_count())
        self._model = task.model.to(self._device)
        self._state = State(self._model, options, None, ALONE)
        self._batches = Batches(task.dataset.train, len(task.dataset.labels), options, self._device, 0, 1)
        self._loss = task.loss or cross_entropy(options)
        self._precision = choose_precision(options.precision, self._device)
        self.weights = Flat.of(self._model)
        """Those of the model, where the last lease has left it."""

    def train(self, start: Flat, lease: pb.Lease) -> float:
        """Do one step for each batch of *lease*, beginning with *start*; returns the sum of the losses."""
        options, state, batches = self._options, self._state, self._batches
        start.write_to(self._model)
        self._model.train()
        state.frozen.keep()
        steps = options.epochs * batches.per_epoch
        first = lease.epoch * batches.per_epoch + lease.first_batch
        chosen = islice(batches.epoch(lease.epoch, lease.first_batch), lease.batch_count)
        for step, (images, labels) in enumerate(chosen, first):
            state.set_rate(rate_at(step / steps, lease.epoch, options), momentum_at(step / steps, options))
            with computing_in(self._precision, self._device):
                logits = self._model.network(self._model.normalise(images))
            state.step(self._loss(logits.float(), labels, images))
        self.weights = Flat.of(self._model)
        loss_sum = state.losses[0].item()
        state.losses.zero_()
        return loss_sum


def work(worker: Worker, stub: LocalStepsServiceStub) -> None:
    """Train whatever the run gives out, until it has nothing more.

    Raises:
        Conflict: The run trains another network.
    """
    results: SimpleQueue[tuple[Flat, float]] = SimpleQueue()

    def requests() -> Iterator[pb.TrainRequest]:
        while True:
            weights, loss_sum = results.get()
            for chunk in weights.chunks():
                yield pb.TrainRequest(weights=chunk)
            yield pb.TrainRequest(loss_sum=loss_sum)

    call = stub.Train(requests())

    def end() -> None:
        if call.code() is not grpc.StatusCode.OK:
            os._exit(1)  # the run is gone: also from the midst of a lease, there is nobody left to train for

    call.add_callback(end)
    chunks: list[bytes] = []
    for response in call:
        if response.HasField("lease"):
            start = worker.weights.replaced(chunks)
            chunks = []
            loss_sum = worker.train(start, response.lease)
            results.put((worker.weights, loss_sum))
        else:
            chunks.append(response.weights)


def main() -> None:
    """Train until there is nothing left to train."""
    maker, folder, address, number, threads = sys.argv[1:]
    # Whoever stops the whole group of processes means the run; that ends its workers when it is ready to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = Worker(find_maker(maker)(Path(folder)), int(number), int(threads))
    with grpc.insecure_channel(address) as channel:
        work(worker, LocalStepsServiceStub(channel))


if __name__ == "__main__":
    main()
