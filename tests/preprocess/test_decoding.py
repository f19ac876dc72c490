"""Files of every format, whole, cut, damaged and hostile, made by Pillow or by hand."""

import io
import resource
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from services.common.errors import InvalidInput
from services.common.manifest import PreprocessSpec
from services.common.pixels import transform
from services.preprocess.decoding import DecodeLimits, decode_image, inspect_image

# decode_image switches these off when it is imported; pytest switches them on again.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMITS = DecodeLimits(max_image_bytes=4_000_000, max_image_pixels=1_000_000)


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, name, **options)
    return buffer.getvalue()


def animated(image: Image.Image, name: str, **options: Any) -> bytes:
    return encoded(image, name, save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)], **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, raw: bytes, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")])


def tiff(width: int, height: int, *more: tuple[int, int]) -> bytes:
    tags = sorted([(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1), *more])
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


PHOTO = Image.fromarray(
    np.add.outer(np.arange(30) * 5, np.arange(40) * 3)[..., None].repeat(3, 2).astype(np.uint8) + np.uint8([0, 30, 60])
)
PALETTE, GREY = PHOTO.quantize(64), PHOTO.convert("L")
RGBA = Image.merge("RGBA", (*PHOTO.split(), GREY))
FILES = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "jpeg-progressive": encoded(PHOTO, "JPEG", progressive=True),
    "jpeg-grey": encoded(GREY, "JPEG"),
    "jpeg-cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "mpo": animated(PHOTO, "MPO"),
    "png": encoded(PHOTO, "PNG"),
    "png-1": encoded(PHOTO.convert("1"), "PNG"),
    "png-la": encoded(RGBA.convert("LA"), "PNG"),
    "png-palette": encoded(PALETTE, "PNG", transparency=bytes(range(0, 256, 4))),
    "png-16": encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG"),
    "apng": animated(PHOTO, "PNG"),
    "webp": encoded(PHOTO, "WEBP"),
    "webp-lossless": encoded(RGBA, "WEBP", lossless=True, exact=True),
    "webp-animated": animated(PHOTO, "WEBP"),
    "gif": encoded(PALETTE, "GIF", transparency=3, comment="a comment"),
    "gif-animated": animated(PALETTE, "GIF"),
    "bmp": encoded(PHOTO, "BMP"),
    "bmp-palette": encoded(PALETTE, "BMP"),
    "tiff": encoded(PHOTO, "TIFF"),
    "tiff-lzw": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": encoded(RGBA, "TIFF", compression="tiff_adobe_deflate"),
    "tiff-fax": encoded(PHOTO.convert("1"), "TIFF", compression="group4"),
    "tiff-pages": animated(PHOTO, "TIFF"),
    "avif": encoded(PHOTO, "AVIF", speed=10),
    "avif-alpha": encoded(RGBA, "AVIF", speed=10),
    "avif-animated": animated(PHOTO, "AVIF", speed=10),
}
LOSSLESS = {"png": PHOTO, "bmp": PHOTO, "tiff": PHOTO, "tiff-lzw": PHOTO, "webp-lossless": RGBA, "tiff-deflate": RGBA}


@pytest.mark.parametrize("name", FILES)
def test_decode_image_gives_the_first_picture_that_pillow_gives(name: str) -> None:
    expected = Image.open(io.BytesIO(FILES[name]))

    image, header = decode_image(FILES[name], LIMITS), inspect_image(FILES[name], LIMITS)

    assert image.convert("RGBA").tobytes() == expected.convert("RGBA").tobytes()
    assert (header.width, header.height, header.mode) == (*expected.size, image.mode)
    assert header.format.upper() == {"MPO": "JPEG"}.get(str(expected.format), expected.format)
    assert header.decode_bytes > 2 * len(image.tobytes())


@pytest.mark.parametrize("name", LOSSLESS)
def test_decode_image_is_bit_exact_for_lossless_files(name: str) -> None:
    image = decode_image(FILES[name], LIMITS)

    assert (image.mode, image.tobytes()) == (LOSSLESS[name].mode, LOSSLESS[name].tobytes())


def test_decode_image_lets_go_of_the_file_and_its_metadata() -> None:
    image = decode_image(encoded(PHOTO, "WEBP", exif=b"Exif\0\0II*\0", icc_profile=b"profile", xmp=b"<x/>"), LIMITS)

    assert type(image) is Image.Image
    assert image.info == {}


