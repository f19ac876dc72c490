"""Runs a second version on requests that were answered, and compares; neither they nor others wait for it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog

from services.common.metrics import Latencies
from services.common.statuses import status_of
from services.inference.batching.batcher import Inference
from services.inference.engine import Arrays
from services.inference.models.version import LoadedVersion

log = structlog.get_logger(__name__)

SHADOW_SECONDS = 10.0
"""After this time in the queue a shadow's run is given up."""
TOLERANCE = 1e-2
"""Outputs of a graph that is no classifier agree when they are this close, relatively or absolutely."""


@dataclass
class ShadowCounts:
    """What became of the requests that a shadow was offered; each is counted once."""

    version: int
    agreed: int = 0
    disagreed: int = 0
    failed: int = 0
    dropped: int = 0
    skipped: int = 0
    shadow: Latencies = field(default_factory=Latencies)
    """Of its graph, for the requests that both versions ran."""
    stable: Latencies = field(default_factory=Latencies)
    """Of the stable version's graph, for the same."""

    @property
    def compared(self) -> int:
        """Requests that both versions ran."""
        return self.agreed + self.disagreed

    @property
    def shadow_ns(self) -> int:
        """Nanoseconds in the shadow's graph."""
        return self.shadow.ns

    @property
    def stable_ns(self) -> int:
        """Nanoseconds in the stable version's graph."""
        return self.stable.ns


class Shadow:
    """The shadow of one model: one run at a time, begun only while the stable version has nothing to do."""

    def __init__(self, number: int, version: LoadedVersion) -> None:
        self.counts = ShadowCounts(number)
        self._version = version
        self._running: asyncio.Task[None] | None = None

    def offer(
        self, stable: LoadedVersion, inputs: Arrays, outputs: Sequence[str], samples: int, answer: Inference
    ) -> None:
        """Take an answered request in, or leave it out and count why. Returns at once."""
        if stable.preprocess_digest != self._version.preprocess_digest or stable.signature != self._version.signature:
            self.counts.skipped += 1
        elif not stable.batcher.is_idle or (self._running is not None and not self._running.done()):
            self.counts.dropped += 1
        else:  # a task begins in a later step of the loop: by then this one's answer is packed
            self._running = asyncio.create_task(self._compare(stable, inputs, outputs, samples, answer))

    def is_of(self, version: LoadedVersion | None) -> bool:
        """Whether it compares *version*."""
        return self._version is version

    def close(self) -> None:
        """Give up what runs."""
        if self._running is not None:
            self._running.cancel()

    async def _compare(
        self, stable: LoadedVersion, inputs: Arrays, outputs: Sequence[str], samples: int, answer: Inference
    ) -> None:
        if not stable.batcher.is_idle:  # callers that were answered in the same step are back
            self.counts.dropped += 1
            return
        deadline = asyncio.get_running_loop().time() + SHADOW_SECONDS
        try:
            shown = await self._version.batcher.infer(inputs, outputs, samples, deadline)
        except Exception as error:  # whatever a candidate does, the answer has left
            self.counts.failed += 1
            log.info("shadow failed", version=self.counts.version, message=status_of(error).message)
            return
        if await asyncio.to_thread(agree, answer.outputs, shown.outputs):  # which may be large
            self.counts.agreed += 1
        else:
            self.counts.disagreed += 1
        self.counts.stable.add(answer.times.compute_infer)
        self.counts.shadow.add(shown.times.compute_infer)


def agree(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool:
    """Whether two answers say the same: the same best class of each sample, or else nearly the same numbers."""
    return all(_agree(one, other) for one, other in zip(ours, theirs, strict=True))


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind == "f" and one.ndim == 2 and one.shape[1] > 1:
        return bool(np.array_equal(one.argmax(axis=1), other.argmax(axis=1)))
    if one.dtype.kind == "f":
        return bool(np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
    return bool(np.array_equal(one, other))
