"""Requests that wait share the next run; each gets its own answer."""

import asyncio
import math
import threading

import numpy as np
import pytest

from services.common.errors import DeadlineExceeded, InvalidInput, Overloaded
from services.inference.batching import Batcher, BatchOptions
from services.inference.statistics import Statistics


class Doubling:
    """A graph that doubles `x`, refuses negative numbers, and runs only while its gate is open."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.gate = threading.Event()
        self.running = asyncio.Semaphore(0)
        self._loop = asyncio.get_running_loop()

    def __call__(self, inputs, outputs):
        self.batches.append(inputs["x"].ravel().tolist())
        self._loop.call_soon_threadsafe(self.running.release)
        self.gate.wait()
        if (inputs["x"] < 0).any():
            raise InvalidInput("negative")
        return [inputs["x"] * 2 for _ in outputs]


class Bench:
    """A batcher over a graph, and requests to it."""

    def __init__(self, graph, **options) -> None:
        self.graph = graph
        self.statistics = Statistics()
        self.batcher = Batcher(graph, BatchOptions(**{"max_batch_size": 4} | options), self.statistics)

    async def send(self, *values: float, shape=(-1, 1), outputs=("y",), deadline: float = math.inf):
        """Queue one request and return it as a task."""
        array = np.array(values, np.float32).reshape(shape)
        task = asyncio.ensure_future(self.batcher.infer({"x": array}, outputs, len(array), deadline))
        await asyncio.sleep(0)  # the task has queued it now
        return task

    async def occupied(self):
        """Send a request that runs and keeps the graph busy."""
        task = await self.send(0)
        await self.graph.running.acquire()
        return task


@pytest.fixture
async def bench():
    benches = []

    def make(graph=None, **options) -> Bench:
        benches.append(Bench(graph or Doubling(), **options))
        return benches[-1]

    yield make
    for bench in benches:
        getattr(bench.graph, "gate", threading.Event()).set()
        bench.batcher.close()


def values(inference) -> list[float]:
    return inference.outputs[0].ravel().tolist()


async def test_request_that_finds_the_graph_idle_runs_at_once_and_alone(bench):
    bench = bench()
    first = await bench.occupied()

    assert bench.graph.batches == [[0]]
    bench.graph.gate.set()
    assert values(await first) == [0]
    assert (await first).batch_size == 1


async def test_requests_that_arrive_during_a_run_share_the_next_one(bench):
    bench = bench()
    await bench.occupied()
    waiting = [await bench.send(1), await bench.send(2, 3), await bench.send(4)]
    bench.graph.gate.set()

    assert [values(each) for each in await asyncio.gather(*waiting)] == [[2], [4, 6], [8]]
    assert bench.graph.batches == [[0], [1, 2, 3, 4]]
    assert {each.result().batch_size for each in waiting} == {4}


@pytest.mark.parametrize(
    ("requests", "batches"),
    [
        ([[1], [2], [3], [4], [5]], [[1, 2, 3, 4], [5]]),
        ([[1, 2, 3], [4, 5]], [[1, 2, 3], [4, 5]]),
        ([[1, 2], [3, 4, 5], [6]], [[1, 2], [3, 4, 5, 6]]),
        ([[1, 2, 3, 4], [5]], [[1, 2, 3, 4], [5]]),
    ],
)
async def test_batch_never_holds_more_samples_than_allowed_and_keeps_the_order(bench, requests, batches):
    bench = bench()
    await bench.occupied()
    waiting = [await bench.send(*request) for request in requests]
    bench.graph.gate.set()

    assert [values(each) for each in await asyncio.gather(*waiting)] == [[2 * x for x in each] for each in requests]
    assert bench.graph.batches[1:] == batches


async def test_graph_without_a_batch_dimension_runs_every_request_alone(bench):
    bench = bench(max_batch_size=0)
    await bench.occupied()
    waiting = [await bench.send(1), await bench.send(2)]
    bench.graph.gate.set()

    await asyncio.gather(*waiting)
    assert bench.graph.batches == [[0], [1], [2]]


@pytest.mark.parametrize("other", [{"shape": (1, 1, 1)}, {"shape": (1, 2)}, {"outputs": ("y", "z")}])
async def test_requests_of_other_shape_or_outputs_are_not_mixed(bench, other):
    bench = bench()
    await bench.occupied()
    waiting = [await bench.send(1), await bench.send(*[2] * math.prod(other.get("shape", (1,))), **other)]
    bench.graph.gate.set()

    await asyncio.gather(*waiting)
    assert [len(batch) for batch in bench.graph.batches[:2]] == [1, 1]
    assert len(bench.graph.batches) == 3


async def test_cancelled_request_never_runs_and_frees_its_place(bench):
    bench = bench(max_queue_samples=2)
    await bench.occupied()
    cancelled = await bench.send(1, 2)
    cancelled.cancel()
    await asyncio.wait((cancelled,))
    waiting = await bench.send(3, 4)
    bench.graph.gate.set()

    assert values(await waiting) == [6, 8]
    assert bench.graph.batches == [[0], [3, 4]]


async def test_request_cancelled_while_it_runs_spoils_no_other(bench):
    bench = bench()
    running = await bench.occupied()
    waiting = await bench.send(1)
    running.cancel()
    bench.graph.gate.set()

    assert values(await waiting) == [2]


async def test_expired_request_never_runs(bench):
    bench = bench()
    await bench.occupied()
    now = asyncio.get_running_loop().time()
    expired, waiting = await bench.send(1, deadline=now), await bench.send(2, deadline=now + 3600)
    bench.graph.gate.set()

    with pytest.raises(DeadlineExceeded, match="deadline passed while the request waited"):
        await expired
    assert values(await waiting) == [4]
    assert bench.graph.batches == [[0], [2]]


async def test_request_that_comes_too_late_is_told_so_at_once(bench):
    bench = bench()

    with pytest.raises(DeadlineExceeded):
        await (await bench.send(1, deadline=-math.inf))
    assert bench.graph.batches == []


async def test_full_queue_refuses_more(bench):
    bench = bench(max_queue_samples=3)
    await bench.occupied()
    waiting = await bench.send(1, 2, 3)

    with pytest.raises(Overloaded, match="3 samples wait for this model and at most 3 may") as caught:
        await (await bench.send(4))
    bench.graph.gate.set()
    assert caught.value.retry_after_seconds
    assert values(await waiting) == [2, 4, 6]
    assert values(await (await bench.send(4))) == [8]


async def test_error_reaches_the_request_at_fault_and_no_other_of_its_batch(bench):
    bench = bench()
    await bench.occupied()
    good, bad, later = await bench.send(1), await bench.send(-1), await bench.send(2)
    bench.graph.gate.set()

    with pytest.raises(InvalidInput, match="negative"):
        await bad
    assert [values(await good), values(await later)] == [[2], [4]]
    assert bench.graph.batches == [[0], [1, -1, 2], [1], [-1], [2]]


async def test_error_of_every_run_reaches_all_and_the_batcher_goes_on(bench):
    bench = bench()
    await bench.occupied()
    waiting = [await bench.send(-1), await bench.send(-2)]
    bench.graph.gate.set()

    assert [type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)] == [InvalidInput] * 2
    assert values(await (await bench.send(5))) == [10]


async def test_output_that_does_not_follow_the_batch_gives_nobody_anothers_answer(bench):
    gate, running = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def first_only(inputs, outputs):
        loop.call_soon_threadsafe(running.set)
        gate.wait()
        return [inputs["x"][:1]]

    bench = bench(first_only)
    await bench.send(0)
    await running.wait()
    waiting = [await bench.send(1), await bench.send(2)]
    gate.set()

    assert [values(each) for each in await asyncio.gather(*waiting)] == [[1], [2]]


async def test_instances_run_side_by_side(bench):
    bench = bench(instances=2)
    running = [await bench.occupied(), await bench.occupied()]
    third = await bench.send(3)
    bench.graph.gate.set()

    await asyncio.gather(*running, third)
    assert bench.graph.batches == [[0], [0], [3]]


async def test_queue_delay_ends_early_when_a_batch_is_full(bench):
    bench = bench(max_queue_delay_seconds=3600)
    bench.graph.gate.set()
    waiting = [await bench.send(1, 2), await bench.send(3, 4)]

    await asyncio.gather(*waiting)
    assert bench.graph.batches == [[1, 2, 3, 4]]


async def test_queue_delay_gathers_what_arrives_within_it(bench):
    bench = bench(max_queue_delay_seconds=0.01)
    bench.graph.gate.set()
    waiting = [await bench.send(1), await bench.send(2)]

    await asyncio.gather(*waiting)
    assert bench.graph.batches == [[1, 2]]
    assert values(await (await bench.send(3))) == [6]


@pytest.mark.parametrize("queued", [0, 3])
async def test_close_finishes_what_is_queued_and_ends_the_threads(bench, queued):
    bench = bench()
    waiting = [await bench.occupied(), *[await bench.send(1, 2, 3) for _ in range(queued)]]
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("inference")]
    bench.batcher.close()
    bench.graph.gate.set()

    assert len(await asyncio.gather(*waiting)) == 1 + queued
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert threads


async def test_times_say_where_a_request_was(bench):
    bench = bench()
    await bench.occupied()
    waiting = await bench.send(1)
    bench.graph.gate.set()
    inference = await waiting

    assert inference.queue > 0
    assert min(inference.times.compute_input, inference.times.compute_infer, inference.times.compute_output) >= 0
    assert bench.statistics.execution_count == 2
    assert {size: batch.compute_infer.count for size, batch in bench.statistics.batches.items()} == {1: 2}
