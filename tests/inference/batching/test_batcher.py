"""Requests that wait share the next run; each gets its own answer."""

import asyncio
import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.common.errors import DeadlineExceeded, InvalidInput, Overloaded
from services.inference.batching.batcher import Batcher, BatchOptions, merge_inferences
from services.inference.batching.duration_model import FEWEST, DurationModel
from services.inference.batching.statistics import Statistics
from services.inference.batching.waiting import QueueOptions, QueuePolicy


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
        self.durations = DurationModel()
        options = BatchOptions(**{"max_batch_size": 4} | options)
        self.batcher = Batcher(graph, options, self.statistics, self.durations)

    async def send(self, *values: float, shape=(-1, 1), outputs=("y",), deadline: float = math.inf, **fields):
        """Queue one request and return it as a task."""
        array = np.array(values, np.float32).reshape(shape)
        task = asyncio.ensure_future(self.batcher.infer({"x": array}, outputs, len(array), deadline, **fields))
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
    assert {each.result().batch_requests for each in waiting} == {3}


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
    expired, waiting = await bench.send(1, deadline=now + 0.01), await bench.send(2, deadline=now + 3600)

    with pytest.raises(DeadlineExceeded, match="deadline passed while the request waited"):
        await expired  # while the graph is still busy
    bench.graph.gate.set()
    assert values(await waiting) == [4]
    assert bench.graph.batches == [[0], [2]]


async def test_request_that_comes_too_late_is_told_so_at_once(bench):
    bench = bench()

    with pytest.raises(DeadlineExceeded):
        await (await bench.send(1, deadline=-math.inf))
    assert bench.graph.batches == []


async def test_what_waits_is_counted_and_what_waits_or_runs_is_no_idleness(bench):
    bench = bench()
    assert (bench.batcher.waiting_requests, bench.batcher.is_idle) == (0, True)
    running = await bench.occupied()
    assert (bench.batcher.waiting_requests, bench.batcher.is_idle) == (0, False)
    waiting = [await bench.send(1), await bench.send(2, 3, 4)]

    assert (bench.batcher.waiting_requests, bench.batcher.is_idle) == (2, False)
    bench.graph.gate.set()
    await asyncio.gather(running, *waiting)
    assert (bench.batcher.waiting_requests, bench.batcher.is_idle) == (0, True)


async def test_requests_that_may_not_share_runs_each_run_with_all_their_samples(bench):
    bench = bench(shares_runs=False)
    await bench.occupied()
    waiting = [await bench.send(1, 2), await bench.send(3), await bench.send(4)]
    bench.graph.gate.set()

    assert [values(each) for each in await asyncio.gather(*waiting)] == [[2, 4], [6], [8]]
    assert bench.graph.batches == [[0], [1, 2], [3], [4]]


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
    assert {size: batch.count for size, batch in bench.statistics.batches.items()} == {1: 2}


async def test_array_of_a_request_that_runs_alone_reaches_the_graph_without_a_copy():
    received = []

    def keep(inputs, outputs):
        received.append(inputs["x"])
        return [inputs["x"]]

    batcher = Batcher(keep, BatchOptions(max_batch_size=4), Statistics())
    array = np.frombuffer(b"\0" * 16, np.float32).reshape(2, 2)
    inference = await batcher.infer({"x": array}, ["y"], 2, math.inf)
    batcher.close()

    assert received[0] is array
    assert inference.outputs[0] is array


def learn(durations: DurationModel, seconds: float) -> None:
    """Teach that a batch of any size takes *seconds*."""
    for _ in range(FEWEST):
        durations.record(4, seconds)


async def test_request_that_cannot_meet_its_deadline_is_refused_with_the_time_that_it_would_take(bench):
    bench = bench()
    learn(bench.durations, 100)
    await bench.occupied()
    now = asyncio.get_running_loop().time()

    with pytest.raises(
        Overloaded, match=r"would take about 200 s and the deadline leaves (60|59\.\d) s; send fewer"
    ) as caught:
        await (await bench.send(1, deadline=now + 60))
    assert caught.value.reason == "DEADLINE_UNREACHABLE"
    assert caught.value.retry_after_seconds == pytest.approx(200, rel=0.01)


@pytest.mark.parametrize(("before", "admitted"), [(0, True), (3, True), (4, False), (7, False)])
async def test_admission_counts_the_batches_that_run_before(bench, before, admitted):
    bench = bench()
    learn(bench.durations, 100)
    await bench.occupied()
    for _ in range(before):
        await bench.send(1)
    late = await bench.send(2, deadline=asyncio.get_running_loop().time() + 250)

    assert late.done() != admitted
    bench.graph.gate.set()
    if admitted:
        assert values(await late) == [4]
    else:
        assert isinstance(late.exception(), Overloaded)


