"""The exchange as a service for the workers of this machine."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import grpc

from aimass.trainer.v1 import local_steps_pb2 as pb
from aimass.trainer.v1.local_steps_pb2_grpc import LocalStepsServiceServicer, add_LocalStepsServiceServicer_to_server
from services.common.errors import Conflict
from services.trainer.distributed.exchange import Exchange
from services.trainer.distributed.flat import Flat


class LocalStepsServicer(LocalStepsServiceServicer):
    """Unpacks, calls, packs. Each call is one worker for as long as it lives."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def Train(self, requests: Iterator[pb.TrainRequest], context: grpc.ServicerContext) -> Iterator[pb.TrainResponse]:
        """Give out leases and take in what is learnt by them."""
        worker = object()
        if not context.add_callback(lambda: self._exchange.lose(worker)):
            return
        while (given := self._exchange.take(worker)) is not None:
            lease, start = given
            for chunk in start.model.chunks():
                yield pb.TrainResponse(weights=chunk)
            yield pb.TrainResponse(lease=pb.Lease(epoch=lease.epoch, first_batch=lease.first, batch_count=lease.count))
            try:
                end, loss_sum = _read_result(requests, start.model)
            except Conflict as error:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.message)
            self._exchange.finish(worker, start, end, loss_sum)


def _read_result(requests: Iterator[pb.TrainRequest], start: Flat) -> tuple[Flat, float]:
    chunks: list[bytes] = []
    for request in requests:
        if request.HasField("loss_sum"):
            return start.replaced(chunks), request.loss_sum
        chunks.append(request.weights)
    raise Conflict("the worker's stream ended within a lease; send the loss behind the weights")


@contextmanager
def serving(exchange: Exchange, workers: int) -> Iterator[str]:
    """Serve *exchange* to so many *workers* while the block lasts; gives the address, as gRPC writes it."""
    with TemporaryDirectory(prefix="aimass-") as folder:  # its permissions keep others of this machine out
        # A worker that has died holds its thread until gRPC has noticed.
        server = grpc.server(ThreadPoolExecutor(2 * workers))
        add_LocalStepsServiceServicer_to_server(LocalStepsServicer(exchange), server)
        address = f"unix:{folder}/socket"
        server.add_insecure_port(address)
        server.start()
        try:
            yield address
        finally:
            exchange.close()
            server.stop(None).wait()
