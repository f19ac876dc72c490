"""HTTP bodies -> images: the body itself is one, or a multipart form holds several."""

from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gateway.failures import BODY_TOO_LARGE
from services.common.errors import InvalidInput, Overloaded


async def read_images(request: Request, max_bytes: int, max_images: int) -> list[bytes]:
    """Return the images of *request* in order.

    Raises:
        Overloaded: The body is larger than *max_bytes*; the rest of it is not read.
        InvalidInput: The form is malformed, or holds no file or too many.
    """
    chunks = _limited(request, max_bytes)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return [b"".join([chunk async for chunk in chunks])]
    parser = MultiPartParser(request.headers, chunks, max_files=max_images, max_fields=max_images)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(f"the multipart form cannot be read: {error.message}") from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    try:
        if not files:
            raise InvalidInput("the multipart form holds no file; add one part with a filename for each image")
        return [await file.read() for file in files]
    finally:
        await form.close()


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    received = int(length) if (length := request.headers.get("content-length", "")).isdigit() else 0
    _check(received, max_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        _check(received, max_bytes)
        yield chunk


def _check(received: int, max_bytes: int) -> None:
    if received > max_bytes:
        raise Overloaded(
            f"the body has {received} bytes or more; at most {max_bytes} are accepted (GATEWAY_MAX_BODY_BYTES)",
            reason=BODY_TOO_LARGE,
        )