async def test_idle_graph_tries_whatever_it_learned(bench):
    bench = bench()
    bench.graph.gate.set()
    learn(bench.durations, 100)

    assert values(await (await bench.send(1, deadline=asyncio.get_running_loop().time() + 50))) == [2]


async def test_full_queue_says_when_there_will_be_room(bench):
    bench = bench(max_queue_samples=4)
    learn(bench.durations, 100)
    await bench.occupied()
    await bench.send(1, 2, 3, 4)

    with pytest.raises(Overloaded) as caught:
        await (await bench.send(5))
    assert caught.value.retry_after_seconds == pytest.approx(300, rel=0.01)


async def test_higher_priority_runs_first_and_the_rest_in_order(bench):
    bench = bench(max_batch_size=1, queue=QueueOptions(levels=3, default_level=2))
    await bench.occupied()
    sent = [(1, 3), (2, 0), (3, 1), (4, 2), (5, 99), (6, 1)]
    waiting = [await bench.send(value, priority=priority) for value, priority in sent]
    bench.graph.gate.set()

    await asyncio.gather(*waiting)
    assert [batch[0] for batch in bench.graph.batches[1:]] == [3, 6, 2, 4, 5, 1]


async def test_queue_of_a_level_is_limited_by_its_own_policy(bench):
    queue = QueueOptions(levels=2, default_level=2, policies={1: QueuePolicy(max_requests=1)})
    bench = bench(queue=queue)
    await bench.occupied()
    waiting = [await bench.send(1, priority=1), await bench.send(2), await bench.send(3)]

    with pytest.raises(Overloaded, match=r"1 requests of priority 1 wait .* at most 1 wait \(max_queue_size\)"):
        await (await bench.send(4, priority=1))
    bench.graph.gate.set()
    assert [values(each) for each in await asyncio.gather(*waiting)] == [[2], [4], [6]]


async def test_request_that_waited_too_long_is_refused_while_the_graph_is_still_busy(bench):
    bench = bench(queue=QueueOptions(default_policy=QueuePolicy(timeout_seconds=0.01)))
    await bench.occupied()

    with pytest.raises(DeadlineExceeded, match=r"waited 0\.01 s, which is the longest that it may"):
        await (await bench.send(1, timeout_seconds=0.001))


@pytest.mark.parametrize("allowed", [True, False])
async def test_request_shortens_its_wait_only_where_the_policy_lets_it(bench, allowed):
    bench = bench(queue=QueueOptions(default_policy=QueuePolicy(timeout_seconds=3600, allows_override=allowed)))
    await bench.occupied()
    hasty, patient = await bench.send(1, timeout_seconds=0.001), await bench.send(2, timeout_seconds=7200)
    if allowed:
        with pytest.raises(DeadlineExceeded, match=r"waited 0\.001 s"):
            await hasty
    bench.graph.gate.set()

    assert values(await patient) == [4]
    assert bench.graph.batches == [[0], [2] if allowed else [1, 2]]


async def test_request_that_is_put_off_runs_behind_those_of_its_level(bench):
    delays = QueuePolicy(delays=True, allows_override=True)
    bench = bench(max_batch_size=1, queue=QueueOptions(levels=2, policies={1: delays}))
    await bench.occupied()
    first = await bench.send(1, priority=1, timeout_seconds=0.001)
    with pytest.raises(DeadlineExceeded):  # by then the other's time was over, too
        await (await bench.send(9, priority=2, deadline=asyncio.get_running_loop().time() + 0.02))
    second, last = await bench.send(2, priority=1), await bench.send(3, priority=2)
    bench.graph.gate.set()

    await asyncio.gather(first, second, last)
    assert bench.graph.batches == [[0], [2], [1], [3]]


async def test_preferred_size_is_sent_at_once_and_the_rest_waits_for_another(bench):
    bench = bench(preferred_batch_sizes=frozenset({2}), max_queue_delay_seconds=3600)
    bench.graph.gate.set()
    waiting = [await bench.send(1), await bench.send(2), await bench.send(3)]

    await asyncio.gather(*waiting[:2])
    assert bench.graph.batches == [[1, 2]]
    await asyncio.gather(waiting[2], await bench.send(4))
    assert bench.graph.batches == [[1, 2], [3, 4]]


