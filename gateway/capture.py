"""Keeps predictions for the trainer: decides before the answer leaves, sends them beside it, loses none unsaid.

What is captured waits a moment for more, since the trainer keeps all that comes together in one transaction. Until the
trainer's receipt it is held here and in the journal, within bounds, and is sent again where a stream breaks, by the
next gateway where this one does not live to do it. No answer ever waits for the trainer.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

import grpc
import structlog
from google.protobuf.message import DecodeError

from aimass.trainer.v1.capture_pb2 import (
    CapturedLabel,
    CapturedPrediction,
    CaptureHeader,
    CapturePolicies,
    CaptureReceipt,
    CaptureRequest,
    CaptureResponse,
)
from aimass.trainer.v1.capture_pb2 import CapturePolicy as PolicyMessage
from gateway.access import UNTOLD
from gateway.capture_figures import CaptureFigures
from gateway.journal import Journal
from gateway.sampling import NOT_CHOSEN, CapturePolicy, Decision, Dropped, Sampler, Strategy
from services.common.errors import NotReady
from services.common.identity import bound_caller
from services.common.statuses import status_of
from services.common.tasks import end

log = structlog.get_logger(__name__)

Connect = Callable[[AsyncIterator[CaptureRequest]], AsyncIterable[CaptureResponse]]
"""Opens the stream to the trainer."""
RECONNECT_SECONDS = 0.2
"""Wait before a stream that broke is opened again; doubled by each that brings nothing, up to the longest."""
LONGEST_RECONNECT_SECONDS = 5.0
SEND_SECONDS = 5.0
"""How often the trainer is sent what was captured, and counts; at once where somebody waits for it or much is there.

In one process each round holds up the answers that are on their way: once a second, that is felt in their p99."""
HEARTBEAT_SECONDS = 3600.0
"""How often it is sent counts where nothing has changed: a gateway that is silent for long counts as gone."""
MARGIN_BYTES = 64 * 1024
"""What a message has room for beside its image."""


@dataclass(frozen=True)
class Answered:
    """One prediction as it was answered."""

    prediction_id: str
    model: str
    version: int
    traffic_generation: int
    preprocess_digest: str
    """`sha256:<hex>` of the spec by which the image became pixels."""
    image: bytes
    """As it came."""
    labels: tuple[tuple[str, float], ...]
    """With their probabilities, by falling probability."""
    contributor: str
    """Who asked, as `Caller.contributor`."""


@dataclass(frozen=True)
class _Kept:
    """A prediction until the trainer's receipt."""

    request: CaptureRequest
    size: int
    strategy: Strategy


