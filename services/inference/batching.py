"""Dynamic batching that adds no wait when idle: what arrives while a batch runs makes up the next one."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from services.common.errors import DeadlineExceeded, NotReady, Overloaded
from services.inference.engine import Arrays
from services.inference.statistics import BatchTimes, Statistics

Run = Callable[[Arrays, Sequence[str]], list[np.ndarray]]


@dataclass(frozen=True)
class BatchOptions:
    """How requests of one version share runs of its graph."""

    max_batch_size: int
    """In samples; 0 means that the graph has no batch dimension and every request runs alone."""
    instances: int = 1
    """Runs that may go on at the same time."""
    max_queue_delay_seconds: float = 0.0
    """How long a batch that is not full waits for more; only where the model's config asks for it."""
    max_queue_samples: int = 2048


@dataclass(frozen=True)
class Inference:
    """What came out for one request and where its time went (nanoseconds)."""

    outputs: list[np.ndarray]
    queue: int
    times: BatchTimes
    batch_size: int
    """Samples in the whole batch."""


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
    )


@dataclass(eq=False)
class _Pending:
    inputs: Arrays
    outputs: tuple[str, ...]
    samples: int
    deadline: float
    future: asyncio.Future[Inference]
    arrival: int
    alone: bool = False
    """Set after a batch with it failed, so that it can spoil no other's answer."""

    def fits(self, other: "_Pending") -> bool:
        """Whether both can share a batch: same outputs, same shapes behind the batch dimension."""
        return (
            not (self.alone or other.alone)
            and self.outputs == other.outputs
            and all(array.shape[1:] == other.inputs[name].shape[1:] for name, array in self.inputs.items())
        )


class Batcher:
    """Queues the requests of one version and runs them in batches, first come first served."""

    def __init__(self, run: Run, options: BatchOptions, statistics: Statistics) -> None:
        self._run = run
        self._options = options
        self._statistics = statistics
        self._queue: deque[_Pending] = deque()
        self._queued_samples = 0
        self._free_instances = options.instances
        self._threads = ThreadPoolExecutor(options.instances, "inference")
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False

    async def infer(self, inputs: Arrays, outputs: Sequence[str], samples: int, deadline: float) -> Inference:
        """Run the graph on *inputs*, perhaps together with other requests.

        Args:
            inputs: One array per graph input; the first dimension is *samples* where the model batches.
            outputs: Names of the wanted outputs.
            samples: Size of the request along the batch dimension.
            deadline: Event-loop time after which the request is not run any more.

        Raises:
            NotReady: The version was unloaded.
            Overloaded: Too many samples wait already.
            DeadlineExceeded: The deadline passed in the queue.
        """
        if self._closing:
            raise NotReady("the version was unloaded meanwhile; try again")
        if self._queued_samples + samples > self._options.max_queue_samples and self._queue:
            raise Overloaded(
                f"{self._queued_samples} samples wait for this model and at most {self._options.max_queue_samples} "
                "may; send fewer at once or try again",
                retry_after_seconds=1.0,
            )
        future: asyncio.Future[Inference] = asyncio.get_running_loop().create_future()
        pending = _Pending(inputs, tuple(outputs), samples, deadline, future, time.perf_counter_ns())
        self._queue.append(pending)
        self._queued_samples += samples
        self._dispatch()
        try:
            return await future
        finally:
            if future.cancelled():
                self._forget(pending)

    def _forget(self, pending: _Pending) -> None:
        """Free the place of a request whose caller went away."""
        if pending in self._queue:
            self._queue.remove(pending)
            self._queued_samples -= pending.samples
            self._end_when_idle()

    def close(self) -> None:
        """Let the threads end once what is queued has run."""
        self._closing = True
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        if self._closing and not self._queue and self._free_instances == self._options.instances:
            self._threads.shutdown(wait=False)

    def _dispatch(self) -> None:
        while self._free_instances and self._queue and not self._must_wait():
            batch = self._take_batch()
            if batch:
                self._free_instances -= 1
                self._start(batch)

    def _must_wait(self) -> bool:
        """Whether the config wants the queue's head to wait for company; then a timer will dispatch."""
        delay = self._options.max_queue_delay_seconds
        if not delay or self._queued_samples >= self._options.max_batch_size:
            return False
        left = delay - (time.perf_counter_ns() - self._queue[0].arrival) / 1e9
        if left <= 0:
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(left, self._on_timer)
        return True

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def _take_batch(self) -> list[_Pending]:
        batch: list[_Pending] = []
        room = max(self._options.max_batch_size, 1)
        now = asyncio.get_running_loop().time()
        while self._queue:
            pending = self._queue[0]
            live = not pending.future.done()
            if live and pending.deadline <= now:
                pending.future.set_exception(DeadlineExceeded("the deadline passed while the request waited to run"))
                live = False
            if live:
                if batch and (pending.samples > room or not batch[0].fits(pending)):
                    break
                room -= pending.samples
                batch.append(pending)
            self._queue.popleft()
            self._queued_samples -= pending.samples
            if live and (room <= 0 or not self._options.max_batch_size):
                break
        return batch

    def _start(self, batch: list[_Pending]) -> None:
        loop = asyncio.get_running_loop()
        start = time.perf_counter_ns()
        running = loop.run_in_executor(self._threads, _execute, self._run, batch)
        running.add_done_callback(lambda done: self._finish(batch, start, done))

    def _retry_alone(self, batch: list[_Pending]) -> None:
        """Queue the requests of a failed batch again, before all others: perhaps only one of them is at fault."""
        for pending in reversed(batch):
            pending.alone = True
            self._queue.appendleft(pending)
            self._queued_samples += pending.samples

    def _finish(
        self, batch: list[_Pending], start: int, done: "asyncio.Future[tuple[list[list[np.ndarray]], BatchTimes]]"
    ) -> None:
        self._free_instances += 1
        error = done.exception()
        if error is not None and len(batch) > 1:
            self._retry_alone(batch)
        self._dispatch()  # the next batch first: answers of this one can be packed while it runs
        self._end_when_idle()
        if error is not None:
            if len(batch) == 1 and not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        outputs, times = done.result()
        size = sum(pending.samples for pending in batch)
        self._statistics.record_execution(size, times)
        for pending, own in zip(batch, outputs, strict=True):
            if not pending.future.done():
                pending.future.set_result(Inference(own, start - pending.arrival, times, size))


def _execute(run: Run, batch: list[_Pending]) -> tuple[list[list[np.ndarray]], BatchTimes]:
    """Gather, run, split; in a worker thread."""
    begin = time.perf_counter_ns()
    inputs = batch[0].inputs
    if len(batch) > 1:
        inputs = {name: np.concatenate([each.inputs[name] for each in batch]) for name in inputs}
    gathered = time.perf_counter_ns()
    outputs = run(inputs, batch[0].outputs)
    ran = time.perf_counter_ns()
    split = [outputs] if len(batch) == 1 else _split(outputs, [each.samples for each in batch])
    return split, BatchTimes(gathered - begin, ran - gathered, time.perf_counter_ns() - ran)


def _split(outputs: list[np.ndarray], sizes: list[int]) -> list[list[np.ndarray]]:
    *edges, total = np.cumsum(sizes).tolist()
    if any(len(output) != total for output in outputs):
        raise RuntimeError("the graph gave an output of another length than its batch")
    return [list(parts) for parts in zip(*(np.split(output, edges) for output in outputs), strict=True)]
