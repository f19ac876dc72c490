"""Reads image files as containers: what makes their pixels, which sizes they name, whether they are whole.

A file is cut down to what makes pixels before Pillow sees it: metadata is where few bytes become much memory, and where
harmless damage would cost the picture.
"""

from typing import Literal

from PIL.TiffImagePlugin import TiffImageFile

from services.preprocess.avif import MAX_PARTS, avif_essentials, boxes
from services.preprocess.refusals import truncated, unsupported

MAX_SCANS = 100
"""Scans of a JPEG: each is work on the whole picture. Progressive files have about ten."""

# Size, kind of samples, compression and its options, where the pixels are, palette, orientation.
_TIFF_TAGS = {*range(256, 260), 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 338, 339}
_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of a value, by its type; else 1
# None, CCITT, LZW, Deflate, PackBits. JPEG, WebP and others in TIFF would be decoders within a decoder.
_TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32773, 32946}


def _jpeg_essentials(data: bytes) -> bytes:
    """Leave out thumbnails, profiles, comments and all EXIF but the first: Pillow joins those in quadratic time."""
    view, position, exif = memoryview(data), 2, False
    kept = [view[:2]]
    for _ in range(MAX_PARTS):
        position = data.find(b"\xff", position) % (len(data) + 1)
        marker = data[position + 1 : position + 2]
        if marker in (b"", b"\xda"):  # from here on it is the picture
            break
        if marker in b"\xff\0\1" or b"\xd0" <= marker <= b"\xd9":  # padding, and markers without content
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        first_exif = not exif and data.startswith(b"Exif\0\0", position + 4)
        if first_exif or marker in b"\xe0\xee" or not b"\xe0" <= marker <= b"\xfe":  # JFIF, Adobe, no APPn and COM
            kept.append(view[position:end])
        exif, position = exif or first_exif, end
    else:
        raise unsupported("JPEG", f"a header of more than {MAX_PARTS:,} segments")
    if data.count(b"\xff\xda", position) > MAX_SCANS:
        raise unsupported("JPEG", f"a picture of more than {MAX_SCANS} scans")
    return b"".join([*kept, view[position:]])


def _png_essentials(data: bytes) -> bytes:
    """Leave out texts and profiles, which unpack to a thousand times their size, and animation."""
    view, position = memoryview(data), 8
    kept = [view[:8]]
    for _ in range(MAX_PARTS):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"):
            kept.append(view[position:end])
        position = end
        if position >= len(data):
            return b"".join(kept)
    raise unsupported("PNG", f"a file of more than {MAX_PARTS:,} chunks")


def _gif_essentials(data: bytes) -> bytes:
    """Leave out comments and applications' extensions: Pillow holds each of their blocks, which may be a byte."""
    view, position = memoryview(data), 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    kept = [view[:position]]
    for _ in range(MAX_PARTS):
        if data[position : position + 1] != b"!":
            return b"".join([*kept, view[position:]])
        end = position + 2
        while data[end]:
            end += 1 + data[end]
        if data[position + 1] == 0xF9:  # timing and transparency
            kept.append(view[position : end + 1])
        position = end + 1
    raise unsupported("GIF", f"a header of more than {MAX_PARTS:,} extensions")


def _tiff_essentials(data: bytes) -> bytes:
    """Cut the first directory down to the tags that make pixels, and the others off."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    end = start + 2 + 12 * int.from_bytes(data[start : start + 2], order)
    if end > len(data):  # half a directory may decode, to other pixels
        raise truncated("TIFF", data)
    kept: dict[int, bytes] = {}
    for entry in (data[at : at + 12] for at in range(start + 2, end, 12)):
        tag, kind, value = (int.from_bytes(entry[at : at + 2], order) for at in (0, 2, 8))
        count, place = (int.from_bytes(entry[at : at + 4], order) for at in (4, 8))
        if tag in _TIFF_TAGS:
            kept.setdefault(tag, entry)
            size = count * _TIFF_BYTES.get(kind, 1)
            if size > 4 and place + size > len(data):
                raise truncated("TIFF", data)
        if tag == 259 and value not in _TIFF_COMPRESSIONS:
            raise unsupported("TIFF", f"its compression {value}")
    if sum(int.from_bytes(entry[4:8], order) for entry in kept.values()) > 2 * MAX_PARTS:  # offset and length of each
        raise unsupported("TIFF", f"a picture of more than {MAX_PARTS:,} strips")
    directory = len(kept).to_bytes(2, order) + b"".join(kept.values())
    return data[:start] + directory.ljust(end + 4 - start, b"\0") + data[end + 4 :]


def tiff_tile(image: TiffImageFile, data: bytes) -> tuple[int, int]:
    """Return the size of a tile, which may be larger than the picture, or 1 x 1."""
    tags = image.tag_v2
    if tags.get(258) == (12,):
        raise unsupported("TIFF", "12 bits per sample")  # Pillow gives it as if it were 16
    starts, counts = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
    if tags.get(259, 1) != 1 and any(start + count > len(data) for start, count in zip(starts, counts, strict=False)):
        raise truncated("TIFF", data)
    return tags.get(322, 1), tags.get(323, 1)


ESSENTIALS = {
    "JPEG": _jpeg_essentials,
    "PNG": _png_essentials,
    "GIF": _gif_essentials,
    "TIFF": _tiff_essentials,
    "AVIF": avif_essentials,
}


def webp_canvas(data: bytes) -> tuple[int, int]:
    """Return the size for which libwebp allocates."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def ends_early(name: str, data: bytes) -> bool:
    """Whether a file that could not be decoded lacks its end."""
    match name:
        case "JPEG":
            return b"\xff\xd9" not in _jpeg_essentials(data)
        case "PNG":
            return b"IEND" not in data
        case "WebP":
            return len(data) < 8 + int.from_bytes(data[4:8], "little")
        case "GIF":
            return not data.rstrip(b"\0").endswith(b";")
        case "AVIF":
            found = boxes(data, 0, len(data))
            return found[-1][2] != len(data) or all(kind != b"mdat" for kind, _, _ in found)
        case _:
            return False
