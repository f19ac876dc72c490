"""Files of every format: whole, cut, damaged and hostile; made by Pillow or by hand."""

import io
import pickle
import struct
import subprocess
import sys
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

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as decoding does, whose filter pytest resets

LIMITS = DecodeLimits(max_image_bytes=4_000_000, max_image_pixels=1_000_000)


def encoded(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, name, **options)
    return buffer.getvalue()


def animated(image: Image.Image, name: str) -> bytes:
    return encoded(image, name, save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, raw: bytes, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")])


SLOPE = np.add.outer(np.arange(30) * 5, np.arange(40) * 3)
PHOTO = Image.fromarray(np.stack([SLOPE, SLOPE[::-1], SLOPE // 2], -1).astype(np.uint8))
PALETTE, GREY = PHOTO.quantize(64), PHOTO.convert("L")
RGBA = Image.merge("RGBA", (*PHOTO.split(), GREY))
FILES = {
    "jpeg-progressive": encoded(PHOTO, "JPEG", progressive=True),
    "jpeg-cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "png-grey-alpha": encoded(RGBA.convert("LA"), "PNG"),
    "png-palette": encoded(PALETTE, "PNG", transparency=bytes(range(0, 256, 4))),
    "png-16": encoded(Image.fromarray(SLOPE.astype(np.uint16) * 200), "PNG"),
    "webp": encoded(PHOTO, "WEBP", exif=b"Exif\0\0II*\0", icc_profile=b"profile", xmp=b"<x/>"),
    "webp-lossless": encoded(RGBA, "WEBP", lossless=True, exact=True),
    "gif": encoded(PALETTE, "GIF", transparency=3, comment="a comment"),
    "bmp-palette": encoded(PALETTE, "BMP"),
    "tiff-fax": encoded(GREY.convert("1"), "TIFF", compression="group4"),
    "avif-alpha": encoded(RGBA, "AVIF", speed=10),
}
FILES |= {name: encoded(PHOTO, name) for name in ("JPEG", "PNG", "BMP", "AVIF")}
FILES |= {f"{name}-of-two": animated(PHOTO, name) for name in ("MPO", "PNG", "WEBP", "GIF", "TIFF", "AVIF")}
FILES |= {f"tiff-{how}": encoded(RGBA, "TIFF", compression=how) for how in ("packbits", "tiff_lzw", "tiff_deflate")}


@pytest.mark.parametrize("name", FILES)
def test_decode_image_gives_the_first_picture_that_pillow_gives(name: str) -> None:
    expected = Image.open(io.BytesIO(FILES[name]))

    image, header = decode_image(FILES[name], LIMITS), inspect_image(FILES[name], LIMITS)

    assert image.convert("RGBA").tobytes() == expected.convert("RGBA").tobytes()
    assert (header.width, header.height, header.mode) == (*expected.size, image.mode)
    assert header.format.upper() == {"MPO": "JPEG"}.get(str(expected.format), expected.format)
    assert header.decode_bytes > 2 * len(image.tobytes())
    assert type(image) is Image.Image
    assert set(image.info) <= {"transparency"}


@pytest.mark.parametrize("name", ["webp-lossless", "tiff-packbits", "tiff-tiff_lzw", "tiff-tiff_deflate"])
def test_decode_image_is_bit_exact_where_the_file_is(name: str) -> None:
    assert decode_image(FILES[name], LIMITS).tobytes() == RGBA.tobytes()


def test_decode_image_understands_adobes_inverted_cmyk_and_ycck() -> None:
    cmyk = encoded(Image.new("CMYK", (8, 8), (40, 90, 200, 30)), "JPEG", quality=100)
    flag = cmyk.index(b"Adobe") + 11
    ycck = cmyk[:flag] + b"\2" + cmyk[flag + 1 :]  # the same samples, meant as Y, Cb, Cr and K

    assert decode_image(cmyk, LIMITS).getpixel((0, 0)) == (40, 90, 200, 30)
    assert decode_image(ycck, LIMITS).getpixel((0, 0)) == (113, 254, 255, 30)


@pytest.mark.parametrize("colour", [0, 2])
def test_a_16_bit_png_keeps_its_high_bytes(colour: int) -> None:
    ramp = np.arange(65536).reshape(256, 256)
    samples = np.stack([ramp, ramp.T, ramp[::-1]] if colour else [ramp], -1)
    data = png(256, 256, 16, colour, b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples))

    tensor = transform(decode_image(data, LIMITS), PreprocessSpec(input="image", width=256, height=256))

    assert (tensor == samples >> 8).all()


@pytest.mark.parametrize(
    ("depth", "colour", "row", "chunks"),
    [
        (2, 0, b"\x1b", [chunk(b"tRNS", b"\0\1")]),
        (8, 0, b"\0\7\7\7", [chunk(b"tRNS", b"\0\7")]),
        (16, 2, bytes(6) + b"\x12\x34" * 9, [chunk(b"tRNS", b"\x12\x34" * 3)]),
        (8, 3, b"\0\1\1\1", [chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b"\xff" + bytes(299))]),
    ],
)
def test_the_transparent_colour_of_a_png_shows_the_background(depth: int, colour: int, row: bytes, chunks: Any) -> None:
    data = png(4, 1, depth, colour, b"\0" + row, *chunks)

    tensor = transform(decode_image(data, LIMITS), PreprocessSpec(input="x", width=4, height=1, background=(1, 2, 3)))

    assert (tensor[0, :2] == (1, 2, 3)).all(-1).tolist() == [False, True]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_decode_image_turns_pictures_upright(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, name, exif=exif)

    image = decode_image(data, LIMITS)

    assert image.tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).tobytes()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0junk", b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\1\3\0\xff"])
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_cost_the_picture(name: str, exif: bytes) -> None:
    assert decode_image(encoded(PHOTO, name, exif=exif), LIMITS).size == PHOTO.size


