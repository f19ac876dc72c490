"""Dynamic batching that adds no wait when idle: what arrives while a batch runs makes up the next one."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np

from services.common.errors import DeadlineExceeded, NotReady, Overloaded
from services.inference.batching.duration_model import DurationModel
from services.inference.batching.statistics import BatchTimes, Statistics
from services.inference.batching.waiting import Pending, QueueOptions, WaitingRequests
from services.inference.engine import Arrays

Run = Callable[[Arrays, Sequence[str]], list[np.ndarray]]
Ran = tuple[list[list[np.ndarray]], BatchTimes]

LATE = "the deadline passed while the request waited to run; allow more time or send fewer at once"


@dataclass(frozen=True)
class BatchOptions:
    """How requests of one version share runs of its graph."""

    max_batch_size: int
    """In samples; 0 means that the graph has no batch dimension and every request runs alone."""
    shares_runs: bool = True
    """Whether requests may be in the same batch, where there is one."""
    instances: int = 1
    """Runs that may go on at the same time."""
    max_queue_delay_seconds: float = 0.0
    """How long a batch that is not full waits for more; only where the model's config asks for it."""
    max_queue_samples: int = 2048
    preferred_batch_sizes: frozenset[int] = frozenset()
    """Sizes at which a batch is sent although more may come or waits already."""
    preserve_ordering: bool = False
    """Whether requests are answered in the order of their arrival."""
    queue: QueueOptions = field(default_factory=QueueOptions)


@dataclass(frozen=True)
class Inference:
    """What came out for one request and where its time went (nanoseconds)."""

    outputs: list[np.ndarray]
    queue: int
    times: BatchTimes
    batch_size: int
    """Samples in the whole batch."""
    batch_requests: int = 1
    """Requests in the whole batch."""


def merge_inferences(parts: Sequence[Inference]) -> Inference:
    """Return the parts of one request as one: outputs joined, the longest wait, the times of all runs."""
    return Inference(
        outputs=[np.concatenate(columns) for columns in zip(*(part.outputs for part in parts), strict=True)],
        queue=max(part.queue for part in parts),
        times=BatchTimes(
            sum(part.times.compute_input for part in parts),
            sum(part.times.compute_infer for part in parts),
            sum(part.times.compute_output for part in parts),
        ),
        batch_size=max(part.batch_size for part in parts),
        batch_requests=max(part.batch_requests for part in parts),
    )


