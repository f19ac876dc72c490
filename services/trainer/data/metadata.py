"""Takes the metadata out of image files and leaves every byte that makes pixels as it is."""

import re
from dataclasses import dataclass

from services.common.errors import InvalidInput

MAX_SCANS = 100
"""Scans of a JPEG: each is work on the whole picture. Progressive files have about ten."""
MAX_PARTS = 16_384
"""Segments or chunks of a file: each costs Python many times its bytes."""

_PNG_KEPT = {
    b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"pHYs",
}  # fmt: skip
_WEBP_KEPT = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"ANIM", b"ANMF"}
_WEBP_EXIF, _WEBP_XMP = 0x08, 0x04  # flags of VP8X
_SCAN_END = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""A marker within compressed data; stuffed zeros, restarts and padding belong to the data."""


@dataclass(frozen=True)
class Stripped:
    """A file without metadata, and what of that says how the picture is turned."""

    data: bytes
    exif: bytes | None = None
    xmp: bytes | None = None


def strip_jpeg(data: bytes) -> Stripped:
    """Keep what decodes, the colour profile and Adobe's colour transform; drop EXIF, XMP, IPTC, thumbnails, comments.

    Raises:
        InvalidInput: The file has more segments or scans than any camera writes.
    """
    view = memoryview(data)
    kept: list[bytes | memoryview] = [data[:2]]
    exif, position, scans = None, 2, 0
    for _ in range(MAX_PARTS):
        position = data.find(b"\xff", position) % (len(data) + 1)
        marker = data[position + 1 : position + 2]
        if not marker:
            return Stripped(b"".join(kept), exif)  # ends early, which its decoder tells
        if marker in b"\xff\0\1" or b"\xd0" <= marker <= b"\xd8":  # padding, and markers without content
            position += 1
            continue
        if marker == b"\xd9":  # what lies behind it belongs to phones' films and depth maps
            return Stripped(b"".join([*kept, b"\xff\xd9"]), exif)
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        content = data[position + 4 : min(end, position + 20)]
        if marker == b"\xe1" and exif is None and content.startswith(b"Exif\0\0"):
            exif = data[position + 4 : end]
        kept.append(_jpeg_segment(marker, content, view[position:end]))
        position = end
        if marker == b"\xda":
            scans += 1
            found = _SCAN_END.search(data, end)
            position = found.start() if found else len(data)
            kept.append(view[end:position])
        if scans > MAX_SCANS:
            break
    raise InvalidInput(
        f"the JPEG has more than {MAX_SCANS} scans or {MAX_PARTS:,} segments; save it again as a plain JPEG",
        reason="UNSUPPORTED_IMAGE",
    )


def _jpeg_segment(marker: bytes, content: bytes, segment: memoryview) -> bytes | memoryview:
    """Return what is kept of a segment."""
    if not (b"\xe0" <= marker <= b"\xef" or marker == b"\xfe"):
        return segment
    if marker == b"\xe0" and content.startswith(b"JFIF\0"):
        return b"\xff\xe0\x00\x10" + content[:12] + b"\0\0"  # without the thumbnail that it may hold
    is_colour = (marker == b"\xe2" and content.startswith(b"ICC_PROFILE\0")) or (
        marker == b"\xee" and content.startswith(b"Adobe")
    )
    return segment if is_colour else b""


def strip_png(data: bytes) -> Stripped:
    """Keep pixels, palette, transparency and colour; drop EXIF, texts, times and all frames but the still picture.

    Raises:
        InvalidInput: The file has more chunks than any program writes.
    """
    view = memoryview(data)
    kept: list[bytes | memoryview] = [data[:8]]
    exif, position = None, 8
    for _ in range(MAX_PARTS):
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if kind == b"eXIf":
            exif = b"Exif\0\0" + data[position + 8 : end - 4]
        if kind in _PNG_KEPT:
            kept.append(view[position:end])
        position = end
        if kind == b"IEND" or position >= len(data):
            return Stripped(b"".join(kept), exif)
    raise InvalidInput(
        f"the PNG has more than {MAX_PARTS:,} chunks; save it again with larger ones", reason="UNSUPPORTED_IMAGE"
    )


def strip_webp(data: bytes) -> Stripped:
    """Keep pixels, transparency, animation and colour profile; drop EXIF and XMP, and what announces them.

    Raises:
        InvalidInput: The file has more chunks than any program writes.
    """
    kept: list[bytes] = []
    found: dict[bytes, bytes] = {}
    flags, position = 0, 12
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for _ in range(MAX_PARTS):
        if position + 8 > end:
            content = b"WEBP" + b"".join(kept)
            return Stripped(
                b"RIFF" + len(content).to_bytes(4, "little") + content, found.get(b"EXIF"), found.get(b"XMP ")
            )
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        chunk = data[position : position + 8 + size + size % 2]
        if kind == b"VP8X" and size:
            flags = chunk[8]
            chunk = chunk[:8] + bytes([flags & ~(_WEBP_EXIF | _WEBP_XMP)]) + chunk[9:]
        if kind in _WEBP_KEPT:
            kept.append(chunk)
        elif flags & {b"EXIF": _WEBP_EXIF, b"XMP ": _WEBP_XMP}.get(kind, 0):  # else no decoder minds it
            found.setdefault(kind, chunk[8 : 8 + size])
        position += len(chunk)
    raise InvalidInput(
        f"the WebP has more than {MAX_PARTS:,} chunks; save it again as a still picture", reason="UNSUPPORTED_IMAGE"
    )
