"""The capture contract: predictions come in, receipts and policies go out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp

from aimass.trainer.v1 import capture_pb2 as pb
from aimass.trainer.v1.capture_pb2_grpc import CaptureServiceServicer
from services.common.errors import InvalidInput
from services.common.identity import Scope, caller_of
from services.common.server import StopSignal
from services.trainer.clock import as_row
from services.trainer.feedback.capturing import CaptureRule, capture_rules
from services.trainer.feedback.counting import VersionCounts, store_counts
from services.trainer.feedback.observations import MOST_ITEMS, CapturedItem, Intake, Strategy
from services.trainer.feedback.policy import PolicyOf
from services.trainer.storage.database import Database
from services.trainer.storage.texts import check_storable

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

RULES_SECONDS = 2.0
"""Between two looks at what is to be captured."""
_BYTES_AT_ONCE = 16 * 1024 * 1024
_MOST_GATEWAY_ID = 64
_STRATEGIES = {
    pb.CapturedPrediction.STRATEGY_RANDOM: Strategy.RANDOM,
    pb.CapturedPrediction.STRATEGY_LOW_CONFIDENCE: Strategy.LOW_CONFIDENCE,
    pb.CapturedPrediction.STRATEGY_RARE_CLASS: Strategy.RARE_CLASS,
}


class CaptureServicer(CaptureServiceServicer):
    """Unpacks, calls, packs.

    Args:
        database: Migrated.
        blobs: Folder of pictures.
        intake: Keeps what comes.
        policy_of: What is to be captured.
        stop: Ends the calls when the process stops.
        wake: Called with a model of which something new came.
    """

    def __init__(
        self,
        database: Database,
        blobs: Path,
        intake: Intake,
        policy_of: PolicyOf,
        stop: StopSignal,
        wake: Callable[[str], None],
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._intake = intake
        self._policy_of = policy_of
        self._stop = stop
        self._wake = wake

    async def Capture(
        self, request_iterator: AsyncIterator[pb.CaptureRequest], context: Context
    ) -> AsyncIterator[pb.CaptureResponse]:
        """Keep predictions, some in one transaction; say what is kept, and what to capture."""
        caller_of(context).require(Scope.ADMIN)
        requests = self._stop.until(request_iterator)
        gateway = _gateway(await anext(requests, None))
        rules = await self._rules()
        yield _policies(rules)
        incoming = _Incoming()
        outgoing: asyncio.Queue[pb.CaptureResponse | None] = asyncio.Queue()
        receiving = asyncio.create_task(incoming.receive(requests))
        taking = asyncio.create_task(self._take(gateway, incoming, outgoing))
        telling = asyncio.create_task(self._tell(rules, outgoing))
        try:  # no TaskGroup: a generator that is left at a yield must not wait for its tasks
            while (response := await outgoing.get()) is not None:
                yield response
            for task in (telling, taking):
                if task.done():
                    task.result()
            await receiving  # raises what ended the requests, where that was not their end
        finally:
            for task in (receiving, taking, telling):
                task.cancel()

    async def _take(
        self, gateway: str, incoming: _Incoming, outgoing: asyncio.Queue[pb.CaptureResponse | None]
    ) -> None:
        """Keep what comes, until its end."""
        try:
            while batch := await incoming.next_batch():
                predictions = [each.prediction for each in batch if each.WhichOneof("part") == "prediction"]
                counts = [each.counts for each in batch if each.WhichOneof("part") == "counts"]
                if predictions:
                    outgoing.put_nowait(pb.CaptureResponse(receipt=await self._keep(predictions)))
                if counts:  # sums: the last ones say all
                    await asyncio.to_thread(store_counts, self._database, gateway, _counts(counts[-1]))
                if len(predictions) + len(counts) < len(batch):
                    raise InvalidInput(
                        "every message after the header must be a prediction or counts, and another one came; send "
                        "the header once",
                        field="part",
                    )
        finally:
            outgoing.put_nowait(None)

    async def _keep(self, predictions: Sequence[pb.CapturedPrediction]) -> pb.CaptureReceipt:
        taken = await asyncio.to_thread(self._intake.take, [_item(each) for each in predictions])
        for model in sorted({each.model for each, kept in zip(predictions, taken, strict=True) if kept.new}):
            self._wake(model)
        return pb.CaptureReceipt(
            sequence=predictions[-1].sequence,
            refused=[
                pb.RefusedPrediction(sequence=each.sequence, reason=kept.refusal)
                for each, kept in zip(predictions, taken, strict=True)
                if kept.refusal
            ],
        )

    async def _tell(self, told: Sequence[CaptureRule], outgoing: asyncio.Queue[pb.CaptureResponse | None]) -> None:
        """Send what to capture whenever that has changed."""
        try:
            while True:
                await asyncio.sleep(RULES_SECONDS)
                rules = await self._rules()
                if rules != told:
                    outgoing.put_nowait(_policies(rules))
                    told = rules
        finally:
            outgoing.put_nowait(None)

    async def _rules(self) -> list[CaptureRule]:
        return await asyncio.to_thread(capture_rules, self._database, self._blobs, self._policy_of)


class _Incoming:
    """Messages that have come and are not kept yet; so many at most that they are one transaction."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[pb.CaptureRequest | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(MOST_ITEMS)

    async def receive(self, requests: AsyncIterator[pb.CaptureRequest]) -> None:
        """Take messages in until their end, while there is room."""
        try:
            async for request in requests:
                await self._room.acquire()
                self._waiting.put_nowait(request)
        finally:
            self._waiting.put_nowait(None)

    async def next_batch(self) -> list[pb.CaptureRequest]:
        """Wait for a message, and return all that are there; none after the last one."""
        batch: list[pb.CaptureRequest] = []
        size = 0
        while not batch or not (self._waiting.empty() or size >= _BYTES_AT_ONCE):
            request = await self._waiting.get()
            if request is None:
                self._waiting.put_nowait(None)  # it stays the end
                break
            self._room.release()
            batch.append(request)
            size += len(request.prediction.image)
        return batch