def test_decode_image_understands_adobes_inverted_cmyk_and_ycck() -> None:
    cmyk = encoded(Image.new("CMYK", (8, 8), (40, 90, 200, 30)), "JPEG", quality=100)
    transform_flag = cmyk.index(b"Adobe") + 11
    ycck = cmyk[:transform_flag] + b"\2" + cmyk[transform_flag + 1 :]  # the same samples, meant as Y, Cb, Cr and K

    assert decode_image(cmyk, LIMITS).getpixel((0, 0)) == (40, 90, 200, 30)
    assert decode_image(ycck, LIMITS).getpixel((0, 0)) == (113, 254, 255, 30)


def test_16_bit_png_keeps_its_high_bytes() -> None:
    ramp = np.arange(65536, dtype=">u2").reshape(256, 256)
    rgb = np.stack([ramp, ramp.T, ramp[::-1]], -1)
    rows = {0: ramp, 2: rgb}
    spec = PreprocessSpec(input="image", width=256, height=256)

    for colour, samples in rows.items():
        raw = b"".join(b"\0" + row.tobytes() for row in samples)
        tensor = transform(decode_image(png(256, 256, 16, colour, raw), LIMITS), spec)
        assert (tensor == samples.reshape(256, 256, -1) >> 8).all()


@pytest.mark.parametrize(
    ("depth", "colour", "raw", "key"),
    [(2, 0, b"\x1b", (1,)), (8, 0, b"\x00\x07\x08\x09", (7,)), (16, 2, bytes(6) + b"\x12\x34" * 9, (0x1234,) * 3)],
)
def test_the_transparent_colour_of_a_png_shows_the_background(depth: int, colour: int, raw: bytes, key: Any) -> None:
    data = png(4, 1, depth, colour, b"\0" + raw, chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
    spec = PreprocessSpec(input="image", width=4, height=1, background=(1, 2, 3))

    tensor = transform(decode_image(data, LIMITS), spec)

    assert (tensor == (1, 2, 3)).all(-1).tolist()[0][:2] == [False, True]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_decode_image_turns_pictures_upright(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, name, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))

    image = decode_image(data, LIMITS)

    assert image.size == ((30, 40) if orientation > 4 else (40, 30))
    assert image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0junk", b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\1\3\0\xff"])
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_cost_the_picture(name: str, exif: bytes) -> None:
    assert decode_image(encoded(PHOTO, name, exif=exif), LIMITS).size == PHOTO.size


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("EMPTY_IMAGE", b""),
        ("NOT_AN_IMAGE", b"BMW is a car, and this is a text"),
        ("NOT_AN_IMAGE", b"<html><body>404</body></html>"),
        ("UNSUPPORTED_IMAGE", b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="9"/>'),
        ("UNSUPPORTED_IMAGE", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("UNSUPPORTED_IMAGE", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("UNSUPPORTED_IMAGE", b"%PDF-1.7"),
        ("UNSUPPORTED_IMAGE", encoded(PHOTO, "ICO")),
        ("UNSUPPORTED_IMAGE", encoded(PHOTO, "JPEG2000")),
        ("UNSUPPORTED_IMAGE", encoded(PHOTO, "TIFF", big_tiff=True)),
        ("UNSUPPORTED_IMAGE", encoded(PHOTO, "TIFF", compression="jpeg")),
        ("UNSUPPORTED_IMAGE", FILES["jpeg"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")),
        ("UNSUPPORTED_IMAGE", FILES["bmp-palette"][:30] + b"\1" + FILES["bmp-palette"][31:]),
        ("UNSUPPORTED_IMAGE", FILES["jpeg"][:2] + b"\xff\xfe\0\2" * 20_000 + FILES["jpeg"][2:]),
        ("UNSUPPORTED_IMAGE", FILES["jpeg-progressive"] + b"\xff\xda" * 100),
        ("UNSUPPORTED_IMAGE", png(1, 1, 8, 0, b"\0\0", *[chunk(b"IDAT", b"")] * 20_000)),
        ("DAMAGED_IMAGE", FILES["png"].replace(b"IHDR", b"IHDX")),
        ("TOO_MANY_BYTES", bytes(4_000_001)),
        ("TOO_MANY_PIXELS", png(1001, 1000, 8, 2, b"")),
        ("TOO_MANY_PIXELS", png(1, 65_536, 8, 2, b"")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decode_image_says_why_it_refuses(reason: str, data: bytes) -> None:
    for function in (decode_image, inspect_image):
        with pytest.raises(InvalidInput, match=r"; (send|save|compress|make) [^;]+$") as caught:
            function(data, LIMITS)
        assert caught.value.reason == reason


def test_limits_name_the_value_and_the_limit() -> None:
    with pytest.raises(InvalidInput, match=r"1,200 pixels; the limit is 1,199;") as caught:
        decode_image(FILES["png"], DecodeLimits(10_000, 1_199))
    assert caught.value.details == {"pixels": "1200", "limit": "1199"}
    with pytest.raises(InvalidInput, match=rf"{len(FILES['png'])} bytes; the limit is 99;"):
        decode_image(FILES["png"], DecodeLimits(99, 1_200))


def gif_frame(width: int, height: int) -> bytes:
    return b"GIF89a\x09\0\x09\0\0\0\0," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\0;"


def avif_that_says_8_pixels() -> bytes:
    data = encoded(Image.new("RGB", (4000, 4000)), "AVIF", speed=10)
    return data.replace(struct.pack(">II", 4000, 4000), struct.pack(">II", 8, 8))


@pytest.mark.parametrize(
    "data",
    [
        png(30_000, 30_000, 8, 2, bytes(900_000)),
        gif_frame(30_000, 30_000),
        tiff(8, 8, (322, 30_000), (323, 30_000), (324, 8), (325, 8)),
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0",
        b"RIFF\x16\0\0\0WEBPVP8L\x09\0\0\0\x2f\xff\xff\xff\x0f\0\0\0\0\0",
        avif_that_says_8_pixels(),
    ],
    ids=["png", "gif-frame", "tiff-tile", "webp", "webp-lossless", "avif"],
)
def test_decode_image_refuses_bombs_before_it_allocates(data: bytes) -> None:
    assert len(data) < 4_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(InvalidInput) as caught:
        decode_image(data, LIMITS)

    assert caught.value.reason == "TOO_MANY_PIXELS"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


def test_texts_and_profiles_are_never_unpacked() -> None:
    text = chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress("\N{GRINNING FACE}".encode() + b"a" * 1_000_000))
    profile = chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2_000_000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    image = decode_image(png(1, 1, 8, 0, b"\0\7", profile, *[text] * 100), LIMITS)

    assert image.getpixel((0, 0)) == 7
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


def decoded_or_refused(data: bytes) -> bytes | str:
    """Return the pixels or the reason."""
    try:
        header = inspect_image(data, LIMITS)
        image = decode_image(data, LIMITS)
    except InvalidInput as error:
        return error.reason
    assert image.size == (header.width, header.height) or image.size == (header.height, header.width)
    return image.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_decode_image_rejects_truncated_files(name: str) -> None:
    data = FILES[name]
    whole = decode_image(data, LIMITS).tobytes()

    for end in range(32, len(data), max(1, len(data) // 70)):
        outcome = decoded_or_refused(data[:end])
        assert outcome in (whole, "TRUNCATED_IMAGE")


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", *{data[:12] for data in FILES.values()}]))
def test_arbitrary_bytes_are_refused_and_nothing_worse(data: bytes, start: bytes) -> None:
    decoded_or_refused(start + data)


@settings(deadline=None, max_examples=1000)
@given(st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=4)), min_size=1))
def test_damaged_files_are_decoded_or_refused_and_nothing_worse(name: str, damages: list[tuple[int, bytes]]) -> None:
    data = FILES[name]
    for position, replacement in damages:
        at = position % len(data)
        data = data[:at] + replacement + data[at + max(1, len(replacement)) :]

    decoded_or_refused(data)


def test_decode_image_gives_the_same_pixels_in_many_threads() -> None:
    alone = [decode_image(data, LIMITS).tobytes() for data in FILES.values()]

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda data: decode_image(data, LIMITS).tobytes(), [*FILES.values()] * 10))

    assert together == alone * 10
