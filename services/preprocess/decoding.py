"""Turns image files that nobody vouches for into pixels, within limits that hold before anything is allocated."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice

from PIL import AvifImagePlugin, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from services.common.errors import InvalidInput
from services.common.pixels import exif_orientation, upright

# Our own check comes first and knows the caller's limit; Pillow's is one for the whole process.
Image.MAX_IMAGE_PIXELS = None
# A decode takes the thread that it was given: whoever bounds the threads bounds the load.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Pillow warns about odd metadata in words from the file, and each new text would stay in memory and in the log.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_SIDE = 65_535
"""Longest side in pixels, as in JPEG: resampling a longer one costs memory however few pixels it has."""
MAX_PARTS = 65_536
"""Segments of a JPEG header, values in TIFF tags, units of an AVIF: each costs many times its bytes."""
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
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_TIFF_TAGS = {
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    292,
    293,
    317,
    320,
    322,
    323,
    324,
    325,
    338,
    339,
}
_TIFF_COMPRESSIONS = {
    "raw",
    "packbits",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "tiff_ccitt",
    "group3",
    "group4",
}
# Peak bytes per pixel of `decode_image`, then `transform`, above the file; measured with VmHWM on 4000 x 3000 pixels:
#   JPEG RGB 4.0, grey 1.0, CMYK 8.0; progressive 4:4:4 10.0, 4:2:0 7.0, grey 3.0, CMYK 12.0; turned upright 8.0
#   PNG RGB 4.0, turned 8.0, RGBA 5.6, LA 12.0, palette 5.0, with transparency 9.0, 16-bit grey 7.2
#   WebP 16.0 of every kind; GIF 4.4, with transparency 8.2; BMP 4.2
#   TIFF RGB 4.0, in one compressed strip 5.7, turned 8.0, CMYK 8.0, LAB 5.2, 32-bit 12.0
#   AVIF 8-bit RGB 8.9, 4:4:4 10.5, RGBA 11.3, grey 3.3; 12-bit 4:4:4 in a grid calculated
_CODEC_BYTES = {
    "JPEG": (0, 2),
    "PNG": (0, 0),
    "WebP": (12, 0),
    "GIF": (0, 0),
    "BMP": (0, 0),
    "TIFF": (8, 0),
    "AVIF": (0, 5),
}
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
_CONVERSION_BYTES = {"1": 2, "L": 2, "RGB": 4, "I": 12, "F": 12}


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

    Raises:
        InvalidInput: EMPTY_IMAGE, NOT_AN_IMAGE, UNSUPPORTED_IMAGE, TRUNCATED_IMAGE, DAMAGED_IMAGE, TOO_MANY_BYTES
            or TOO_MANY_PIXELS.

    """
    name = _recognise(data, limits)
    with _explained(name, data):
        image, _ = _open(name, data, limits)
        orientation = exif_orientation(image)  # loads it
        # Shares the pixels only: the plug-in's own object would keep the file and its decoder's buffers alive.
        plain = image._new(image.im)
        plain.info = _transparency(name, data, image)
        return upright(plain, orientation)


def _refused(reason: str, message: str, **details: int) -> InvalidInput:
    return InvalidInput(message, reason=reason, details={key: str(value) for key, value in details.items()})


def _recognise(data: bytes, limits: DecodeLimits) -> str:
    count, limit = len(data), limits.max_image_bytes
    if not data:
        raise _refused("EMPTY_IMAGE", "image has 0 bytes; send the bytes of an image file")
    if count > limit:
        advice = "compress it more or make it smaller"
        raise _refused(
            "TOO_MANY_BYTES", f"image has {count:,} bytes; the limit is {limit:,}; {advice}", bytes=count, limit=limit
        )
    name = next((name for name, magic in _MAGIC.items() if re.match(magic, data, re.DOTALL)), None)
    if name is None:
        raise _refused("NOT_AN_IMAGE", f"the {count:,} bytes are no image; send one of {', '.join(_PLUGINS)}")
    if name not in _PLUGINS:
        raise _unsupported(name, "this format", f"send one of {', '.join(_PLUGINS)}")
    return name


def _unsupported(name: str, feature: str, advice: str = "save it again as PNG or JPEG") -> InvalidInput:
    return _refused("UNSUPPORTED_IMAGE", f"the image is {name}, and {feature} is not supported; {advice}")


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
        raise _refused(
            "DAMAGED_IMAGE", f"the {name} image of {len(data):,} bytes is damaged; send an intact file"
        ) from error