def _gateway(first: pb.CaptureRequest | None) -> str:
    part = first.WhichOneof("part") if first is not None else None
    if first is None or part != "header":
        raise InvalidInput(
            f"the first message must be the header; {part or 'nothing'} came: send the header first", field="header"
        )
    gateway = first.header.gateway_id
    if not 1 <= len(gateway) <= _MOST_GATEWAY_ID:
        raise InvalidInput(
            f"gateway_id has {len(gateway)} characters; give 1 to {_MOST_GATEWAY_ID}", field="header.gateway_id"
        )
    check_storable(gateway, "header.gateway_id")
    return gateway


def _item(prediction: pb.CapturedPrediction) -> CapturedItem:
    return CapturedItem(
        prediction_id=prediction.prediction_id,
        model=prediction.model,
        version=prediction.version,
        generation=prediction.traffic_generation,
        preprocess_digest=prediction.preprocess_digest,
        image=prediction.image,
        labels=tuple((each.label, each.probability) for each in prediction.labels),
        contributor=prediction.contributor,
        time=_time(prediction.time),
        strategy=_STRATEGIES.get(prediction.strategy, ""),
        probability=prediction.probability,
    )


def _time(timestamp: Timestamp) -> str:
    """Return a time as rows have it, so that texts are ordered as times are; empty where it is none."""
    if not timestamp.seconds:
        return ""
    try:
        return as_row(timestamp.ToDatetime(UTC))
    except (ValueError, OverflowError):
        return ""


def _counts(counts: pb.CaptureCounts) -> list[VersionCounts]:
    return [
        VersionCounts(
            each.model, each.version, each.answered_count, dict(each.captured_counts), dict(each.dropped_counts)
        )
        for each in counts.counts
    ]


def _policies(rules: Sequence[CaptureRule]) -> pb.CaptureResponse:
    return pb.CaptureResponse(policies=pb.CapturePolicies(policies=[_policy(each) for each in rules]))


def _policy(rule: CaptureRule) -> pb.CapturePolicy:
    policy = rule.policy
    return pb.CapturePolicy(
        model=rule.model,
        random_share=policy.random_share,
        least_random_share=policy.least_random_share,
        low_confidence_share=policy.low_confidence_share,
        confidence_below=policy.confidence_below,
        rare_class_share=policy.rare_class_share,
        rare_labels=rule.rare_labels,
        samples_per_second=policy.samples_per_second,
        burst=policy.burst,
        paused_reason=rule.paused_reason,
    )
