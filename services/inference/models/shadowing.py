"""Runs a second version on requests that were answered, and compares; neither they nor others wait for it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

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
    """On all of its samples."""
    disagreed: int = 0
    failed: int = 0
    dropped: int = 0
    skipped: int = 0
    samples: int = 0
    """In the requests that both versions ran."""
    agreed_samples: int = 0
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
        agreed = await asyncio.to_thread(agreeing, answer.outputs, shown.outputs, samples)  # which may be large
        self.counts.samples += samples
        self.counts.agreed_samples += agreed
        if agreed == samples:
            self.counts.agreed += 1
        else:
            self.counts.disagreed += 1
        self.counts.stable.add(answer.times.compute_infer)
        self.counts.shadow.add(shown.times.compute_infer)


def agreeing(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], samples: int) -> int:
    """Return on how many samples two answers say the same: the same best class, or else nearly the same numbers."""
    same = np.ones(samples, np.bool_)
    for one, other in zip(ours, theirs, strict=True):
        same &= _same(one, other, samples)
    return int(same.sum())


def _same(one: np.ndarray, other: np.ndarray, samples: int) -> NDArray[np.bool_] | bool:
    """Return whether each sample is the same, (samples,), or, of an output without samples, whether all of it is."""
    if one.shape != other.shape:
        return False
    if one.dtype.kind == "f" and one.ndim == 2 and one.shape[1] > 1:
        equal = one.argmax(axis=1) == other.argmax(axis=1)
    elif one.dtype.kind == "f":
        equal = np.isclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    else:
        equal = one == other
    if equal.ndim == 0 or len(equal) != samples:
        return bool(equal.all())
    same: NDArray[np.bool_] = equal.reshape(samples, -1).all(axis=1)
    return same
