"""What a picture becomes for training is what serving would send of it, to the last bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from services.common.errors import InvalidInput
from services.common.manifest import PreprocessSpec
from services.common.pixels import transform
from services.preprocess.decoding import DecodeLimits, decode_image
from services.trainer.data import pictures
from services.trainer.data.pictures import check_spec, read_picture
from tests.trainer.data.conftest import encoded
from tests.trainer.data.test_metadata import FILES, PHOTO, SLOPE, chunk, exif

LIMITS = DecodeLimits(pictures.MAX_IMAGE_BYTES, pictures.MAX_IMAGE_PIXELS)
SPECS = [
    PreprocessSpec(input="image", width=16, height=16),
    PreprocessSpec(input="image", width=20, height=12, mode="crop", filter="bicubic"),
    PreprocessSpec(input="image", width=24, height=24, mode="letterbox", background=(9, 99, 199)),
]
PALETTE, GREY = PHOTO.quantize(64), PHOTO.convert("L")
RGBA = Image.merge("RGBA", (*PHOTO.split(), GREY))
DEEP = Image.fromarray(SLOPE.astype(np.uint16) * 200)
ALL = {name: data for name, (_, data) in FILES.items()} | {
    "jpeg-turned-twice": encoded(PHOTO, "JPEG", exif=exif(6))[:2] + encoded(PHOTO, "JPEG", exif=exif(3))[2:],
    "png-16": encoded(DEEP),
    "png-grey-alpha": encoded(RGBA.convert("LA")),
    "png-grey-key": encoded(GREY, transparency=30),
    "png-rgb-key": encoded(PHOTO, transparency=(0, 145, 0)),
    "png-1-bit": encoded(PHOTO.convert("1")),
    "png-animated": encoded(PHOTO, save_all=True, append_images=[PHOTO.rotate(180)]),
    "webp-alpha": encoded(RGBA, "WEBP", lossless=True),
    "webp-xmp": encoded(PHOTO, "WEBP", xmp=b'<x tiff:Orientation="6"/>'),
    "gif": encoded(PALETTE, "GIF", transparency=3, comment="a comment"),
    "gif-animated": encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
    "bmp": encoded(PHOTO, "BMP"),
    "bmp-palette": encoded(PALETTE, "BMP"),
    "tiff": encoded(PHOTO, "TIFF", exif=exif(8), compression="tiff_deflate"),
    "tiff-16": encoded(DEEP, "TIFF"),
    "tiff-alpha": encoded(RGBA, "TIFF"),
    "tiff-cmyk": encoded(PHOTO.convert("CMYK"), "TIFF"),
    "avif": encoded(PHOTO, "AVIF", exif=exif(5)),
    "avif-alpha": encoded(RGBA, "AVIF"),
}
LOSSLESS = encoded(PHOTO, "WEBP", lossless=True)
KEPT = [name for name in ALL if name != "tiff-cmyk"]


def served(data: bytes, spec: PreprocessSpec) -> np.ndarray:
    """Return what preprocess would send."""
    return transform(decode_image(data, LIMITS), spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.mode)
@pytest.mark.parametrize("name", ALL)
def test_pixels_equal_those_that_serving_sends(name: str, spec: PreprocessSpec) -> None:
    assert np.array_equal(read_picture(ALL[name]).pixels(spec), served(ALL[name], spec))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_as_serving_turns_them(name: str, orientation: int) -> None:
    data = encoded(PHOTO, name, exif=exif(orientation))

    assert np.array_equal(read_picture(data).pixels(SPECS[0]), served(data, SPECS[0]))


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_without_metadata_has_the_same_pixels(name: str) -> None:
    picture = read_picture(ALL[name])

    data, kind = picture.without_metadata()
    again = read_picture(data, picture.orientation)

    assert kind in ("JPEG", "PNG", "WebP")
    assert again.format == kind
    assert again.pixel_digest == picture.pixel_digest
    assert all(np.array_equal(again.pixels(spec), served(ALL[name], spec)) for spec in SPECS)
    assert b"Jane" not in data


def test_a_colour_mode_that_png_cannot_hold_is_not_kept() -> None:
    with pytest.raises(InvalidInput, match=r"is TIFF in colour mode CMYK, .*; save it again as PNG or JPEG"):
        read_picture(ALL["tiff-cmyk"]).without_metadata()


def test_equal_pixels_have_one_digest_whatever_the_file() -> None:
    files = [
        encoded(PHOTO),
        encoded(PHOTO, "BMP"),
        encoded(PHOTO, "WEBP", lossless=True),
        encoded(PHOTO, "TIFF"),
        encoded(PHOTO.transpose(Image.Transpose.ROTATE_90), exif=exif(6)),
    ]

    assert len({read_picture(data).pixel_digest for data in files}) == 1
    assert read_picture(encoded(PHOTO.rotate(180))).pixel_digest != read_picture(files[0]).pixel_digest


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "EMPTY_IMAGE", "the 0 bytes do not begin like an image; send JPEG, PNG"),
        (b"hello", "NOT_AN_IMAGE", "the 5 bytes do not begin like an image"),
        (encoded(PHOTO)[:100], "DAMAGED_IMAGE", "the PNG image of 100 bytes is damaged or ends early; save it again"),
        (bytes(pictures.MAX_IMAGE_BYTES + 1), "TOO_MANY_BYTES", "33,554,433 bytes; the limit is 33,554,432; compress"),
        (
            encoded(PHOTO)[:8] + chunk(b"IHDR", b"\0\1\0\0\0\1\0\0\10\2\0\0\0") + encoded(PHOTO)[33:],
            "TOO_MANY_PIXELS",
            "65,536 x 65,536 = 4,294,967,296 pixels; the limit is 64,000,000; make it smaller",
        ),
        (
            LOSSLESS[:21] + b"\xff\xff\xff\x0f" + LOSSLESS[25:],
            "TOO_MANY_PIXELS",
            "16,384 x 16,384 = 268,435,456 pixels",
        ),
    ],
    ids=["empty", "text", "cut", "bytes", "png-pixels", "webp-pixels"],
)  # fmt: skip
def test_what_is_no_picture_is_refused_with_a_reason(data: bytes, reason: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_picture(data)

    assert caught.value.reason == reason
    assert words in caught.value.message


@given(
    name=st.sampled_from(sorted(ALL)),
    damages=st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=3)), max_size=3),
)
def test_damaged_files_become_what_serving_makes_of_them_or_are_refused(
    name: str, damages: list[tuple[int, bytes]]
) -> None:
    data = ALL[name]
    for place, content in damages:
        data = data[:place] + content + data[place + len(content) :]

    try:
        pixels, expected = read_picture(data).pixels(SPECS[0]), served(data, SPECS[0])
    except InvalidInput:
        return
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize(
    "changes", [{"datatype": "FP32"}, {"layout": "NCHW"}, {"color": "BGR"}, {"color": "L"}], ids=str
)
def test_a_spec_whose_pixels_cannot_be_learnt_from_is_refused(changes: dict[str, str]) -> None:
    spec = PreprocessSpec.model_validate({"input": "image", "width": 8, "height": 8, **changes})

    with pytest.raises(InvalidInput, match=r"pixels; training takes UINT8 NHWC RGB .*: leave datatype, layout"):
        check_spec(spec)
