"""Reads AVIF files as far as their sizes: boxes, items, and the units of their AV1 data."""

import re
from collections.abc import Iterator
from io import BytesIO
from itertools import islice

from services.common.pixels import MAX_EXIF_BYTES
from services.preprocess.refusals import unsupported

MAX_PARTS = 16_384
"""Boxes, items, units; in other formats segments, chunks, tags: each costs Python many times its bytes.

A 50-megapixel TIFF may have 8,000 strips.
"""
_EXIF = re.compile(rb".{4}(?:Exif\0\0){0,2}(?:II|MM)(?:[*+]\0|\0[*+])", re.DOTALL)


def avif_essentials(data: bytes) -> bytes:
    """Turn an image sequence into its still picture: one place less that names sizes."""
    return data[:8] + b"avif" + data[12:] if data[8:12] == b"avis" else data


def av1_frames(data: bytes) -> list[tuple[int, int]]:
    """Return the sizes that the AV1 data names: libavif decodes those, and only then fits them to the header's."""
    sizes: list[tuple[int, int]] = []
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"meta":
            children = boxes(data, start + 4, end)
            inner = next((start for kind, start, _ in children if kind == b"idat"), 0)
            for start, end in (box[1:] for box in children if box[0] == b"iloc"):
                for method, offset, length in _avif_items(data[start:end]):
                    begin = offset + (inner if method == 1 else 0)
                    if length > MAX_EXIF_BYTES and _EXIF.match(data, begin):
                        raise unsupported("AVIF", f"EXIF of more than {MAX_EXIF_BYTES:,} bytes")
                    sizes += islice(_av1_sizes(data, begin, begin + length), MAX_PARTS + 1)
                    if len(sizes) > MAX_PARTS:
                        raise unsupported("AVIF", f"a picture of more than {MAX_PARTS:,} units")
    return sizes


def boxes(data: bytes, start: int, end: int) -> list[tuple[bytes, int, int]]:
    """Return kind, start and end of the content of the ISO base media boxes side by side."""
    found: list[tuple[bytes, int, int]] = []
    while start + 8 <= end:
        if len(found) == MAX_PARTS:
            raise unsupported("AVIF", f"a file of more than {MAX_PARTS:,} boxes")
        size, kind, content = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], start + 8
        if size == 1:
            size, content = int.from_bytes(data[content : content + 8]), content + 8
        start = max(content, start + size) if size else end
        found.append((kind, content, start))
    return found


def _avif_items(iloc: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield construction method, offset and length of the data of each item."""
    reader = BytesIO(iloc)

    def number(size: int) -> int:
        return int.from_bytes(reader.read(size))

    version, sizes = number(4) >> 24, number(2)
    wide = 4 if version == 2 else 2
    items = number(wide)
    if items > MAX_PARTS:
        raise unsupported("AVIF", f"a file of more than {MAX_PARTS:,} items")
    for _ in range(items):
        number(wide)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(sizes >> 4 & 15)
        pieces = number(2)
        if pieces > 1:
            raise unsupported("AVIF", "data in several pieces")
        if pieces:
            number(sizes & 15 if version else 0)
            offset, length = number(sizes >> 12), number(sizes >> 8 & 15)
            yield method, base + offset, length


def _av1_sizes(data: bytes, position: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the picture size of each sequence header, and 0 x 0 for each other unit."""
    end = min(end, len(data))
    while position < end:
        head = data[position]
        position += 1 + (head >> 2 & 1)
        size, shift, more = (0, 0, True) if head & 2 else (end - position, 0, False)
        while more:
            size |= (data[position] & 127) << shift
            more, shift, position = data[position] > 127, shift + 7, position + 1
        yield _av1_sequence(data[position : position + min(size, 128)]) if head >> 3 & 15 == 1 else (0, 0)
        position += size


def _av1_sequence(header: bytes) -> tuple[int, int]:
    digits = iter(f"{int.from_bytes(header):0{8 * len(header)}b}")

    def bits(count: int) -> int:
        return int("".join(islice(digits, count)) or "0", 2)

    bits(4)
    reduced = bits(1)
    if reduced:
        bits(5)
    elif bits(1):
        raise unsupported("AVIF", "timing information")
    else:
        delay = bits(1)
        for _ in range(bits(5) + 1):
            bits(12)
            bits(1 if bits(5) > 7 else 0)
            bits(4 if delay and bits(1) else 0)
    wide, high = bits(4) + 1, bits(4) + 1
    width, height = bits(wide) + 1, bits(high) + 1
    # A frame may name another size in as many bits. Encoders take as few as the size needs, or one more.
    if not reduced and (wide > width.bit_length() or high > height.bit_length()):
        raise unsupported("AVIF", "a frame that may be larger than its header says")
    return width, height
