"""Metadata goes, pixels stay: files as cameras, phones and web sites write them."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from services.common.errors import InvalidInput
from services.trainer.data.metadata import MAX_SCANS, strip_jpeg, strip_png, strip_webp
from tests.trainer.data.conftest import encoded

SLOPE = np.add.outer(np.arange(30) * 5, np.arange(40) * 3)
PHOTO = Image.fromarray(np.stack([SLOPE, SLOPE[::-1], SLOPE // 2], -1).astype(np.uint8))
SECRET = b"taken at 48.8584 N by Jane Doe"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation: int = 6) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = SECRET.decode()
    return tags.tobytes()


def text() -> PngInfo:
    texts = PngInfo()
    texts.add_text("Comment", SECRET.decode())
    texts.add_text("Author", SECRET.decode(), zip=True)
    texts.add_itxt("Place", SECRET.decode())
    texts.add(b"tIME", b"\x07\xea\x01\x01\x00\x00\x00")
    return texts


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def jpeg(**options: Any) -> bytes:
    """A JPEG with all that people leave in one, and a film behind it, as phones write it."""
    data = encoded(PHOTO, "JPEG", exif=exif(), icc_profile=PROFILE, comment=SECRET, xmp=SECRET, **options)
    more = segment(0xED, b"Photoshop 3.0\0" + SECRET) + segment(0xEB, SECRET) + segment(0xE2, b"MPF\0" + SECRET)
    return data[:2] + more + data[2:] + SECRET


def thumbnailed() -> bytes:
    """A JPEG whose JFIF segment holds a thumbnail."""
    data = encoded(PHOTO, "JPEG")
    end = 4 + int.from_bytes(data[4:6])
    return data[:2] + segment(0xE0, data[6:18] + b"\2\2" + SECRET[:12]) + data[end:]


PNG = encoded(PHOTO, "PNG", exif=exif(), icc_profile=PROFILE, pnginfo=text())
WEBP = encoded(PHOTO, "WEBP", exif=exif(), icc_profile=PROFILE, xmp=SECRET)
FILES = {
    "jpeg": (strip_jpeg, jpeg()),
    "jpeg-progressive": (strip_jpeg, jpeg(progressive=True)),
    "jpeg-restarts": (strip_jpeg, jpeg(restart_marker_rows=1)),
    "jpeg-thumbnail": (strip_jpeg, thumbnailed()),
    "jpeg-cmyk": (strip_jpeg, encoded(PHOTO.convert("CMYK"), "JPEG", comment=SECRET)),
    "jpeg-grey": (strip_jpeg, encoded(PHOTO.convert("L"), "JPEG", comment=SECRET)),
    "png": (strip_png, PNG),
    "png-palette": (strip_png, encoded(PHOTO.quantize(16), "PNG", pnginfo=text(), transparency=3)),
    "png-exif-last": (strip_png, encoded(PHOTO)[:-12] + chunk(b"eXIf", exif()[6:]) + encoded(PHOTO)[-12:] + SECRET),
    "webp": (strip_webp, WEBP),
    "webp-lossless": (
        strip_webp,
        encoded(Image.merge("RGBA", (*PHOTO.split(), PHOTO.convert("L"))), "WEBP", lossless=True, exif=exif()),
    ),
    "webp-trailing": (strip_webp, WEBP + SECRET),
}


def pixels(data: bytes) -> tuple[str, tuple[int, int], bytes, object]:
    with Image.open(BytesIO(data)) as image:
        image.load()
        return image.mode, image.size, image.tobytes(), image.info.get("transparency")


@pytest.mark.parametrize("name", FILES)
def test_stripping_leaves_every_pixel_as_it_is(name: str) -> None:
    strip, data = FILES[name]

    assert pixels(strip(data).data) == pixels(data)


@pytest.mark.parametrize("name", FILES)
def test_stripping_leaves_no_metadata(name: str) -> None:
    strip, data = FILES[name]

    stripped = strip(data).data

    assert SECRET[:12] not in stripped
    with Image.open(BytesIO(stripped)) as image:
        image.load()
        assert not {"exif", "xmp", "comment", "photoshop", "mp", "Comment", "Author", "Place"} & image.info.keys()
        assert len(image.getexif()) == 0


@pytest.mark.parametrize("name", ["jpeg", "jpeg-progressive", "png", "png-exif-last", "webp", "webp-lossless"])
def test_stripping_gives_the_exif_that_it_removes(name: str) -> None:
    strip, data = FILES[name]
    tags = Image.Exif()

    tags.load(strip(data).exif)

    assert tags[0x0112] == 6


@pytest.mark.parametrize("name", ["jpeg", "png", "webp"])
def test_the_colour_profile_stays(name: str) -> None:
    strip, data = FILES[name]

    with Image.open(BytesIO(strip(data).data)) as image:
        assert image.info["icc_profile"] == PROFILE


@pytest.mark.parametrize("name", FILES)
def test_stripping_again_changes_nothing(name: str) -> None:
    strip, data = FILES[name]
    once = strip(data).data

    assert strip(once).data == once


def test_the_flags_of_a_webp_no_longer_announce_what_is_gone() -> None:
    assert WEBP[20] & 0x0C == 0x0C
    assert strip_webp(WEBP).data[20] & 0x0C == 0


def test_an_animation_becomes_its_still_picture() -> None:
    data = encoded(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(180)])

    stripped = strip_png(data).data

    assert b"acTL" in data
    assert b"acTL" not in stripped
    assert pixels(stripped)[2] == PHOTO.tobytes()


def test_a_jpeg_of_too_many_scans_is_refused() -> None:
    scan = segment(0xDA, bytes(6))

    with pytest.raises(InvalidInput, match="more than 100 scans or 16,384 segments; save it again"):
        strip_jpeg(b"\xff\xd8" + scan * (MAX_SCANS + 1))


def test_a_file_of_too_many_parts_is_refused() -> None:
    with pytest.raises(InvalidInput, match="PNG has more than 16,384 chunks"):
        strip_png(b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"") * 20_000)
    with pytest.raises(InvalidInput, match="WebP has more than 16,384 chunks"):
        strip_webp(b"RIFF" + struct.pack("<I", 200_004) + b"WEBP" + (b"ANMF" + bytes(4)) * 20_000)


@given(
    name=st.sampled_from(sorted(FILES)),
    damages=st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=4)), max_size=4),
    length=st.integers(0, 6000),
)
def test_damaged_files_are_stripped_or_refused_and_nothing_worse(
    name: str, damages: list[tuple[int, bytes]], length: int
) -> None:
    strip, data = FILES[name]
    for place, content in damages:
        data = data[:place] + content + data[place + len(content) :]

    assert len(strip(data[:length]).data) <= max(len(data), 12)
