"""Turns image files that nobody vouches for into pixels, within limits that hold before anything is allocated."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any, Literal

from PIL import AvifImagePlugin, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from services.common.errors import InvalidInput
from services.common.pixels import MAX_EXIF_BYTES, exif_orientation, upright

# Our own check comes first and knows the caller's limit; Pillow's is one for the whole process.
Image.MAX_IMAGE_PIXELS = None
# A decode takes the thread that it was given: whoever bounds the threads bounds the load.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Pillow warns about odd metadata in words from the file, and each new text would stay in memory and in the log.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_SIDE = 65_535
"""Longest side in pixels, as in JPEG: resampling a longer one costs memory however few pixels it has."""
MAX_PARTS = 16_384
"""Segments, chunks, tags, boxes: each costs Python many times its bytes. A 50-megapixel TIFF may have 8,000 strips."""
MAX_SCANS = 100
"""Scans of a JPEG: each is work on the whole picture. Progressive files have about ten."""

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,  # called directly: Image.open makes MPO of phones' files and hides what is wrong
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II\*\0|MM\0\*",
    "AVIF": rb"....ftyp(?:.{4}){0,16}?avi[fs]",
    "HEIC": rb"....ftyp(?:hei|hev|mif1|msf1)",
    "video": rb"....ftyp",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "SVG": rb"\W{0,9}<(?:svg|[?!].{0,2000}?<svg)\b",
    "PDF": rb"%PDF-",
    "PostScript": rb"%!PS",
    "PSD": rb"8BPS",
    "icon": rb"\0\0[\1\2]\0|icns",
    "BigTIFF": rb"II\+\0|MM\0\+",
}
_EXIF = re.compile(rb".{4}(?:Exif\0\0){0,2}(?:II|MM)(?:[*+]\0|\0[*+])", re.DOTALL)
# Size, kind of samples, compression and its options, where the pixels are, palette, orientation.
_TIFF_TAGS = {*range(256, 260), 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 338, 339}
_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # of a value, by its type; else 1
# None, CCITT, LZW, Deflate, PackBits. JPEG, WebP and others in TIFF would be decoders within a decoder.
_TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32773, 32946}
# Bytes per pixel at the peak, those of the decoder also per channel. Measured as VmHWM of `decode_image`, then
# `transform`, on 4000 x 3000 pixels, above the file and its copy:
#   JPEG  RGB 4.0, turned upright 8.0, grey 1.0, CMYK 8.0; progressive 4:2:0 7.0, 4:4:4 10.0, grey 3.0, CMYK 12.0
#   PNG   RGB 4.0, upright 8.0, RGBA 8.0, LA 12.0, palette 5.0, with transparency 9.0, 16-bit grey 7.2
#   WebP  16.0 of every kind; GIF 5.2, with transparency 9.0; BMP 4.2
#   TIFF  RGB 4.0, upright 8.0, CMYK 8.0, LAB 8.2, 32-bit 12.0, all with strips; one compressed strip adds itself
#   AVIF  8-bit RGB 9.0, 4:4:4 10.5, RGBA 11.5, grey 3.5; reckoned for 12-bit 4:4:4 in a grid
_CODEC_BYTES = {"WebP": 12, "TIFF": 8}
_CODEC_BYTES_PER_CHANNEL = {"JPEG": 2, "AVIF": 5}
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}  # else 4
_CONVERSION_BYTES = {"1": 2, "L": 2, "RGB": 4, "I": 12, "F": 12}  # else 8


@dataclass(frozen=True)
class DecodeLimits:
    """What one picture may cost."""

    max_image_bytes: int
    """Of the encoded file."""
    max_image_pixels: int
    """Width times height."""


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about its picture, before any pixel is decoded."""

    format: str
    width: int
    height: int
    mode: str
    """Pillow's name for the kind of pixels."""
    decode_bytes: int
    """Upper estimate of what `decode_image` and `transform` take at their peak, without the file and the tensor."""


