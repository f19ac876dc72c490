"""HTTP bodies within limits; as images: the body itself is one, or a multipart form holds several."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gateway.failures import BODY_TOO_LARGE
from services.common.errors import InvalidInput, Overloaded

MORE_FIELDS = 16
"""Fields that a form may hold beside its files."""


class BodyBudget:
    """Bytes of all bodies that are held at the same time: what comes beyond is refused instead of stored."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held = 0

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes further bytes for one body; all are given back at the end.

        Raises:
            Overloaded: By that function, when too many bytes are held already.
        """
        own = 0

        def take(count: int) -> None:
            nonlocal own
            if self._held + count > self._total:
                raise Overloaded(
                    f"the bodies of other requests take {self._held - own} of {self._total} bytes "
                    "(GATEWAY_MAX_BODIES_BYTES); try again",
                    retry_after_seconds=1.0,
                )
            self._held += count
            own += count

        try:
            yield take
        finally:
            self._held -= own


async def read_images(request: Request, max_bytes: int, max_images: int, take: Callable[[int], None]) -> list[bytes]:
    """Return the images of *request* in order.

    Args:
        request: Its body is one image, or a multipart form of several.
        max_bytes: Largest body.
        max_images: Most images.
        take: Asked for room before a chunk is kept; from `BodyBudget`.

    Raises:
        Overloaded: The body is larger than *max_bytes*, or there is no room for it; the rest of it is not read.
        InvalidInput: The form is malformed, or holds no file or too many.
    """
    if not is_form(request):
        return [b"".join([chunk async for chunk in within_limits(request, request.stream(), max_bytes, take)])]
    _, files = await read_form(request, max_bytes, max_images, take)
    if not files:
        raise InvalidInput("the multipart form holds no file; add one part with a filename for each image")
    return files


def is_form(request: Request) -> bool:
    """Whether the body of *request* is a multipart form."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def read_form(
    request: Request, max_bytes: int, max_files: int, take: Callable[[int], None]
) -> tuple[dict[str, str], list[bytes]]:
    """Return the fields and the files of a multipart form, the files in order.

    Args:
        request: Its body is a form.
        max_bytes: Largest body.
        max_files: Most files, and most fields beside them.
        take: Asked for room before a chunk is kept; from `BodyBudget`.

    Raises:
        Overloaded: The body is larger than *max_bytes*, or there is no room for it; the rest of it is not read.
        InvalidInput: The form is malformed, or holds too many files.
    """
    chunks = within_limits(request, request.stream(), max_bytes, take)
    parser = _FormParser(request.headers, chunks, max_files=max_files, max_fields=max_files + MORE_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(
            f"the multipart form cannot be read: {error.message.rstrip('.')}; "
            f"send 1 to {max_files} images, each as a part between the form's boundaries"
        ) from error
    try:
        if not parser.complete:
            raise InvalidInput("the multipart form ends before its closing boundary; send it whole")
        parts = form.multi_items()
        fields = {name: value for name, value in parts if isinstance(value, str)}
        return fields, [await value.read() for _, value in parts if isinstance(value, UploadFile)]
    finally:
        await form.close()


class _FormParser(MultiPartParser):
    """Knows whether a form had its end: one that was cut off would lose images without a word."""

    complete = False

    def on_end(self) -> None:
        self.complete = True


async def within_limits(
    request: Request, chunks: AsyncIterator[bytes], max_bytes: int, take: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """Yield *chunks*, the body of *request* as it came or unpacked.

    Args:
        request: Its body is not read yet.
        chunks: What becomes of the body.
        max_bytes: Largest body, as it is stated, and as it comes out.
        take: Asked for room before a chunk is kept; from `BodyBudget`.

    Raises:
        Overloaded: The body is larger than *max_bytes*, or there is no room for it; the rest of it is not read.
    """
    stated = request.headers.get("content-length", "")
    _check_size(int(stated) if stated.isdigit() else 0, max_bytes)
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        _check_size(received, max_bytes)
        take(len(chunk))
        yield chunk


def _check_size(received: int, max_bytes: int) -> None:
    if received > max_bytes:
        raise Overloaded(
            f"the body has {received} bytes or more, unpacked where it is compressed; at most {max_bytes} are accepted "
            "(GATEWAY_MAX_BODY_BYTES); send less at once",
            reason=BODY_TOO_LARGE,
        )
