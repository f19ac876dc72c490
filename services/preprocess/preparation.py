"""Many images -> many tensors -> bytes: in worker threads, within a bound of memory, each failing by itself."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from services.common.errors import InvalidInput, Overloaded
from services.common.manifest import PreprocessSpec
from services.common.pixels import transform
from services.preprocess.decoding import DecodeLimits, decode_image, inspect_image

JOIN_AT_ONCE_BYTES = 1024 * 1024
"""Less takes the event loop half a millisecond; from here on, `bytes.join` lets other threads run meanwhile."""


@dataclass(frozen=True)
class Prepared:
    """What became of one image, and how long that took (nanoseconds)."""

    outcome: np.ndarray | InvalidInput
    """A tensor of `spec.shape`, or what is wrong with the image."""
    waited: int
    """For a thread."""
    took: int
    """In the thread, where it may have waited for memory."""


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
    """Decodes and transforms images in worker threads, so that a big image never stalls the event loop.

    Args:
        limits: What one image may cost.
        threads: Images decoded at the same time.
        budget: Memory that they share.
        max_waiting_images: Images of all requests that are not answered yet.
        max_waiting_bytes: Bytes of those images, encoded.
    """

    def __init__(
        self,
        limits: DecodeLimits,
        threads: int,
        budget: MemoryBudget,
        max_waiting_images: int,
        max_waiting_bytes: int,
    ) -> None:
        self._limits = limits
        self._budget = budget
        self._threads = ThreadPoolExecutor(threads, "decode")
        self._max_waiting_images = max_waiting_images
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_images = 0
        self._waiting_bytes = 0

    async def prepare(self, images: Sequence[bytes], spec: PreprocessSpec) -> list[Prepared]:
        """Return what became of each image.

        Raises:
            Overloaded: Too many images wait already, or images of too many bytes.
        """
        loop = asyncio.get_running_loop()
        with self._room(len(images), sum(map(len, images))):
            # A cancelled call cancels what has not begun; what has begun runs to its end in its thread.
            begin = time.perf_counter_ns()
            return await asyncio.gather(
                *(loop.run_in_executor(self._threads, self._prepare_one, image, spec, begin) for image in images)
            )

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _room(self, images: int, size: int) -> Iterator[None]:
        """Count a request as waiting. Alone it always may: its own size has limits of its own."""
        if self._waiting_images:
            _check_room("images", self._waiting_images, images, self._max_waiting_images)
            _check_room("bytes of images", self._waiting_bytes, size, self._max_waiting_bytes)
        self._waiting_images += images
        self._waiting_bytes += size
        try:
            yield
        finally:
            self._waiting_images -= images
            self._waiting_bytes -= size

    def _prepare_one(self, data: bytes, spec: PreprocessSpec, arrival: int) -> Prepared:
        begin = time.perf_counter_ns()
        outcome = self._transform(data, spec)
        return Prepared(outcome, begin - arrival, time.perf_counter_ns() - begin)

    def _transform(self, data: bytes, spec: PreprocessSpec) -> np.ndarray | InvalidInput:
        try:
            header = inspect_image(data, self._limits)
            with self._budget.taking(header.decode_bytes):
                return transform(decode_image(data, self._limits), spec)
        except InvalidInput as error:
            return error


def _check_room(unit: str, waiting: int, more: int, limit: int) -> None:
    if waiting + more > limit:
        raise Overloaded(
            f"{waiting:,} {unit} wait to be decoded, and with the {more:,} of this request it would be more than the "
            f"limit of {limit:,}; try again, or send fewer images at once",
            retry_after_seconds=1.0,
        )


async def join_tensors(tensors: Sequence[np.ndarray]) -> bytes:
    """Return the bytes of C-contiguous *tensors*, one after the other."""
    if sum(tensor.nbytes for tensor in tensors) < JOIN_AT_ONCE_BYTES:
        return b"".join(tensor.data for tensor in tensors)
    return await asyncio.to_thread(_join_in_thread, tensors)


def _join_in_thread(tensors: Sequence[np.ndarray]) -> bytes:
    # Arrays could be joined without this copy of each, but under the interpreter lock: 90 ms for 150 MB.
    return b"".join([tensor.tobytes() for tensor in tensors])