def inspect_image(data: bytes, limits: DecodeLimits) -> ImageHeader:
    """Read only the header of *data*.

    Raises:
        InvalidInput: As `decode_image`, as far as the header tells.
    """
    name = _recognise(data, limits)
    with _explained(name, data):
        image, pixels = _open(name, data, limits)
        return ImageHeader(name, *image.size, image.mode, _decode_bytes(name, image, pixels, len(data)))


def decode_image(data: bytes, limits: DecodeLimits) -> Image.Image:
    """Return the first picture of *data*, upright, in the mode that it was stored in.

    Any number of threads may call it at once; Pillow's decoders release the interpreter lock.

    Raises:
        InvalidInput: EMPTY_IMAGE, NOT_AN_IMAGE, UNSUPPORTED_IMAGE, TRUNCATED_IMAGE, DAMAGED_IMAGE, TOO_MANY_BYTES
            or TOO_MANY_PIXELS.
    """
    name = _recognise(data, limits)
    with _explained(name, data):
        image, _ = _open(name, data, limits)
        image.load()
        # Shares the pixels only: the plug-in's own object would keep the file and its decoder's buffers alive.
        plain = image._new(image.im)
        plain.info = _transparency(name, data, image)
        return upright(plain, exif_orientation(image))


def _recognise(data: bytes, limits: DecodeLimits) -> str:
    count, limit = len(data), limits.max_image_bytes
    if not data:
        raise _refusal("EMPTY_IMAGE", "the image has 0 bytes; send an image file")
    if count > limit:
        message = f"the image has {count:,} bytes; the limit is {limit:,}; compress it more or make it smaller"
        raise _refusal("TOO_MANY_BYTES", message, bytes=count, limit=limit)
    name = next((name for name, magic in _MAGIC.items() if re.match(magic, data, re.DOTALL)), None)
    advice = f"send {', '.join(_PLUGINS)}"
    if name is None:
        raise _refusal("NOT_AN_IMAGE", f"the {count:,} bytes do not begin like an image; {advice}")
    if name not in _PLUGINS:
        raise _unsupported(name, "this format", advice)
    return name


def _refusal(reason: str, message: str, **details: int) -> InvalidInput:
    return InvalidInput(message, reason=reason, details={key: str(value) for key, value in details.items()})


def _unsupported(name: str, feature: str, advice: str = "save it again as PNG or JPEG") -> InvalidInput:
    return _refusal("UNSUPPORTED_IMAGE", f"the image is {name}, and {feature} is not supported; {advice}")


def _truncated(name: str, data: bytes) -> InvalidInput:
    return _refusal("TRUNCATED_IMAGE", f"the {name} image ends early, after {len(data):,} bytes; send the whole file")


@contextmanager
def _explained(name: str, data: bytes) -> Iterator[None]:
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:  # hostile bytes make decoders raise anything, from struct.error to MemoryError
        if _ends_early(name, data) or "truncated" in str(error).lower():
            raise _truncated(name, data) from error
        if re.search("nsupported|cannot handle|unknown pixel mode", str(error)):
            raise _unsupported(name, "a feature that it uses") from error
        raise _refusal("DAMAGED_IMAGE", f"the {name} image of {len(data):,} bytes is damaged; send it anew") from error


def _check_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    pixels, limit = width * height, limits.max_image_pixels
    message = f"the image has {width:,} x {height:,} = {pixels:,} pixels; the limit"
    if pixels > limit:
        raise _refusal("TOO_MANY_PIXELS", f"{message} is {limit:,}; make it smaller", pixels=pixels, limit=limit)
    if max(width, height) > MAX_SIDE:
        raise _refusal("TOO_MANY_PIXELS", f"{message} of a side is {MAX_SIDE:,}; make it shorter", limit=MAX_SIDE)


