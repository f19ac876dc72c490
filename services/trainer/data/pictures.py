"""Image files -> pictures -> pixels, to the same outcome as where the model serves."""

import hashlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from services.common.errors import InvalidInput, ServiceError
from services.common.manifest import PreprocessSpec
from services.common.pixels import exif_orientation, transform, upright
from services.trainer.data.metadata import Stripped, strip_jpeg, strip_png, strip_webp

# Pillow warns about odd metadata in words from the file, and each new text would stay in memory and in the log.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_IMAGE_BYTES = 32 * 1024 * 1024
"""Largest encoded image; the contract states it."""
MAX_IMAGE_PIXELS = 64_000_000
"""Largest image, width times height; the contract states it."""

_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II\*\0|MM\0\*",
    "AVIF": rb"....ftyp(?:.{4}){0,16}?avi[fs]",
}
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,  # called directly: Image.open makes MPO of phones' files
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
}
_STRIPPERS: dict[str, Callable[[bytes], Stripped]] = {"JPEG": strip_jpeg, "PNG": strip_png, "WebP": strip_webp}
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image file."""

    image: Image.Image
    """As it is stored, not yet upright, with no metadata but which colour is transparent."""
    orientation: int
    """How to turn it, 1 to 8 as EXIF numbers them."""
    format: str
    """Such as `JPEG`."""
    data: bytes
    """The file; JPEG, PNG and WebP without their metadata."""

    @property
    def pixel_digest(self) -> str:
        """Identity of the upright pixels, whatever file they came in: 64 hexadecimal digits."""
        image = upright(self.image, self.orientation)
        if image.has_transparency_data:
            image = image.convert("LA") if image.mode == "La" else image
            image = image.convert("RGBA")
        elif image.mode in ("1", "L", "P"):
            image = image.convert("RGB")
        return hashlib.sha256(f"{image.mode} {image.size}\n".encode() + image.tobytes()).hexdigest()

    def pixels(self, spec: PreprocessSpec) -> NDArray[np.uint8]:
        """Return what serving would send of it, uint8 `spec.shape`; see `check_spec`."""
        return transform(self.image, spec, self.orientation)

    def without_metadata(self) -> tuple[bytes, str]:
        """Return a file of the same pixels without metadata, and its format: the file itself, or a PNG of it.

        Raises:
            InvalidInput: Neither can hold them.
        """
        if self.format in _STRIPPERS:
            return self.data, self.format
        if self.image.mode not in _PNG_MODES:
            raise InvalidInput(
                f"the image is {self.format} in colour mode {self.image.mode}, which cannot be kept without its "
                "metadata; save it again as PNG or JPEG",
                reason="UNSUPPORTED_IMAGE",
            )
        file = BytesIO()
        self.image.save(file, "PNG")
        return file.getvalue(), "PNG"


def read_picture(data: bytes, orientation: int | None = None) -> Picture:
    """Decode the first picture of a file; any number of threads may do so at once.

    Args:
        data: Bytes of the file; nobody vouches for them.
        orientation: Where it is kept apart from the file; else the file's own holds.

    Raises:
        InvalidInput: It is no image, damaged, larger than the limits, or of a kind that is not read.
    """
    name = _recognise(data)
    try:
        stripped = _STRIPPERS.get(name, Stripped)(data)
        if name == "WebP":  # Pillow allocates the canvas while it opens the file
            _check_pixels(*_webp_canvas(data))
        image = _PLUGINS[name](BytesIO(stripped.data))
        _check_pixels(*image.size)
        if name == "BMP" and image.tile[0].codec_name == "bmp_rle":
            raise _unsupported(name, "run-length encoding")
        image.load()
        own = exif_orientation(image) if name not in _STRIPPERS else _orientation_of(stripped)
        plain = image._new(image.im)  # shares the pixels, and keeps neither file nor metadata alive
        plain.info = _transparency(name, data, image)
    except ServiceError:
        raise
    except Exception as error:  # hostile bytes make decoders raise anything, from struct.error to MemoryError
        raise InvalidInput(
            f"the {name} image of {len(data):,} bytes is damaged or ends early; save it again or leave it out",
            reason="DAMAGED_IMAGE",
        ) from error
    return Picture(plain, own if orientation is None else orientation, name, stripped.data)


def check_spec(spec: PreprocessSpec) -> None:
    """Refuse a spec whose pixels cannot be learnt from.

    Raises:
        InvalidInput: They are not uint8, NHWC and RGB.
    """
    found = (spec.datatype, spec.layout, spec.color)
    if found != ("UINT8", "NHWC", "RGB"):
        raise InvalidInput(
            f"the preprocess spec asks for {' '.join(found)} pixels; training takes UINT8 NHWC RGB and puts "
            "normalisation into the graph: leave datatype, layout and color out",
            field="preprocess_spec",
        )


def _recognise(data: bytes) -> str:
    count = len(data)
    if count > MAX_IMAGE_BYTES:
        raise InvalidInput(
            f"the image has {count:,} bytes; the limit is {MAX_IMAGE_BYTES:,}; compress it more or make it smaller",
            reason="TOO_MANY_BYTES",
        )
    name = next((name for name, magic in _MAGIC.items() if re.match(magic, data, re.DOTALL)), None)
    if name is None:
        raise InvalidInput(
            f"the {count:,} bytes do not begin like an image; send {', '.join(_PLUGINS)}",
            reason="NOT_AN_IMAGE" if data else "EMPTY_IMAGE",
        )
    return name


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise InvalidInput(
            f"the image has {width:,} x {height:,} = {width * height:,} pixels; the limit is {MAX_IMAGE_PIXELS:,}; "
            "make it smaller",
            reason="TOO_MANY_PIXELS",
        )


def _unsupported(name: str, feature: str) -> InvalidInput:
    return InvalidInput(
        f"the image is {name}, and {feature} is not supported; save it again as PNG or JPEG",
        reason="UNSUPPORTED_IMAGE",
    )


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Return the size for which the decoder allocates."""
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _orientation_of(stripped: Stripped) -> int:
    carrier = Image.new("1", (1, 1))
    carrier.info = {"exif": stripped.exif} if stripped.exif is not None else {}
    if stripped.xmp is not None:
        carrier.info["xmp"] = stripped.xmp
    return exif_orientation(carrier)


def _transparency(name: str, data: bytes, image: Image.Image) -> dict[str | tuple[int, int], object]:
    """Keep what says which colour is transparent; PNG gives it in the file's bits per sample, not in Pillow's 8."""
    key = image.info.get("transparency")
    if isinstance(key, bytes):
        key = key[:256]
    elif name == "PNG" and image.mode == "L" and key is not None:
        key = key * 255 // (2 ** data[24] - 1)
    elif name == "PNG" and image.mode == "RGB" and key is not None:
        key = tuple(sample >> data[24] - 8 for sample in key)
    most = max(key if isinstance(key, bytes | tuple) else (key or 0,), default=0)
    # A key beyond the bits is no pixel's, and makes Pillow's conversions fail.
    return {} if key is None or (most > 255 and image.mode != "I;16") else {"transparency": key}