def _truncated(name: str, data: bytes) -> InvalidInput:
    return _refused("TRUNCATED_IMAGE", f"the {name} image ends early, after {len(data):,} bytes; send the whole file")


def _check_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    pixels, limit = width * height, limits.max_image_pixels
    if pixels > limit:
        raise _refused(
            "TOO_MANY_PIXELS",
            f"image has {width:,} x {height:,} = {pixels:,} pixels; the limit is {limit:,}; make it smaller",
            pixels=pixels,
            limit=limit,
        )
    if max(width, height) > MAX_SIDE:
        message = f"image has {width:,} x {height:,} pixels; the limit of a side is {MAX_SIDE:,}; cut it"
        raise _refused("TOO_MANY_PIXELS", message, side=max(width, height), limit=MAX_SIDE)


def _open(name: str, data: bytes, limits: DecodeLimits) -> tuple[ImageFile.ImageFile, int]:
    """Return the plug-in's picture, of which only the header is read, and the pixels of its largest buffer."""
    sizes = []
    if name == "WebP":
        sizes = [_webp_canvas(data)]
        _check_pixels(*sizes[0], limits)  # before Pillow sees it: the canvas is allocated with the header
    essentials = {"JPEG": _jpeg_essentials, "PNG": _png_essentials, "TIFF": _tiff_essentials, "AVIF": _avif_essentials}
    image = _PLUGINS[name](BytesIO(essentials[name](data) if name in essentials else data))
    sizes.append(image.size)
    if name == "AVIF":
        sizes += _av1_frames(data)
    if isinstance(image, TiffImageFile):
        _check_tiff(image, data)
        sizes.append((image.tag_v2.get(322, 1), image.tag_v2.get(323, 1)))  # a tile
    if name == "BMP" and image.tile[0].codec_name == "bmp_rle":
        raise _unsupported(name, "run-length encoding")  # decoded in Python, seconds per picture
    for size in sizes:
        _check_pixels(*size, limits)
    return image, max(width * height for width, height in sizes)


def _check_tiff(image: TiffImageFile, data: bytes) -> None:
    tags, compression = image.tag_v2, image.info["compression"]
    if compression not in _TIFF_COMPRESSIONS:
        raise _unsupported("TIFF", f"the compression {compression}")
    if tags.get(258) == (12,):
        raise _unsupported("TIFF", "12 bits per sample")
    starts, counts = tags.get(273) or tags.get(324) or (), tags.get(279) or tags.get(325) or ()
    if compression != "raw" and any(start + count > len(data) for start, count in zip(starts, counts, strict=False)):
        raise _truncated("TIFF", data)


def _decode_bytes(name: str, image: ImageFile.ImageFile, pixels: int, file_bytes: int) -> int:
    constant, per_channel = _CODEC_BYTES[name]
    codec = constant + per_channel * len(image.getbands())
    conversion = 8 if "transparency" in image.info else _CONVERSION_BYTES.get(image.mode, 8)
    return pixels * (_STORED_BYTES.get(image.mode, 4) + max(codec, conversion)) + 3 * file_bytes + (1 << 20)


def _transparency(name: str, data: bytes, image: Image.Image) -> dict[str | tuple[int, int], object]:
    """Keep what says which colour is transparent; PNG gives it in the file's bits per sample, not in Pillow's 8."""
    key = image.info.get("transparency")
    if name == "PNG" and image.mode == "L" and isinstance(key, int):
        key = key * 255 // (2 ** data[24] - 1)
    if name == "PNG" and image.mode == "RGB" and data[24] == 16 and key is not None:
        key = tuple(sample >> 8 for sample in key)
    return {} if key is None else {"transparency": key}


def _jpeg_essentials(data: bytes) -> bytes:
    """Leave out thumbnails, profiles and comments: Pillow holds each, and joins EXIF in quadratic time."""
    kept, position, exif = [memoryview(data)[:2]], 2, False
    for _ in range(MAX_PARTS):
        position = data.find(b"\xff", position) % (len(data) + 1)
        marker = data[position + 1 : position + 2]
        if marker in (b"", b"\xda"):  # the picture itself begins
            break
        if marker in b"\xff\x00":
            position += 1
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if (not b"\xe0" <= marker <= b"\xef" and marker != b"\xfe") or marker in b"\xe0\xee":
            kept.append(memoryview(data)[position:end])
        elif not exif and data.startswith(b"Exif\0\0", position + 4):
            kept.append(memoryview(data)[position:end])
            exif = True
        position = end
    else:
        raise _unsupported("JPEG", f"a header of more than {MAX_PARTS:,} segments")
    if data.count(b"\xff\xda", position) > MAX_SCANS:
        raise _unsupported("JPEG", f"a picture of more than {MAX_SCANS} scans")
    return b"".join([*kept, memoryview(data)[position:]])