def _open(name: str, data: bytes, limits: DecodeLimits) -> tuple[ImageFile.ImageFile, int]:
    """Return the plug-in's picture, of which only the header is read, and the pixels of its largest buffer."""
    # Pillow allocates WebP's canvas and unpacks AVIF's EXIF while it opens them, so these are looked at before.
    sizes = [_webp_canvas(data)] if name == "WebP" else _av1_frames(data) if name == "AVIF" else []
    for size in sizes:
        _check_pixels(*size, limits)
    essentials = _ESSENTIALS.get(name, bytes)
    image = _PLUGINS[name](BytesIO(essentials(data)))
    sizes.append(image.size)
    if isinstance(image, TiffImageFile):
        sizes.append(_tiff_tile(image, data))
    if name == "BMP" and image.tile[0].codec_name == "bmp_rle":
        raise _unsupported(name, "run-length encoding")  # Pillow decodes it in Python: seconds of the interpreter lock
    for size in sizes:
        _check_pixels(*size, limits)
    return image, max(width * height for width, height in sizes)


def _decode_bytes(name: str, image: ImageFile.ImageFile, pixels: int, file_bytes: int) -> int:
    codec = _CODEC_BYTES.get(name, 0) + _CODEC_BYTES_PER_CHANNEL.get(name, 0) * len(image.getbands())
    conversion = 8 if "transparency" in image.info else _CONVERSION_BYTES.get(image.mode, 8)
    parts = min(100 * file_bytes, 8 << 20)  # Python's objects for them
    return pixels * (_STORED_BYTES.get(image.mode, 4) + max(codec, conversion)) + 3 * file_bytes + parts


def _transparency(name: str, data: bytes, image: Image.Image) -> dict[str | tuple[int, int], Any]:
    """Keep what says which colour is transparent; PNG gives it in the file's bits per sample, not in Pillow's 8."""
    key = image.info.get("transparency")
    if name == "PNG" and image.mode == "L" and key is not None:
        key = key * 255 // (2 ** data[24] - 1)
    if name == "PNG" and image.mode == "RGB" and data[24] == 16 and key is not None:
        key = tuple(sample >> 8 for sample in key)
    return {} if key is None else {"transparency": key}


# What follows reads the formats themselves. A file is cut down to what makes pixels before Pillow sees it: metadata is
# where few bytes become much memory, and where harmless damage would cost the picture.


def _jpeg_essentials(data: bytes) -> bytes:
    """Leave out thumbnails, profiles, comments and all EXIF but the first: Pillow joins those in quadratic time."""
    view, position, exif = memoryview(data), 2, False
    kept = [view[:2]]
    for _ in range(MAX_PARTS):
        position = data.find(b"\xff", position) % (len(data) + 1)
        marker = data[position + 1 : position + 2]
        if marker in (b"", b"\xda"):  # from here on it is the picture
            break
        if marker in b"\xff\0":
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        first_exif = not exif and data.startswith(b"Exif\0\0", position + 4)
        if first_exif or marker in b"\xe0\xee" or not b"\xe0" <= marker <= b"\xfe":  # JFIF, Adobe, no APPn and COM
            kept.append(view[position:end])
        exif, position = exif or first_exif, end
    else:
        raise _unsupported("JPEG", f"a header of more than {MAX_PARTS:,} segments")
    if data.count(b"\xff\xda", position) > MAX_SCANS:
        raise _unsupported("JPEG", f"a picture of more than {MAX_SCANS} scans")
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
    raise _unsupported("PNG", f"a file of more than {MAX_PARTS:,} chunks")


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
    raise _unsupported("GIF", f"a header of more than {MAX_PARTS:,} extensions")


