"""The one pixel transform that training, evaluation and serving share."""

import numpy as np
from PIL import ExifTags, Image

from services.common.manifest import PreprocessSpec

MAX_EXIF_BYTES = 1 << 18
"""Larger EXIF is passed over: Pillow makes 30 times its bytes of it. A JPEG holds at most 65,533 bytes in one piece."""

Size = tuple[int, int]

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_ASPECT = 16
"""Mode `crop`: what lies beyond this many shorter sides never reaches the cut; resizing it may cost any memory."""
_MAX_INTERMEDIATE_PIXELS = 1 << 22
"""What `_resize` may always take between its two passes; beyond, at most twice the picture."""


def transform(image: Image.Image, spec: PreprocessSpec, orientation: int | None = None) -> np.ndarray:
    """Return one image's tensor, without batch dimension: `spec.shape`, C-contiguous, writable.

    Args:
        image: A picture in any mode that Pillow's decoders give.
        spec: What the model wants.
        orientation: EXIF orientation, 1 to 8, where it is kept apart from the picture; else the picture's own holds.
    """
    image = upright(image, exif_orientation(image) if orientation is None else orientation)
    image = _fit(_colour(image, spec), spec)
    channels = "L" if spec.color == "L" else "RGB"
    if image.mode != channels:  # grey pictures stay grey until they are small; resizing gives the same either way
        image = image.convert(channels)
    return _numbers(np.array(image), spec)


def exif_orientation(image: Image.Image) -> int:
    """Return 1 to 8 as EXIF numbers them; 1 where there is none or it cannot be read."""
    image.load()  # TIFF turns while it loads, PNG may have its EXIF behind the pixels
    if len(image.info.get("exif") or b"") > MAX_EXIF_BYTES:
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in _UPRIGHT else 1
    except Exception:  # broken metadata raises anything, and must not cost the picture
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn and mirror *image* as its EXIF orientation asks."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _colour(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Return RGB or L, without transparency."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = _blend(image, spec.background)
    if image.mode == "1":
        return image.convert("L")
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L") if spec.color == "L" else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale down what Pillow's own conversion would clip.

    16-bit samples keep their high byte, as Pillow does with 16-bit RGB. `I` (32-bit integers) counts as 16-bit and
    is clipped there. In `F` white is 1.0, as TIFF writers have it.
    """
    values = np.asarray(image)
    if image.mode == "F":
        values = values.clip(0.0, 1.0)
        np.nan_to_num(values, copy=False)
        values *= 255.0
        np.rint(values, out=values)
    elif image.mode == "I":
        values = values.clip(0, 65535)
        values >>= 8
    else:
        values = values >> 8
    grey = Image.fromarray(values.astype(np.uint8))
    key = image.info.get("transparency")
    if key is not None:
        opaque = Image.fromarray((np.asarray(image) != key).astype(np.uint8) * np.uint8(255))
        return Image.merge("LA", (grey, opaque))
    return grey


def _blend(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")  # the only way out that Pillow knows
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image)
    return canvas


def _fit(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    size = (spec.width, spec.height)
    if spec.mode == "letterbox":
        return _letterbox(image, size, spec)
    if spec.mode == "crop":
        return _crop(image, size, spec)
    return _resize(image, size, spec)


def _letterbox(image: Image.Image, size: Size, spec: PreprocessSpec) -> Image.Image:
    """Fit into *size* and centre; where the bars differ by a pixel, the right or lower one is wider."""
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = _resize(image, inner, spec)
    if inner == size:
        return image
    canvas = Image.new("RGB", size, spec.padding)
    canvas.paste(image, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas


def _crop(image: Image.Image, size: Size, spec: PreprocessSpec) -> Image.Image:
    """Resize and cut as torchvision's Resize and CenterCrop: the longer side is cut off to whole pixels."""
    shorter = min(image.size)
    image = _cut(image, (min(image.width, _MAX_ASPECT * shorter), min(image.height, _MAX_ASPECT * shorter)))
    resized = (image.width * spec.resize_side // shorter, image.height * spec.resize_side // shorter)
    return _cut(_resize(image, resized, spec), size)


def _cut(image: Image.Image, size: Size) -> Image.Image:
    if image.size == size:
        return image
    left, top = (round((side - cut) / 2) for side, cut in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


def _resize(image: Image.Image, size: Size, spec: PreprocessSpec) -> Image.Image:
    if image.size == size:
        return image
    resample = _FILTERS[spec.filter]
    if not spec.antialias:
        scale = (image.width / size[0], image.height / size[1])
        return image.transform(size, Image.Transform.AFFINE, (scale[0], 0, 0, 0, scale[1], 0), resample)
    # Pillow sets the width first. A line of 1 x 65,000 pixels would become a picture in between; so shorten it first.
    if size[0] * image.height > max(_MAX_INTERMEDIATE_PIXELS, 2 * image.width * image.height):
        image = image.resize((image.width, size[1]), resample)
    return image.resize(size, resample)


def _numbers(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Order the channels, then calculate in float32 whatever the datatype."""
    pixels = pixels.reshape(spec.height, spec.width, spec.channels)
    if spec.color == "BGR":
        pixels = pixels[:, :, ::-1]
    if spec.datatype != "UINT8":
        pixels = pixels.astype(np.float32)
        if spec.scale != 1.0:
            pixels *= np.float32(spec.scale)
        if spec.mean:
            pixels -= np.array(spec.mean, np.float32)
        if spec.std:
            pixels /= np.array(spec.std, np.float32)
        pixels = pixels.astype(np.float16 if spec.datatype == "FP16" else np.float32, copy=False)
    if spec.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels)