def _png_essentials(data: bytes) -> bytes:
    """Leave out text and profiles, which unpack to a thousand times their size, and animation."""
    kept, position = [memoryview(data)[:8]], 8
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] in _PNG_CHUNKS:
            kept.append(memoryview(data)[position:end])
        position = end
    return b"".join(kept)


def _tiff_essentials(data: bytes) -> bytes:
    """Cut the first directory down to the tags that make pixels, and the others off."""
    order = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    end = start + 2 + 12 * int.from_bytes(data[start : start + 2], order)
    entries = [data[at : at + 12] for at in range(start + 2, end, 12)]
    kept = [entry for entry in entries if int.from_bytes(entry[:2], order) in _TIFF_TAGS]
    if sum(int.from_bytes(entry[4:8], order) for entry in kept) > MAX_PARTS:
        raise _unsupported("TIFF", f"a directory of more than {MAX_PARTS:,} values")
    directory = len(kept).to_bytes(2, order) + b"".join(kept)
    return data[:start] + directory.ljust(end + 4 - start, b"\0") + data[end + 4 :]


def _avif_essentials(data: bytes) -> bytes:
    """Turn an image sequence into its still picture: one place less that names sizes."""
    return data[:8] + b"avif" + data[12:] if data[8:12] == b"avis" else data


def _webp_canvas(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _av1_frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the picture size of each sequence header in AV1 data, 0 x 0 for its other units.

    libavif decodes what these say and only then fits it to the size in the file's header.
    """
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"meta":
            children = list(_boxes(data, start + 4, end))
            idat = next((start for kind, start, _ in children if kind == b"idat"), 0)
            for kind, start, end in children:
                for method, offset, length in _av1_items(data[start:end] if kind == b"iloc" else b""):
                    start = offset + (idat if method == 1 else 0)
                    yield from _av1_units(data[start : start + length])


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= end:
        size, kind, body = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], start + 8
        if size == 1:
            size, body = int.from_bytes(data[body : body + 8]), body + 8
        start = max(body, start + size) if size else end
        yield kind, body, start


def _av1_items(iloc: bytes) -> Iterator[tuple[int, int, int]]:
    reader = BytesIO(iloc)

    def number(size: int) -> int:
        return int.from_bytes(reader.read(size))

    version, sizes = number(4) >> 24, number(2)
    wide = 4 if version == 2 else 2
    for _ in range(min(number(wide), len(iloc))):
        number(wide)
        method = number(2) & 15 if version else 0
        base = (number(2), number(sizes >> 4 & 15))[1]
        if number(2) != 1:
            raise _unsupported("AVIF", "data in several pieces")
        number(sizes & 15 if version else 0)
        yield method, base + number(sizes >> 12), number(sizes >> 8 & 15) or len(iloc)


def _av1_units(data: bytes) -> Iterator[tuple[int, int]]:
    position = 0
    while position < len(data):
        head = data[position]
        position += 1 + (head >> 2 & 1)
        size, shift, more = len(data) - position, 0, head & 2
        if more:
            size = 0
        while more:
            size |= (data[position] & 127) << shift
            more, shift, position = data[position] & 128, shift + 7, position + 1
        yield _av1_sequence(data[position : position + min(size, 128)]) if head >> 3 & 15 == 1 else (0, 0)
        position += size


def _av1_sequence(payload: bytes) -> tuple[int, int]:
    digits = iter(f"{int.from_bytes(payload):0{8 * len(payload)}b}")

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
    # A frame may override the size within these bits; encoders take as few as the size needs, or one more.
    if not reduced and (wide > width.bit_length() or high > height.bit_length()):
        raise _unsupported("AVIF", "a frame that may grow")
    return width, height


def _ends_early(name: str, data: bytes) -> bool:
    """Whether a file that failed to decode lacks its end."""
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
        case "TIFF":
            return len(data) <= int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
        case _:
            return any(end > len(data) for _, _, end in _boxes(data, 0, len(data)))
