"""Runs a second version on requests that were answered, and compares; the answers never wait for it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog

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
    """What a shadow has shown; times in nanoseconds, of both versions' graphs for the requests that both ran."""

    version: int
    compared: int = 0
    agreed: int = 0
    failed: int = 0
    dropped: int = 0
    skipped: int = 0
    shadow_ns: int = 0
    stable_ns: int = 0


class Shadow:
    """The shadow of one model: one run at a time, and only while the stable version has nothing to do."""

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
        elif self._running is not None and not self._running.done():
            self.counts.dropped += 1
        else:
            self._running = asyncio.create_task(self._compare(inputs, outputs, samples, answer))

    def is_of(self, version: LoadedVersion | None) -> bool:
        """Whether it compares *version*."""
        return self._version is version

    def close(self) -> None:
        """Give up what runs."""
        if self._running is not None:
            self._running.cancel()

    async def _compare(self, inputs: Arrays, outputs: Sequence[str], samples: int, answer: Inference) -> None:
        deadline = asyncio.get_running_loop().time() + SHADOW_SECONDS
        try:
            shown = await self._version.batcher.infer(inputs, outputs, samples, deadline)
        except Exception as error:  # whatever a candidate does, the answer has left
            self.counts.failed += 1
            log.info("shadow failed", version=self.counts.version, message=status_of(error).message)
            return
        self.counts.compared += 1
        self.counts.agreed += agree(answer.outputs, shown.outputs)
        self.counts.stable_ns += answer.times.compute_infer
        self.counts.shadow_ns += shown.times.compute_infer


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
