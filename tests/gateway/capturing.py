"""A trainer that speaks the contract of capture over a real server, and can break off, refuse and be away."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from aimass.trainer.v1 import capture_pb2 as pb
from aimass.trainer.v1.capture_pb2_grpc import CaptureServiceServicer, add_CaptureServiceServicer_to_server
from services.common.errors import InvalidInput, NotReady
from services.common.server import GrpcServer, Service


@dataclass
class _Stream:
    """One stream of a gateway."""

    came: list[pb.CapturedPrediction] = field(default_factory=list)
    receipted: int = 0
    told: pb.CapturePolicies | None = None
    ended: bool = False

    @property
    def done(self) -> bool:
        return self.ended and self.receipted == len(self.came)


POLICY = pb.CapturePolicy(model="tiny", random_share=1.0, samples_per_second=1e6, burst=1_000_000)


class Trainer(CaptureServiceServicer):
    """Keeps what comes; receipts are held back while `slow` is set."""

    def __init__(self) -> None:
        self.policies = pb.CapturePolicies(policies=[POLICY])
        self.received: list[pb.CapturedPrediction] = []
        self.counts: list[pb.CaptureCount] = []
        self.gateways: list[str] = []
        self.refused: dict[str, str] = {}
        """Reasons by prediction."""
        self.break_after: int | None = None
        """Predictions after which a stream breaks."""
        self.slow = False
        self.streams = 0
        self._changed = asyncio.Condition()
        self._server: GrpcServer | None = None
        self._port = 0

    async def start(self, max_message_bytes: int = 4 * 1024 * 1024) -> str:
        """Listen, at the same address as before, and return it."""
        descriptor = pb.DESCRIPTOR.services_by_name["CaptureService"]
        return await self.listen(
            [Service.of(descriptor, add_CaptureServiceServicer_to_server, self)], max_message_bytes
        )

    async def listen(self, services, max_message_bytes: int) -> str:
        """Offer *services*."""
        self._server = GrpcServer(f"127.0.0.1:{self._port}", services, max_message_bytes=max_message_bytes)
        self._port = await self._server.start()
        return f"127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Be away."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)

    async def tell(self, *policies: pb.CapturePolicy) -> None:
        """Change the policies."""
        self.policies = pb.CapturePolicies(policies=policies)
        await self.wake()

    async def release(self) -> None:
        """Send the receipts that were held back."""
        self.slow = False
        await self.wake()

    async def until(self, condition) -> None:
        """Wait until *condition* holds."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(condition)

    async def Capture(self, request_iterator, context):
        """See the contract."""
        requests = aiter(request_iterator)
        first = await anext(requests)
        if not first.HasField("header"):
            raise InvalidInput("the first message is no header; send the header first")
        self.gateways.append(first.header.gateway_id)
        self.streams += 1
        stream = _Stream()
        reading = asyncio.create_task(self._read(requests, stream))
        try:
            while not stream.done:
                if self.break_after is not None and len(stream.came) >= self.break_after:
                    self.break_after = None
                    raise NotReady("the trainer breaks off; send it again")
                if stream.told != self.policies:
                    stream.told = self.policies
                    yield pb.CaptureResponse(policies=self.policies)
                elif stream.receipted < len(stream.came) and not self.slow:
                    yield pb.CaptureResponse(receipt=self._receipt(stream))
                else:
                    await self.until(partial(self._has_news, stream))
        finally:
            reading.cancel()

    async def _read(self, requests, stream: "_Stream") -> None:
        async for request in requests:
            if request.HasField("prediction"):
                stream.came.append(request.prediction)
                self.received.append(request.prediction)
            else:
                self.counts = list(request.counts.counts)
            await self.wake()
        stream.ended = True
        await self.wake()

    def _receipt(self, stream: "_Stream") -> pb.CaptureReceipt:
        receipt = pb.CaptureReceipt(sequence=stream.came[-1].sequence)
        for each in stream.came[stream.receipted :]:
            if each.prediction_id in self.refused:
                receipt.refused.add(sequence=each.sequence, reason=self.refused[each.prediction_id])
        stream.receipted = len(stream.came)
        return receipt

    def _has_news(self, stream: "_Stream") -> bool:
        waiting = stream.receipted < len(stream.came) and not self.slow
        breaking = self.break_after is not None and len(stream.came) >= self.break_after
        return waiting or breaking or stream.done or stream.told != self.policies

    async def wake(self) -> None:
        """Let all who wait look again."""
        async with self._changed:
            self._changed.notify_all()

    @property
    def ids(self) -> Counter[str]:
        """How often each prediction came."""
        return Counter(each.prediction_id for each in self.received)
