"""Many images -> many tensors: in worker threads, within a bound of memory, each failing by itself."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from services.common.errors import InvalidInput, Overloaded
from services.common.manifest import PreprocessSpec
from services.common.pixels import transform
from services.preprocess.decoding import DecodeLimits, decode_image, inspect_image


class MemoryBudget:
    """Bytes that several threads share; who finds too few left waits, and who comes later waits behind."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._returned = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def taking(self, wanted: int) -> Iterator[None]:
        """Hold *wanted* bytes; more than the total counts as the total, so such an image is decoded alone."""
        taken = min(wanted, self._total)
        with self._turn, self._returned:  # without turns, a big image would starve while small ones come and go
            self._returned.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._returned:
                self._free += taken
                self._returned.notify_all()


class Preparer:
    """Decodes and transforms images in worker threads, so that a big image never stalls the event loop."""

    def __init__(self, limits: DecodeLimits, threads: int, max_decode_bytes: int, max_waiting: int) -> None:
        self._limits = limits
        self._budget = MemoryBudget(max_decode_bytes)
        self._threads = ThreadPoolExecutor(threads, "decode")
        self._max_waiting = max_waiting
        self._waiting = 0

    async def prepare(self, images: Sequence[bytes], spec: PreprocessSpec) -> list[np.ndarray | InvalidInput]:
        """Return a tensor of `spec.shape`, or what is wrong, for each image.

        Raises:
            Overloaded: Too many images wait already.
        """
        if self._waiting and self._waiting + len(images) > self._max_waiting:
            raise Overloaded(
                f"{self._waiting} images wait to be decoded and at most {self._max_waiting} may; try again",
                retry_after_seconds=1.0,
            )
        loop = asyncio.get_running_loop()
        self._waiting += len(images)
        try:
            # A cancelled call cancels what has not begun; what has begun runs to its end in its thread.
            return await asyncio.gather(
                *(loop.run_in_executor(self._threads, self._prepare_one, image, spec) for image in images)
            )
        finally:
            self._waiting -= len(images)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _prepare_one(self, data: bytes, spec: PreprocessSpec) -> np.ndarray | InvalidInput:
        try:
            header = inspect_image(data, self._limits)
            with self._budget.taking(header.decode_bytes):
                return transform(decode_image(data, self._limits), spec)
        except InvalidInput as error:
            return error
