"""When a shadow runs, what is counted, and what counts as agreement between two versions."""

import asyncio
import math
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.inference.batching.batcher import Batcher, BatchOptions
from services.inference.batching.statistics import Statistics
from services.inference.models.shadowing import Shadow, agreeing

SCORES = np.array([[0.1, 0.9], [0.6, 0.4]], np.float32)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (SCORES, SCORES, 2),
        (SCORES, SCORES[:, ::-1], 0),
        (SCORES, np.array([[0.4, 0.6], [0.9, 0.1]], np.float32), 2),  # other numbers, same classes
        (SCORES, np.array([[0.4, 0.6], [0.1, 0.9]], np.float32), 1),
        (SCORES, SCORES[:1], 0),
        (np.float32([1.0, 2.0]), np.float32([1.001, 2.0]), 2),
        (np.float32([1.0, 2.0]), np.float32([1.1, 2.0]), 1),
        (np.float32([[[1.0, 2.0]], [[3.0, 4.0]]]), np.float32([[[1.0, 2.1]], [[3.0, 4.0]]]), 1),
        (np.float32(1.0), np.float32(1.0), 2),  # an output without samples
        (np.array([1, 2, 3]), np.array([1, 2, 4]), 0),
        (np.array([1, 2]), np.array([1, 3]), 1),
        (np.array([b"a", b"b"], np.object_), np.array([b"a", b"b"], np.object_), 2),
    ],
)
def test_versions_agree_on_the_best_class_or_else_on_the_numbers(one, other, same):
    assert agreeing([one], [other], 2) == same


def test_versions_agree_on_a_sample_where_all_outputs_do():
    assert agreeing([SCORES, np.array([1, 2])], [SCORES, np.array([1, 3])], 2) == 1


@dataclass
class Version:
    """What a shadow sees of a version: a batcher, here of a graph that multiplies and may be held up."""

    factor: float = 1.0
    preprocess_digest: str = ""
    signature: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    running: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()
        self.batcher = Batcher(self._run, BatchOptions(max_batch_size=4), Statistics())
        self._loop = asyncio.get_running_loop()

    def _run(self, inputs, outputs):
        self._loop.call_soon_threadsafe(self.running.set)
        self.gate.wait()
        if (inputs["x"] < 0).any():
            raise ValueError("negative")
        return [inputs["x"] * self.factor]


class Bench:
    """A stable version, a shadow of it, and requests that are answered."""

    def __init__(self, **shadow) -> None:
        self.stable, self.candidate = Version(), Version(**shadow)
        self.shadow = Shadow(2, self.candidate)

    async def ask(self, value: float = 1):
        """Return an answer of the stable version, and what was asked."""
        inputs = {"x": np.array([value], np.float32)}
        return inputs, await self.infer(inputs)

    def infer(self, inputs):
        return self.stable.batcher.infer(inputs, ["y"], 1, math.inf)

    def offer(self, inputs, answer) -> None:
        self.shadow.offer(self.stable, inputs, ["y"], 1, answer)

    async def settled(self) -> dict[str, int]:
        """Return what is counted, without zeros, once the shadow has nothing to do."""
        if self.shadow._running is not None:
            await self.shadow._running
        counts = self.shadow.counts
        outcomes = ("agreed", "disagreed", "failed", "dropped", "skipped")
        return {outcome: getattr(counts, outcome) for outcome in outcomes if getattr(counts, outcome)}


@pytest.fixture
async def bench():
    benches = []

    def make(**shadow) -> Bench:
        benches.append(Bench(**shadow))
        return benches[-1]

    yield make
    for bench in benches:
        for version in (bench.stable, bench.candidate):
            version.gate.set()
            version.batcher.close()


@pytest.mark.parametrize(
    ("shadow", "outcome"), [({}, "agreed"), ({"factor": 2.0}, "disagreed"), ({"signature": "other"}, "skipped")]
)
async def test_request_that_finds_the_stable_version_idle_has_one_outcome(bench, shadow, outcome):
    bench = bench(**shadow)
    bench.offer(*await bench.ask())

    assert await bench.settled() == {outcome: 1}
    counts = bench.shadow.counts
    assert counts.compared == counts.shadow.count == counts.stable.count == (outcome != "skipped")
    assert (counts.shadow_ns, counts.stable_ns) == (counts.shadow.ns, counts.stable.ns)


async def test_request_on_which_the_shadow_fails_is_counted_as_that_alone(bench):
    bench = bench()
    _, answer = await bench.ask()
    bench.offer({"x": np.array([-1], np.float32)}, answer)

    assert await bench.settled() == {"failed": 1}
    assert bench.shadow.counts.shadow.count == 0


async def test_request_is_dropped_while_the_stable_version_runs_another(bench):
    bench = bench()
    asked = await bench.ask()
    bench.stable.gate.clear()
    bench.stable.running.clear()
    other = asyncio.ensure_future(bench.infer(asked[0]))
    await bench.stable.running.wait()
    bench.offer(*asked)

    assert await bench.settled() == {"dropped": 1}
    bench.stable.gate.set()
    await other
    assert not bench.candidate.running.is_set()


async def test_request_is_dropped_where_another_arrives_before_the_shadow_begins(bench):
    bench = bench()
    asked = await bench.ask()
    other = asyncio.ensure_future(bench.infer(asked[0]))
    bench.offer(*asked)

    assert bench.stable.batcher.is_idle  # the other has not reached it when the shadow is offered this one
    assert await bench.settled() == {"dropped": 1}
    await other
    assert not bench.candidate.running.is_set()


async def test_shadow_begins_after_the_step_in_which_the_answer_is_packed(bench):
    bench = bench()
    bench.offer(*await bench.ask())

    assert bench.candidate.batcher.is_idle
    assert await bench.settled() == {"agreed": 1}


async def test_under_load_each_request_is_compared_or_dropped(bench):
    bench = bench()

    async def caller() -> None:
        for _ in range(20):
            bench.offer(*await bench.ask())

    await asyncio.gather(*(caller() for _ in range(8)))
    counted = await bench.settled()

    assert counted["dropped"] > 0
    assert counted["dropped"] + counted.get("agreed", 0) == 160
