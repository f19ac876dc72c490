"""Turns image files that nobody vouches for into pixels, within limits that hold before anything is allocated."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import AvifImagePlugin, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from services.common.errors import InvalidInput
from services.common.pixels import exif_orientation, upright
from services.preprocess.avif import av1_frames
from services.preprocess.containers import ESSENTIALS, ends_early, tiff_tile, webp_canvas
from services.preprocess.refusals import refusal, truncated, unsupported

# Our own check comes first and knows the caller's limit; Pillow's is one for the whole process.
Image.MAX_IMAGE_PIXELS = None
# A decode takes the thread that it was given: whoever bounds the threads bounds the load.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Pillow warns about odd metadata in words from the file, and each new text would stay in memory and in the log.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_SIDE = 65_535
"""Longest side in pixels, as in JPEG: resampling a longer one costs memory however few pixels it has."""
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
    """As stored; in a TIFF, upright."""
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
        raise refusal("EMPTY_IMAGE", "the image has 0 bytes; send an image file")
    if count > limit:
        message = f"the image has {count:,} bytes; the limit is {limit:,}; compress it more or make it smaller"
        raise refusal("TOO_MANY_BYTES", message, bytes=count, limit=limit)
    name = next((name for name, magic in _MAGIC.items() if re.match(magic, data, re.DOTALL)), None)
    advice = f"send {', '.join(_PLUGINS)}"
    if name is None:
        raise refusal("NOT_AN_IMAGE", f"the {count:,} bytes do not begin like an image; {advice}")
    if name not in _PLUGINS:
        raise unsupported(name, "this format", advice)
    return name


@contextmanager
def _explained(name: str, data: bytes) -> Iterator[None]:
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:  # hostile bytes make decoders raise anything, from struct.error to MemoryError
        if ends_early(name, data) or "truncated" in str(error).lower():
            raise truncated(name, data) from error
        if re.search("nsupported|cannot handle|unknown pixel mode", str(error)):
            raise unsupported(name, "a feature that it uses") from error
        raise refusal("DAMAGED_IMAGE", f"the {name} image of {len(data):,} bytes is damaged; send it anew") from error


def _check_pixels(width: int, height: int, limits: DecodeLimits) -> None:
    pixels, limit = width * height, limits.max_image_pixels
    message = f"the image has {width:,} x {height:,} = {pixels:,} pixels; the limit"
    if pixels > limit:
        raise refusal("TOO_MANY_PIXELS", f"{message} is {limit:,}; make it smaller", pixels=pixels, limit=limit)
    if max(width, height) > MAX_SIDE:
        raise refusal("TOO_MANY_PIXELS", f"{message} of a side is {MAX_SIDE:,}; make it shorter", limit=MAX_SIDE)


def _open(name: str, data: bytes, limits: DecodeLimits) -> tuple[ImageFile.ImageFile, int]:
    """Return the plug-in's picture, of which only the header is read, and the pixels of its largest buffer."""
    # Pillow allocates WebP's canvas and unpacks AVIF's EXIF while it opens them, so these are looked at before.
    sizes = [webp_canvas(data)] if name == "WebP" else av1_frames(data) if name == "AVIF" else []
    for size in sizes:
        _check_pixels(*size, limits)
    essentials = ESSENTIALS.get(name, bytes)
    image = _PLUGINS[name](BytesIO(essentials(data)))
    sizes.append(image.size)
    if isinstance(image, TiffImageFile):
        sizes.append(tiff_tile(image, data))
    if name == "BMP" and image.tile[0].codec_name == "bmp_rle":
        raise unsupported(name, "run-length encoding")  # Pillow decodes it in Python: seconds of the interpreter lock
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
    if isinstance(key, bytes):
        key = key[:256]
    elif name == "PNG" and image.mode == "L" and key is not None:
        key = key * 255 // (2 ** data[24] - 1)
    elif name == "PNG" and image.mode == "RGB" and key is not None:
        key = tuple(sample >> data[24] - 8 for sample in key)
    # A key beyond the bits is no pixel's, and makes Pillow's conversions fail.
    most = max(key if isinstance(key, bytes | tuple) else (key or 0,), default=0)
    return {} if key is None or (most > 255 and image.mode != "I;16") else {"transparency": key}
