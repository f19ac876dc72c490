"""Bodies that are sent compressed, in and out; what comes in is bounded by what it unpacks to."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable

from fastapi import Request

from gateway.bodies import within_limits
from services.common.errors import InvalidInput

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # as zlib names the two formats; "deflate" is zlib's own, as Triton has it
_STEP_BYTES = 1024 * 1024
"""Unpacked at once: between steps the limits are asked, so that a small body that unpacks to a huge one ends here."""
_QUICK_BYTES = 16 * 1024
"""Compressed in the loop itself; more in a thread, which takes longer to reach than this takes to do."""


async def read_body(request: Request, max_bytes: int, take: Callable[[int], None]) -> bytes:
    """Return the body of *request*, unpacked where its `Content-Encoding` says so.

    Args:
        request: Its body is not read yet.
        max_bytes: Largest body, unpacked.
        take: Asked for room before a part is kept; from `BodyBudget`.

    Raises:
        Overloaded: The body is larger than *max_bytes*, or there is no room for it; the rest of it is not read.
        InvalidInput: It cannot be unpacked.
    """
    chunks = _unpacked(request.stream(), request.headers.get("content-encoding", "identity").lower())
    return b"".join([chunk async for chunk in within_limits(request, chunks, max_bytes, take)])


def compress(body: bytes, encoding: str) -> bytes:
    """Return *body* in an encoding of `chosen_encoding`; tensors seldom shrink much, so the quickest level it is."""
    packer = zlib.compressobj(1, wbits=_WINDOW_BITS[encoding])
    return packer.compress(body) + packer.flush()


async def compressed(body: bytes, encoding: str) -> bytes:
    """Do what `compress` does, beside the loop where it takes long."""
    if len(body) <= _QUICK_BYTES:
        return compress(body, encoding)
    return await asyncio.to_thread(compress, body, encoding)


def chosen_encoding(accepted: str) -> str | None:
    """Return which of gzip and deflate the client likes best by its `Accept-Encoding`; None for neither."""
    best, best_weight = None, 0.0
    for each in accepted.lower().split(","):
        name, _, weight_text = each.partition(";q=")
        weight = _weight(weight_text)
        if name.strip() in (*_WINDOW_BITS, "identity") and weight > best_weight:
            best, best_weight = name.strip(), weight
    return best if best in _WINDOW_BITS else None


def _weight(text: str) -> float:
    try:
        return float(text or 1)
    except ValueError:
        return 0.0


async def _unpacked(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    if encoding in ("", "identity"):
        async for chunk in chunks:
            yield chunk
        return
    if encoding not in _WINDOW_BITS:
        raise InvalidInput(f"content-encoding is {encoding[:40]!r}; send gzip, deflate or identity")
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    async for chunk in chunks:
        part, rest = b"", chunk
        while rest or len(part) == _STEP_BYTES:  # of a full step zlib may hold more back
            part = await asyncio.to_thread(_step, unpacker, rest, encoding)
            yield part
            if unpacker.unused_data:
                raise InvalidInput(f"the {encoding} body goes on after its end; send one compressed whole")
            rest = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise InvalidInput(f"the {encoding} body ends early; send it whole")


def _step(unpacker: "zlib._Decompress", data: bytes, encoding: str) -> bytes:
    try:
        return unpacker.decompress(data, _STEP_BYTES)
    except zlib.error as error:
        raise InvalidInput(
            f"the body cannot be unpacked as {encoding}: {error}; compress it with {encoding}, "
            "or leave content-encoding out"
        ) from error