REFUSED = [
    ("EMPTY_IMAGE", b""),
    ("NOT_AN_IMAGE", b"BMW is a car, and this is a text"),
    ("UNSUPPORTED_IMAGE", b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="9"/>'),
    *[("UNSUPPORTED_IMAGE", start) for start in (b"%PDF-1.7", b"8BPS\0\1", b"\xff\x0a", b"\0\0\0\x18ftypheic\0\0\0\0")],
    *[("UNSUPPORTED_IMAGE", encoded(PHOTO, name)) for name in ("ICO", "JPEG2000")],
    *[("UNSUPPORTED_IMAGE", encoded(PHOTO, "TIFF", **how)) for how in ({"big_tiff": True}, {"compression": "jpeg"})],
    ("UNSUPPORTED_IMAGE", FILES["JPEG"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")),  # 12 bits
    ("UNSUPPORTED_IMAGE", FILES["bmp-palette"][:30] + b"\1" + FILES["bmp-palette"][31:]),  # run lengths
    ("UNSUPPORTED_IMAGE", FILES["JPEG"][:2] + b"\xff\xfe\0\2" * 20_000 + FILES["JPEG"][2:]),
    ("UNSUPPORTED_IMAGE", FILES["jpeg-progressive"] + b"\xff\xda" * 100),
    ("UNSUPPORTED_IMAGE", png(1, 1, 8, 0, b"\0\0", *[chunk(b"IDAT", b"")] * 20_000)),
    ("DAMAGED_IMAGE", FILES["PNG"].replace(b"IHDR", b"IHDX")),
    ("TOO_MANY_BYTES", bytes(4_000_001)),
    ("TOO_MANY_PIXELS", png(1001, 1000, 8, 2, b"")),
    ("TOO_MANY_PIXELS", png(1, 65_536, 8, 2, b"")),
]


@pytest.mark.parametrize(("reason", "data"), REFUSED, ids=range(len(REFUSED)))
@pytest.mark.parametrize("function", [decode_image, inspect_image])
def test_a_refusal_has_a_reason_and_says_what_to_do(function: Any, reason: str, data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"; (send|save|compress|make) [^;]+$") as caught:
        function(data, LIMITS)

    assert caught.value.reason == reason


def test_a_limit_is_named_with_the_value() -> None:
    with pytest.raises(InvalidInput, match="40 x 30 = 1,200 pixels; the limit is 1,199;"):
        decode_image(FILES["PNG"], DecodeLimits(9999, 1199))
    with pytest.raises(InvalidInput, match=f"{len(FILES['PNG'])} bytes; the limit is 40;"):
        decode_image(FILES["PNG"], DecodeLimits(40, 1200))


TWO_TAGS = encoded(GREY, "TIFF", tiffinfo={0xFDE8: 30_000, 0xFDE9: 30_000})
LARGE_AVIF = encoded(Image.new("RGB", (4000, 4000)), "AVIF", speed=10)
MOST_KB = 2_000
BOMBS = {
    "png": png(30_000, 30_000, 8, 2, bytes(900_000)),
    "gif-frame": b"GIF89a\x09\0\x09\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;",
    "tiff-tile": TWO_TAGS.replace(b"\xe8\xfd", b"\x42\1").replace(b"\xe9\xfd", b"\x43\1"),
    "webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0",
    "webp-lossless": b"RIFF\x16\0\0\0WEBPVP8L\x09\0\0\0\x2f\xff\xff\xff\x0f\0\0\0\0\0",
    "avif-frame": LARGE_AVIF.replace(struct.pack(">II", 4000, 4000), struct.pack(">II", 8, 8)),
}


TEXT = chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress("\N{GRINNING FACE}".encode() + b"a" * 1_000_000))
PROFILE = chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2_000_000)))
MEASURED = BOMBS | {
    "texts": png(1, 1, 8, 0, b"\0\7", PROFILE, *[TEXT] * 100),
    "large": png(1000, 1000, 8, 2, bytes(3_001_000)),  # as a proof that memory that is taken shows
}
MEASURE = """
import pickle, re, sys
from services.common.errors import InvalidInput
from services.preprocess.decoding import DecodeLimits, decode_image

def peak():  # of this process only: the high-water mark of getrusage() is handed down from the parent
    with open("/proc/self/status") as status:
        return int(re.search("VmHWM: *([0-9]+) kB", status.read().expandtabs())[1])

def outcome(data, limits):
    try:
        return decode_image(data, limits).getpixel((0, 0))
    except InvalidInput as error:
        return error.message

files, measured, limits = pickle.load(sys.stdin.buffer)
for data in files:  # what each decoder takes once
    decode_image(data, limits)
outcomes = {}
for name, data in measured.items():
    before = peak()
    outcomes[name] = outcome(data, limits), peak() - before
pickle.dump(outcomes, sys.stdout.buffer)
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[Any, int]]:
    """What `decode_image` says of each measured file, and the kB that it took, in a process of their own."""
    given = pickle.dumps(([*FILES.values()], MEASURED, LIMITS))
    measured = subprocess.run([sys.executable, "-c", MEASURE], input=given, stdout=subprocess.PIPE, check=True)
    return pickle.loads(measured.stdout)  # type: ignore[no-any-return]


def test_memory_that_is_taken_is_measured(outcomes: Any) -> None:
    assert outcomes["large"][1] > MOST_KB


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_memory_is_taken(outcomes: Any, name: str) -> None:
    message, taken = outcomes[name]

    assert "pixels; the limit is 1,000,000;" in message
    assert taken < MOST_KB


def test_texts_and_profiles_are_never_unpacked(outcomes: Any) -> None:
    pixel, taken = outcomes["texts"]

    assert pixel == 7
    assert taken < MOST_KB


def decoded_or_refused(data: bytes) -> bytes | str:
    """Return the pixels or the reason."""
    try:
        header = inspect_image(data, LIMITS)
        image = decode_image(data, LIMITS)
    except InvalidInput as error:
        return error.reason
    assert sorted(image.size) == sorted((header.width, header.height))
    return image.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_decode_image_rejects_truncated_files(name: str) -> None:
    outcomes = {decoded_or_refused(FILES[name][:end]) for end in range(32, len(FILES[name]), 17)}

    assert {"TRUNCATED_IMAGE"} <= outcomes <= {"TRUNCATED_IMAGE", decoded_or_refused(FILES[name])}


@settings(deadline=None)
@given(st.sampled_from([b"", *{data[:12] for data in FILES.values()}]), st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_and_nothing_worse(start: bytes, data: bytes) -> None:
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
    alone = [decoded_or_refused(data) for data in FILES.values()]

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(decoded_or_refused, [*FILES.values()] * 10))

    assert together == alone * 10