class Capture:
    """Captured predictions between the answer and the trainer's disk.

    Args:
        connect: Opens the stream to the trainer; called again whenever that ends.
        figures: Counts what becomes of predictions.
        journal: Holds what waits, for the case that this process is killed.
        max_bytes: Of images that wait; with so many or more, none is captured.
        max_message_bytes: Largest message that the trainer takes.
    """

    def __init__(
        self, connect: Connect, figures: CaptureFigures, journal: Journal, *, max_bytes: int, max_message_bytes: int
    ) -> None:
        self._connect = connect
        self._figures = figures
        self._journal = journal
        self._max_bytes = max_bytes
        self._max_image_bytes = min(max_bytes, max_message_bytes - MARGIN_BYTES)
        self._header = CaptureRequest(header=CaptureHeader(gateway_id=uuid.uuid4().hex))
        self._samplers: dict[str, Sampler] = {}
        self._kept: dict[int, _Kept] = {}
        self._on_their_way: set[str] = set()
        """Ids of these."""
        self._newest = self._settled = 0  # sequences: of the newest prediction, of the newest with a receipt
        self._told = time.monotonic()  # when the trainer was told the counts; at first there is nothing to tell
        self._sender = _Sender(0)
        self._moved = asyncio.Event()
        """Set and replaced at each receipt, and when the stream ends."""
        self._recovered = asyncio.Event()
        """Set when what was left is taken in."""
        self._away = self._closing = self._unwritten = False
        self._task: asyncio.Task[None] | None = None

    def decide(self, model: str, version: int, label: str, confidence: float, size: Callable[[], int]) -> Decision:
        """Decide on one prediction; where it is to be captured, it must be offered before anything is awaited.

        Args:
            model: Model that answers.
            version: Its version.
            label: Best label.
            confidence: Probability of that.
            size: Gives the bytes of the image; asked where it matters.
        """
        sampler = self._samplers.get(model)
        if sampler is None:
            return NOT_CHOSEN
        hindrance = partial(self._hindrance, sampler.policy, size)
        decision = sampler.decide(label, confidence, time.monotonic(), hindrance)
        self._figures.add_decision(model, version, decision)
        return decision

    def offer(self, answered: Answered, decision: Decision) -> bool:
        """Take in a prediction of which *decision* says that it is to be captured; return whether it is."""
        assert decision.strategy is not None
        prediction = CapturedPrediction(
            prediction_id=answered.prediction_id,
            model=answered.model,
            version=answered.version,
            traffic_generation=answered.traffic_generation,
            preprocess_digest=answered.preprocess_digest,
            image=answered.image,
            labels=[CapturedLabel(label=label, probability=probability) for label, probability in answered.labels],
            contributor=answered.contributor,
            strategy=CapturedPrediction.Strategy.Value(f"STRATEGY_{decision.strategy}"),
            probability=decision.probability,
        )
        prediction.time.GetCurrentTime()
        try:
            self._journal.append(self._newest + 1, prediction.SerializeToString())
        except OSError as error:
            self._tell_unwritten(error)
            self._figures.add_dropped(answered.model, answered.version, Dropped.NOT_WRITTEN)
            return False
        self._unwritten = False
        self._keep(prediction, decision.strategy)
        return True

    def _keep(self, prediction: CapturedPrediction, strategy: Strategy) -> None:
        self._newest += 1
        prediction.sequence = self._newest
        size = len(prediction.image)
        self._kept[self._newest] = _Kept(CaptureRequest(prediction=prediction), size, strategy)
        self._on_their_way.add(prediction.prediction_id)
        self._figures.queue_bytes += size
        if 2 * self._figures.queue_bytes > self._max_bytes:
            self._sender.hurry.set()

    def _take_away(self, sequence: int) -> _Kept | None:
        kept = self._kept.pop(sequence, None)
        if kept is not None:
            self._on_their_way.discard(kept.request.prediction.prediction_id)
            self._figures.queue_bytes -= kept.size
        return kept

    async def settle(self, prediction_id: str) -> None:
        """Have a prediction sent at once, and return when it is not on its way to the trainer.

        Raises:
            NotReady: It is, and the trainer is away.
        """
        await self._recovered.wait()
        while prediction_id in self._on_their_way:
            if self._away:
                raise NotReady(f"prediction {prediction_id} waits for the trainer, which is away; try again soon")
            self._sender.hurry.set()
            await self._moved.wait()

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def start(self) -> None:
        """Begin to send the trainer what is captured and what was left, and to follow its policies."""
        self._task = asyncio.create_task(self._run())

    async def close(self, seconds: float) -> None:
        """Capture nothing more, and wait at most *seconds* for receipts of what is kept; the journal has the rest."""
        if self._task is None:
            return
        self._samplers.clear()
        self._closing = True
        self._sender.hurry.set()
        if self._kept or not self._away:
            await asyncio.wait((self._task,), timeout=seconds)
        await end(self._task)
        if self._kept:
            log.warning("the trainer is away; captured predictions wait on the disk", count=len(self._kept))
        self._journal.close()

    def _hindrance(self, policy: CapturePolicy, size: Callable[[], int]) -> Dropped | None:
        if policy.paused_reason:
            return Dropped.PAUSED
        if bound_caller() is UNTOLD:  # in whose name, the trainer has not told yet
            return Dropped.TRAINER_AWAY
        if self._figures.queue_bytes >= self._max_bytes:  # whatever its size: small ones must not be likelier
            return Dropped.TRAINER_AWAY if self._away else Dropped.QUEUE_FULL
        return Dropped.TOO_LARGE if size() > self._max_image_bytes else None

    async def _run(self) -> None:
        await self._recover()
        wait = RECONNECT_SECONDS
        while True:
            failure = await self._stream()
            if not self._away:
                wait = RECONNECT_SECONDS
                log.info("no stream to the trainer", waiting=len(self._kept), reason=_words(failure))
            self._away = True
            self._move()
            if self._closing and not self._kept:
                return
            await asyncio.sleep(RECONNECT_SECONDS if self._closing else wait)
            wait = min(2 * wait, LONGEST_RECONNECT_SECONDS)

    async def _recover(self) -> None:
        """Take in what a gateway that was killed has left."""
        try:
            for left in await asyncio.to_thread(self._journal.left):
                self._journal.adopt(left, self._newest + 1)
                for data in left.records:
                    self._keep_left(data)
        finally:
            self._recovered.set()
        if self._kept:
            log.info("captured predictions were left on the disk", count=len(self._kept))

    def _keep_left(self, data: bytes) -> None:
        """Take in a record; one that this release cannot read has its sequence and nothing else."""
        try:
            prediction = CapturedPrediction.FromString(data)
            name = CapturedPrediction.Strategy.Name(prediction.strategy)
            strategy = Strategy(name.removeprefix("STRATEGY_"))
        except (DecodeError, ValueError) as error:
            log.warning("a captured prediction that was left cannot be read", reason=str(error))
            self._newest += 1
            return
        self._keep(prediction, strategy)

    def _tell_unwritten(self, error: OSError) -> None:
        if not self._unwritten:
            log.warning("the journal of captured predictions cannot be used", reason=str(error))
        self._unwritten = True

    async def _stream(self) -> Exception | None:
        """Talk to the trainer until that ends; return what ended it."""
        sender = self._sender = _Sender(self._settled)
        try:
            async for response in self._connect(self._requests(sender)):
                self._away = False
                if response.HasField("policies"):
                    self._follow(response.policies)
                else:
                    self._settle(response.receipt)
        except Exception as error:  # whatever it was, answers must go on
            self._drop_what_is_too_large(error, sender)
            return error
        finally:
            sender.end()
        return None

    async def _requests(self, sender: "_Sender") -> AsyncIterator[CaptureRequest]:
        """Yield what the trainer does not have yet, until the stream of *sender* or all of it has ended."""
        yield self._header
        while not sender.ended:
            sender.hurry.clear()
            while sender.sent < self._newest and not sender.ended:
                sender.sent += 1
                if (kept := self._kept.get(sender.sent)) is not None:
                    yield kept.request
            last = self._closing and not self._kept
            silent = time.monotonic() - self._told
            if (self._figures.changed and (last or silent >= SEND_SECONDS)) or silent >= HEARTBEAT_SECONDS:
                self._told = time.monotonic()
                yield CaptureRequest(counts=self._figures.message())
            if last:
                return
            await sender.wait(SEND_SECONDS)

    def _follow(self, policies: CapturePolicies) -> None:
        if self._closing:
            return
        wanted = {each.model: _policy_of(each) for each in policies.policies}
        self._samplers = {name: self._samplers.get(name) or Sampler(policy) for name, policy in wanted.items()}
        for name, policy in wanted.items():
            self._samplers[name].follow(policy)

    def _settle(self, receipt: CaptureReceipt) -> None:
        refused = {each.sequence: each.reason for each in receipt.refused}
        newest = min(receipt.sequence, self._newest)
        for sequence in range(self._settled + 1, newest + 1):
            if sequence in refused:
                self._drop(sequence, refused[sequence])
            elif (kept := self._take_away(sequence)) is not None:
                prediction = kept.request.prediction
                self._figures.add_captured(prediction.model, prediction.version, kept.strategy)
        self._settled = max(self._settled, newest)
        try:
            self._journal.settle(self._settled)
        except OSError as error:  # at worst the trainer, which knows what it has, is sent some again
            self._tell_unwritten(error)
        self._move()
        if self._closing:
            self._sender.hurry.set()

    def _drop_what_is_too_large(self, error: Exception, sender: "_Sender") -> None:
        """Drop what can have ended the stream by its size: sent again, it would do so again, for ever."""
        if isinstance(error, grpc.aio.AioRpcError) and "larger than max" in (error.details() or ""):
            sent = [sequence for sequence in self._kept if sequence <= sender.sent]
            self._drop(max(sent, key=lambda each: self._kept[each].size, default=0), Dropped.TOO_LARGE)

    def _drop(self, sequence: int, reason: str) -> None:
        if (kept := self._take_away(sequence)) is not None:
            prediction = kept.request.prediction
            self._figures.add_dropped(prediction.model, prediction.version, reason)


class _Sender:
    """The way out of one stream; grpc may still ask for requests when the stream has ended."""

    def __init__(self, sent: int) -> None:
        self.sent = sent
        """Sequence of the newest prediction that was sent."""
        self.ended = False
        self.hurry = asyncio.Event()
        """Set where what there is must be sent at once."""

    def end(self) -> None:
        self.ended = True
        self.hurry.set()

    async def wait(self, seconds: float) -> None:
        """Wait, at most *seconds*, or until there is no time to wait."""
        waiting = asyncio.ensure_future(self.hurry.wait())
        await asyncio.wait((waiting,), timeout=seconds)
        waiting.cancel()


def _policy_of(policy: PolicyMessage) -> CapturePolicy:
    return CapturePolicy(
        random_share=policy.random_share,
        least_random_share=policy.least_random_share,
        low_confidence_share=policy.low_confidence_share,
        confidence_below=policy.confidence_below,
        rare_class_share=policy.rare_class_share,
        rare_labels=frozenset(policy.rare_labels),
        samples_per_second=policy.samples_per_second,
        burst=policy.burst,
        paused_reason=policy.paused_reason,
    )


def _words(failure: Exception | None) -> str:
    return "the trainer ended it" if failure is None else status_of(failure).message