class Batcher:
    """Queues the requests of one version and runs them in batches, by priority and first come first served."""

    def __init__(
        self, run: Run, options: BatchOptions, statistics: Statistics, durations: DurationModel | None = None
    ) -> None:
        self._run = run
        self._options = options
        self._statistics = statistics
        self._durations = durations or DurationModel()
        self._waiting = WaitingRequests(options.queue)
        self._running: dict[asyncio.Future[Ran], float] = {}
        """When each batch that runs is expected to end, in event-loop time."""
        self._unanswered: deque[Pending] = deque()
        self._threads = ThreadPoolExecutor(options.instances, "inference")
        self._timer: asyncio.TimerHandle | None = None
        self._called = False
        self._closing = False

    @property
    def waiting_requests(self) -> int:
        """Requests that wait to run."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits to."""
        return not self._running and not len(self._waiting)

    async def infer(
        self,
        inputs: Arrays,
        outputs: Sequence[str],
        samples: int,
        deadline: float,
        *,
        priority: int = 0,
        timeout_seconds: float = math.inf,
    ) -> Inference:
        """Run the graph on *inputs*, perhaps together with other requests.

        Args:
            inputs: One array per graph input; the first dimension is *samples* where the model batches.
            outputs: Names of the wanted outputs.
            samples: Size of the request along the batch dimension; the caller sees that a batch may have so many.
            deadline: Event-loop time after which the request is not run any more.
            priority: 1 is the highest; 0 stands for the config's default level.
            timeout_seconds: Longest wait, where the config lets a request shorten it.

        Raises:
            InvalidInput: The graph refuses the values.
            NotReady: The version was unloaded.
            Overloaded: Too many wait already, or so many that the deadline cannot be met.
            DeadlineExceeded: The deadline or the longest wait passed in the queue.
        """
        if self._closing:
            raise NotReady("the version was unloaded meanwhile; try again")
        level = self._options.queue.level_of(priority)
        self._admit(samples, deadline, level)
        loop = asyncio.get_running_loop()
        pending = Pending(
            inputs, tuple(outputs), samples, deadline, loop.create_future(), time.perf_counter_ns(), level
        )
        self._waiting.add(pending)
        self._limit_wait(pending, timeout_seconds)
        if self._options.preserve_ordering:
            self._unanswered.append(pending)
        self._dispatch_soon()
        try:
            answer: Inference = await pending.future
            return answer
        finally:
            self._let_go(pending)

    def close(self) -> None:
        """Let the threads end once what is queued has run."""
        self._closing = True
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        if self._closing and not len(self._waiting) and not self._running:
            self._threads.shutdown(wait=False)

    def _admit(self, samples: int, deadline: float, level: int) -> None:
        """Refuse what would only fill the queue."""
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived; allow more time")
        waiting = self._waiting.samples
        if waiting and waiting + samples > self._options.max_queue_samples:
            raise Overloaded(
                f"{waiting} samples wait for this model and at most {self._options.max_queue_samples} may; "
                "send fewer at once or try again",
                retry_after_seconds=self._expected_seconds(samples, level) or 1.0,
            )
        if left == math.inf or (self._is_free() and not waiting):
            return  # an idle graph tries everything: were it refused, the predictions could never mend
        expected = self._expected_seconds(samples, level)
        if expected > left:
            raise Overloaded(
                f"the answer would take about {expected:.3g} s and the deadline leaves {left:.3g} s; "
                "send fewer at once, allow more time or try again",
                reason="DEADLINE_UNREACHABLE",
                retry_after_seconds=expected,
            )

    def _is_free(self) -> bool:
        return len(self._running) < self._options.instances

    def _expected_seconds(self, samples: int, level: int) -> float:
        """Return when a request that arrives now would be answered; rather too early than too late."""
        most = max(self._options.max_batch_size, 1)
        predict = self._durations.predict
        full, rest = divmod(self._waiting.samples_before(level), most)
        joins = rest + samples <= most
        before = full * predict(most) + (0.0 if joins or not rest else predict(rest))
        until_free = 0.0
        if not self._is_free():
            until_free = max(min(self._running.values()) - asyncio.get_running_loop().time(), 0.0)
        return until_free + before / self._options.instances + predict(rest + samples if joins else samples)

    def _limit_wait(self, pending: Pending, wanted_seconds: float) -> None:
        """Let the wait end at the deadline or the policy's timeout, even while a run goes on and on."""
        loop = asyncio.get_running_loop()
        policy = self._options.queue.policy_of(pending.level)
        timeout = policy.timeout_of(wanted_seconds)
        if pending.deadline <= loop.time() + timeout:
            self._end_at_deadline(pending)
        elif policy.delays:
            pending.timer = loop.call_later(timeout, self._put_off, pending)
        else:
            words = f"the request waited {timeout:.3g} s, which is the longest that it may; try again or allow more"
            pending.timer = loop.call_later(timeout, self._expire, pending, words)

    def _end_at_deadline(self, pending: Pending) -> None:
        if pending.deadline < math.inf:
            loop = asyncio.get_running_loop()
            pending.timer = loop.call_at(pending.deadline, self._expire, pending, LATE)

    def _put_off(self, pending: Pending) -> None:
        self._waiting.put_off(pending)
        self._end_at_deadline(pending)

    def _expire(self, pending: Pending, words: str) -> None:
        if self._waiting.remove(pending) and not pending.future.done():
            pending.future.set_exception(DeadlineExceeded(words))
        self._end_when_idle()

    def _let_go(self, pending: Pending) -> None:
        """Free the place of a request that was answered or whose caller went away."""
        if pending.timer is not None:
            pending.timer.cancel()
        if pending.future.cancelled():
            self._waiting.remove(pending)
            self._end_when_idle()
        self._answer_in_order()

    def _dispatch_soon(self) -> None:
        """Dispatch when all that has arrived by now is queued: callers that a batch answered come back together."""
        if self._is_free() and not self._called:
            self._called = True
            asyncio.get_running_loop().call_soon(self._on_call)

    def _on_call(self) -> None:
        self._called = False
        self._dispatch()

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def _dispatch(self) -> None:
        while self._is_free() and (batch := self._take_batch()):
            self._start(batch)

    def _take_batch(self) -> list[Pending]:
        """Return the next batch, none of it late or given up; empty where nothing waits or more is waited for."""
        while True:
            batch, complete = self._candidates()
            now = asyncio.get_running_loop().time()
            dead = [pending for pending in batch if pending.future.done() or pending.deadline <= now]
            for pending in dead:
                self._expire(pending, LATE)
            if not dead:
                break
        batch = self._release(batch, complete)
        for pending in batch:
            self._waiting.remove(pending)
            if pending.timer is not None:
                pending.timer.cancel()
        return batch

    def _candidates(self) -> tuple[list[Pending], bool]:
        """Return the requests that would share a run now, and whether no other can join them."""
        most = self._options.max_batch_size
        room = max(most, 1)
        batch: list[Pending] = []
        for pending in self._waiting:
            if batch and (pending.samples > room or not batch[0].fits(pending)):
                return batch, True
            batch.append(pending)
            room -= pending.samples
            if room <= 0 or not most or pending.alone or not self._options.shares_runs:
                return batch, True
        return batch, False

    def _release(self, batch: list[Pending], complete: bool) -> list[Pending]:
        """Return the part of *batch* that runs now; nothing where the config wants to wait for more."""
        delay = self._options.max_queue_delay_seconds
        if not batch or not (delay or self._options.preferred_batch_sizes):
            return batch
        left = self._seconds_to_wait(batch) if delay else 0.0
        preferred = self._preferred(batch)
        if preferred and (left > 0 or not delay):
            return batch[:preferred]
        if complete or left <= 0:
            return batch
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(left, self._on_timer)
        return []

    def _seconds_to_wait(self, batch: list[Pending]) -> float:
        """Return how long *batch* may be held back: for the config's delay, and no deadline may be missed for it."""
        waited = (time.perf_counter_ns() - min(pending.arrival for pending in batch)) / 1e9
        left = min(pending.deadline for pending in batch) - asyncio.get_running_loop().time()
        run = self._durations.predict(sum(pending.samples for pending in batch))
        return min(self._options.max_queue_delay_seconds - waited, left - run)

    def _preferred(self, batch: list[Pending]) -> int:
        """Return how many requests make up the largest preferred size; 0 where none does."""
        sizes = accumulate(pending.samples for pending in batch)
        fitting = [count for count, size in enumerate(sizes, 1) if size in self._options.preferred_batch_sizes]
        return max(fitting, default=0)

    def _start(self, batch: list[Pending]) -> None:
        loop = asyncio.get_running_loop()
        start = time.perf_counter_ns()
        running = loop.run_in_executor(self._threads, _execute, self._run, batch)
        self._running[running] = loop.time() + self._durations.predict(sum(pending.samples for pending in batch))
        running.add_done_callback(lambda done: self._finish(batch, start, done))

    def _finish(self, batch: list[Pending], start: int, done: asyncio.Future[Ran]) -> None:
        del self._running[done]
        error = done.exception()
        size = sum(pending.samples for pending in batch)
        if error is None:
            self._durations.record(size, (time.perf_counter_ns() - start) / 1e9)
        elif len(batch) > 1:
            self._retry_alone(batch)
        self._dispatch()  # the next batch first: answers of this one can be packed while it runs
        self._end_when_idle()
        if error is not None:
            if len(batch) == 1 and not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        outputs, times = done.result()
        self._statistics.record_execution(size, times)
        for pending, own in zip(batch, outputs, strict=True):
            self._answer(pending, Inference(own, start - pending.arrival, times, size, len(batch)))

    def _retry_alone(self, batch: list[Pending]) -> None:
        """Queue the requests of a failed batch again, before all others: perhaps only one of them is at fault."""
        for pending in reversed(batch):
            pending.alone = True
            if not pending.future.done():
                self._waiting.add_first(pending)
                self._end_at_deadline(pending)

    def _answer(self, pending: Pending, inference: Inference) -> None:
        pending.answer = inference
        if self._options.preserve_ordering:
            self._answer_in_order()
        elif not pending.future.done():
            pending.future.set_result(inference)

    def _answer_in_order(self) -> None:
        """Give the answers before which no other is due; what failed or was given up holds nobody back."""
        while self._unanswered and (self._unanswered[0].answer is not None or self._unanswered[0].future.done()):
            pending = self._unanswered.popleft()
            if not pending.future.done():
                pending.future.set_result(pending.answer)


def _execute(run: Run, batch: list[Pending]) -> Ran:
    """Gather, run, split; in a worker thread."""
    begin = time.perf_counter_ns()
    inputs = batch[0].inputs  # alone in its batch, a request's bytes reach the graph without a copy
    if len(batch) > 1:
        inputs = {name: np.concatenate([each.inputs[name] for each in batch]) for name in inputs}
    gathered = time.perf_counter_ns()
    outputs = run(inputs, batch[0].outputs)
    ran = time.perf_counter_ns()
    split = [outputs] if len(batch) == 1 else _split(outputs, [each.samples for each in batch])
    return split, BatchTimes(gathered - begin, ran - gathered, time.perf_counter_ns() - ran)


def _split(outputs: list[np.ndarray], sizes: list[int]) -> list[list[np.ndarray]]:
    edges = [0, *accumulate(sizes)]
    if any(output.shape[:1] != (edges[-1],) for output in outputs):
        raise RuntimeError("the graph gave an output of another length than its batch")
    # np.split takes three times as long.
    return [[output[start:stop] for output in outputs] for start, stop in pairwise(edges)]