def _tiff_essentials(data: bytes) -> bytes:
    """Cut the first directory down to the tags that make pixels, and the others off."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    end = start + 2 + 12 * int.from_bytes(data[start : start + 2], order)
    if end > len(data):  # half a directory may decode, to other pixels
        raise _truncated("TIFF", data)
    kept: dict[int, bytes] = {}
    for entry in (data[at : at + 12] for at in range(start + 2, end, 12)):
        tag, kind, value = (int.from_bytes(entry[at : at + 2], order) for at in (0, 2, 8))
        count, place = (int.from_bytes(entry[at : at + 4], order) for at in (4, 8))
        if tag in _TIFF_TAGS:
            kept.setdefault(tag, entry)
            if 4 < count * _TIFF_BYTES.get(kind, 1) > len(data) - place:
                raise _truncated("TIFF", data)
        if tag == 259 and value not in _TIFF_COMPRESSIONS:
            raise _unsupported("TIFF", f"its compression {value}")
    if sum(int.from_bytes(entry[4:8], order) for entry in kept.values()) > 2 * MAX_PARTS:  # offset and length of each
        raise _unsupported("TIFF", f"a picture of more than {MAX_PARTS:,} strips")
    directory = len(kept).to_bytes(2, order) + b"".join(kept.values())
    return data[:start] + directory.ljust(end + 4 - start, b"\0") + data[end + 4 :]


def _tiff_tile(image: TiffImageFile, data: bytes) -> tuple[int, int]:
    """Return the size of a tile, which may be larger than the picture, or 1 x 1."""
    tags = image.tag_v2
    if tags.get(258) == (12,):
        raise _unsupported("TIFF", "12 bits per sample")  # Pillow gives it as if it were 16
    starts, counts = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
    if any(start + count > len(data) for start, count in zip(starts, counts, strict=False)):
        raise _truncated("TIFF", data)
    return tags.get(322, 1), tags.get(323, 1)


def _avif_essentials(data: bytes) -> bytes:
    """Turn an image sequence into its still picture: one place less that names sizes."""
    return data[:8] + b"avif" + data[12:] if data[8:12] == b"avis" else data


_ESSENTIALS = {
    "JPEG": _jpeg_essentials,
    "PNG": _png_essentials,
    "GIF": _gif_essentials,
    "TIFF": _tiff_essentials,
    "AVIF": _avif_essentials,
}


def _webp_canvas(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _av1_frames(data: bytes) -> list[tuple[int, int]]:
    """Return the sizes that the AV1 data names: libavif decodes those, and only then fits them to the header's."""
    sizes: list[tuple[int, int]] = []
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"meta":
            children = _boxes(data, start + 4, end)
            inner = next((start for kind, start, _ in children if kind == b"idat"), 0)
            for start, end in (box[1:] for box in children if box[0] == b"iloc"):
                for method, offset, length in _avif_items(data[start:end]):
                    begin = offset + (inner if method == 1 else 0)
                    if length > MAX_EXIF_BYTES and _EXIF.match(data, begin):
                        raise _unsupported("AVIF", f"EXIF of more than {MAX_EXIF_BYTES:,} bytes")
                    sizes += islice(_av1_sizes(data, begin, begin + length), MAX_PARTS)
                    if len(sizes) > MAX_PARTS:
                        raise _unsupported("AVIF", f"a picture of more than {MAX_PARTS:,} units")
    return sizes


def _boxes(data: bytes, start: int, end: int) -> list[tuple[bytes, int, int]]:
    """Return kind, start and end of the content of the ISO base media boxes side by side."""
    boxes: list[tuple[bytes, int, int]] = []
    while start + 8 <= end and len(boxes) < MAX_PARTS:
        size, kind, content = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], start + 8
        if size == 1:
            size, content = int.from_bytes(data[content : content + 8]), content + 8
        start = max(content, start + size) if size else end
        boxes.append((kind, content, start))
    return boxes


def _avif_items(iloc: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield construction method, offset and length of the data of each item."""
    reader = BytesIO(iloc)

    def number(size: int) -> int:
        return int.from_bytes(reader.read(size))

    version, sizes = number(4) >> 24, number(2)
    wide = 4 if version == 2 else 2
    for _ in range(min(number(wide), MAX_PARTS)):
        number(wide)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(sizes >> 4 & 15)
        pieces = number(2)
        if pieces > 1:
            raise _unsupported("AVIF", "data in several pieces")
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
        raise _unsupported("AVIF", "timing information")
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
        raise _unsupported("AVIF", "a frame that may be larger than its header says")
    return width, height


def _ends_early(name: str, data: bytes) -> bool:
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
        case "BMP":
            return len(data) < int.from_bytes(data[2:6], "little")
        case "AVIF":
            boxes = _boxes(data, 0, len(data))
            return boxes[-1][2] != len(data) or all(kind != b"mdat" for kind, _, _ in boxes)
        case _:
            return False