async def test_preferred_size_is_taken_of_what_waits(bench):
    bench = bench(preferred_batch_sizes=frozenset({2}))
    await bench.occupied()
    waiting = [await bench.send(1), await bench.send(2), await bench.send(3)]
    bench.graph.gate.set()

    await asyncio.gather(*waiting)
    assert bench.graph.batches == [[0], [1, 2], [3]]


async def test_queue_delay_ends_before_it_would_cost_a_deadline(bench):
    bench = bench(max_queue_delay_seconds=3600)
    bench.graph.gate.set()
    learn(bench.durations, 1000)

    assert values(await (await bench.send(1, deadline=asyncio.get_running_loop().time() + 1000.01))) == [2]


class Watched(Statistics):
    """Tells when something was executed."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = asyncio.Event()

    def record_execution(self, batch_size, times):
        super().record_execution(batch_size, times)
        self.counted.set()


async def test_answers_keep_the_order_of_arrival_where_the_config_wants_it():
    gates = {1: threading.Event(), 2: threading.Event()}
    answered = []

    def run(inputs, outputs):
        gates[int(inputs["x"][0, 0])].wait()
        return [inputs["x"]]

    statistics = Watched()
    batcher = Batcher(run, BatchOptions(max_batch_size=1, instances=2, preserve_ordering=True), statistics)

    async def ask(value: int) -> None:
        await batcher.infer({"x": np.full((1, 1), value)}, ["y"], 1, math.inf)
        answered.append(value)

    asked = [asyncio.ensure_future(ask(1)), asyncio.ensure_future(ask(2))]
    gates[2].set()
    await statistics.counted.wait()  # the second one has run
    assert answered == []
    gates[1].set()

    await asyncio.gather(*asked)
    assert answered == [1, 2]
    batcher.close()


async def test_parts_of_a_request_are_one_answer(bench):
    bench = bench()
    bench.graph.gate.set()
    parts = [await (await bench.send(1, 2)), await (await bench.send(3))]
    merged = merge_inferences(parts)

    assert values(merged) == [2, 4, 6]
    assert merged.batch_size == 2
    assert merged.times.compute_infer == sum(part.times.compute_infer for part in parts)


requests = st.lists(
    st.tuples(
        st.integers(1, 4),  # samples
        st.sampled_from([0, 1, 2, 3]),  # priority
        st.sampled_from(["stays", "stays", "leaves", "fails", "expires"]),
        st.booleans(),  # whether the graph goes on afterwards
    ),
    max_size=25,
)


@given(requests, st.integers(4, 6), st.integers(1, 2), st.sampled_from([frozenset(), frozenset({2, 4})]))
@hypothesis_settings(max_examples=60, deadline=None)
def test_every_request_has_exactly_one_outcome_and_its_own_answer(plan, most, instances, preferred):
    options = {
        "max_batch_size": most,
        "instances": instances,
        "preferred_batch_sizes": preferred,
        "queue": QueueOptions(levels=3, default_level=2),
    }
    asyncio.run(_play(plan, options))


async def _play(plan, options) -> None:
    """Send the planned requests and compare what came of each with what must."""
    bench = Bench(Doubling(), **options)
    loop = asyncio.get_running_loop()
    tasks = []
    for number, (samples, priority, fate, goes_on) in enumerate(plan, 1):
        sent = [float(-number if fate == "fails" else number)] * samples
        deadline = loop.time() + (0.0005 if fate == "expires" else 3600)
        tasks.append(await bench.send(*sent, priority=priority, deadline=deadline))
        if fate == "leaves":
            tasks[-1].cancel()
        if goes_on:
            bench.graph.gate.set()
    bench.graph.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    bench.batcher.close()

    run = {value for batch in bench.graph.batches for value in batch}
    answered = {value for batch in bench.graph.batches if min(batch) > 0 for value in batch}
    assert all(len(batch) <= options["max_batch_size"] for batch in bench.graph.batches)
    assert not bench.batcher._waiting.samples
    assert not bench.batcher._running
    for number, (outcome, (samples, _, fate, _)) in enumerate(zip(outcomes, plan, strict=True), 1):
        if not isinstance(outcome, BaseException):
            assert fate in ("stays", "expires")  # what expires may have run in time
            assert values(outcome) == [2.0 * number] * samples
            assert number in answered
        else:
            assert isinstance(outcome, REFUSALS[fate])
            assert fate == "leaves" or number not in answered
            assert fate != "fails" or -number in run


REFUSALS = {
    "leaves": asyncio.CancelledError,
    "fails": InvalidInput,
    "expires": (DeadlineExceeded, Overloaded),
    "stays": (),
}
