"""The one transform: colours, geometry, channels and numbers, against expected pixels and other implementations."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from services.common.manifest import PreprocessSpec
from services.common.pixels import exif_orientation, transform, upright
from services.common.tensors import numpy_dtype

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # broken EXIF

BACKGROUND = (10, 20, 30)


def spec(width: int, height: int, **fields: Any) -> PreprocessSpec:
    return PreprocessSpec(input="image", width=width, height=height, **fields)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(mode: str, *values: Any, **info: Any) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    image.info.update(info)
    return image


def palette(mode: str, *values: Any, **info: Any) -> Image.Image:
    image = pixels(mode, *values, **info)
    image.putpalette([1, 2, 3, 200, 100, 50])
    return image


def test_transform_passes_rgb_of_the_right_size_bit_for_bit() -> None:
    image = noise(32, 32)

    tensor = transform(image, spec(32, 32))

    assert tensor.flags.c_contiguous
    assert tensor.flags.writeable
    assert tensor.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (pixels("1", 0, 255), [(0, 0, 0), (255, 255, 255)]),
        (pixels("L", 0, 77, transparency=77), [(0, 0, 0), BACKGROUND]),
        (pixels("LA", (77, 255), (77, 0)), [(77, 77, 77), BACKGROUND]),
        (pixels("La", (77, 255), (0, 0)), [(77, 77, 77), BACKGROUND]),
        (palette("P", 1, 0, transparency=0), [(200, 100, 50), BACKGROUND]),
        (palette("P", 0, 1, transparency=b"\xff\x80"), [(1, 2, 3), (105, 60, 40)]),
        (palette("PA", (0, 255), (1, 0)), [(1, 2, 3), BACKGROUND]),
        (pixels("RGB", (1, 2, 3), (4, 5, 6), transparency=(4, 5, 6)), [(1, 2, 3), BACKGROUND]),
        (pixels("RGBA", (1, 2, 3, 255), (200, 100, 50, 128)), [(1, 2, 3), (105, 60, 40)]),
        (pixels("RGBa", (1, 2, 3, 255), (0, 0, 0, 0)), [(1, 2, 3), BACKGROUND]),
        (pixels("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)), [(255, 255, 255), (0, 255, 255), (0, 0, 0)]),
        (pixels("YCbCr", (255, 128, 128), (76, 85, 255)), [(255, 255, 255), (254, 0, 0)]),
        (pixels("HSV", (0, 255, 255), (0, 0, 9)), [(255, 0, 0), (9, 9, 9)]),
        (pixels("I;16", 255, 256, 65535), [(0, 0, 0), (1, 1, 1), (255, 255, 255)]),
        (pixels("I;16", 5, 40_000, transparency=40_000), [(0, 0, 0), BACKGROUND]),
        (pixels("I", -1, 32768, 100_000), [(0, 0, 0), (128, 128, 128), (255, 255, 255)]),
        (pixels("F", -0.5, 0.5, 7.0, float("nan")), [(0, 0, 0), (128, 128, 128), (255, 255, 255), (0, 0, 0)]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_transform_shows_the_colours_of_every_mode(image: Image.Image, expected: list[tuple[int, int, int]]) -> None:
    tensor = transform(image, spec(image.width, 1, background=BACKGROUND))

    assert [tuple(pixel) for pixel in tensor[0].tolist()] == expected


def test_transform_shows_the_colours_of_lab_within_a_level() -> None:
    tensor = transform(pixels("LAB", (0, 128, 128), (255, 128, 128)), spec(2, 1))

    assert np.abs(tensor[0] - [[0] * 3, [255] * 3]).max() <= 1


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_transform_scales_16_bits_and_does_not_clip_them(byte_order: str) -> None:
    ramp = np.arange(65536, dtype=byte_order).reshape(256, 256)

    tensor = transform(Image.fromarray(ramp), spec(256, 256, color="L"))

    assert (tensor[..., 0] == ramp >> 8).all()


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("stretch", (2, 1), [[5, 45]]),  # each the mean of two by two
        ("crop", (1, 1), [[5]]),  # two by one, of which the cut begins at round(0.5), which is 0
        ("letterbox", (2, 3), [[7, 7], [5, 45], [7, 7]]),
    ],
)
def test_transform_cuts_and_pads_as_its_mode_says(mode: Any, size: tuple[int, int], expected: list[list[int]]) -> None:
    image = Image.fromarray(np.array([[0, 10, 40, 50], [0, 10, 40, 50]], np.uint8))

    tensor = transform(image, spec(*size, mode=mode, filter="box", color="L", padding=(7, 7, 7)))

    assert tensor[..., 0].tolist() == expected


@pytest.mark.parametrize(("color", "bars"), [("RGB", [9, 99, 199]), ("BGR", [199, 99, 9]), ("L", [83])])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_letterbox_has_bars_in_the_padding_colour(color: Any, bars: list[int], mode: str) -> None:
    tensor = transform(Image.new(mode, (8, 4)), spec(4, 4, mode="letterbox", padding=(9, 99, 199), color=color))

    assert tensor[0, 0].tolist() == tensor[3, 3].tolist() == bars
    assert tensor[1, 0].tolist() != bars


def test_bgr_reverses_the_channels_and_l_is_luma() -> None:
    image = noise(5, 3)

    assert (transform(image, spec(5, 3, color="BGR")) == np.asarray(image)[..., ::-1]).all()
    assert (transform(image, spec(5, 3, color="L"))[..., 0] == np.asarray(image.convert("L"))).all()


@pytest.mark.parametrize("mode", ["stretch", "crop", "letterbox"])
def test_grey_pictures_give_what_their_rgb_gives(mode: Any) -> None:
    grey, wanted = noise(50, 37).convert("L"), spec(20, 20, mode=mode, filter="bicubic")

    assert (transform(grey, wanted) == transform(grey.convert("RGB"), wanted)).all()


@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", np.float32), ("FP16", np.float16)])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_numbers_are_scaled_shifted_and_divided_per_channel(datatype: Any, dtype: type, layout: Any) -> None:
    image, mean, std = noise(6, 4), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    wanted = spec(6, 4, datatype=datatype, layout=layout, scale=1 / 255, mean=mean, std=std)

    tensor = transform(image, wanted)

    values = np.asarray(image).astype(np.float32)
    expected = (values * np.float32(1 / 255) - np.array(mean, np.float32)) / np.array(std, np.float32)
    expected = expected.transpose(2, 0, 1) if layout == "NCHW" else expected
    assert tensor.dtype == dtype
    assert tensor.shape == wanted.shape
    assert (tensor == expected.astype(dtype)).all()


def interpolated(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear, with pixels at the centres of their squares and the border repeated."""
    across = (np.arange(width) + 0.5) * values.shape[1] / width - 0.5
    down = (np.arange(height) + 0.5) * values.shape[0] / height - 0.5
    rows = np.array([np.interp(across, np.arange(len(row)), row) for row in values])
    return np.array([np.interp(down, np.arange(len(column)), column) for column in rows.T]).T


@pytest.mark.parametrize("size", [(3, 4), (11, 9), (7, 2), (30, 40)])
def test_without_antialias_bilinear_is_plain_interpolation_rounded_down(size: tuple[int, int]) -> None:
    image = noise(7, 5).convert("L")

    tensor = transform(image, spec(*size, antialias=False, color="L"))[..., 0]

    lost = interpolated(np.asarray(image, np.float64), *size) - tensor
    assert (lost > -1e-6).all()
    assert (lost < 1 + 1e-6).all()


def test_without_antialias_nearest_takes_the_pixel_at_the_centre() -> None:
    image = noise(9, 9)

    tensor = transform(image, spec(3, 3, filter="nearest", antialias=False))

    assert (tensor == np.asarray(image)[1::3, 1::3]).all()


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_crop_equals_torchvision(across: int, down: int, width: int, height: int, more: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    assume(max(across, down) <= 16 * min(across, down))
    image, side = noise(across, down), max(width, height) + more

    tensor = transform(image, spec(width, height, mode="crop", shorter_side=side))

    resized = functional.resize(image, side, functional.InterpolationMode.BILINEAR)
    assert (tensor == np.asarray(functional.center_crop(resized, [height, width]))).all()


@pytest.mark.parametrize("mode", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1)])
def test_a_line_of_pixels_needs_no_huge_picture_in_between(mode: Any, size: tuple[int, int]) -> None:
    tensor = transform(Image.new("RGB", size, (7, 8, 9)), spec(512, 512, mode=mode, padding=(7, 8, 9)))

    assert (tensor == (7, 8, 9)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_transform_turns_as_exif_says(orientation: int) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    noise(6, 4).save(buffer, "PNG", exif=exif)
    image = Image.open(buffer)
    expected = ImageOps.exif_transpose(Image.open(buffer))

    tensor = transform(image, spec(*expected.size))

    assert exif_orientation(image) == orientation
    assert tensor.tobytes() == expected.tobytes()


def test_an_orientation_that_is_given_goes_before_exif() -> None:
    image = noise(6, 4)
    image.info["exif"] = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"

    assert exif_orientation(image) == 6
    assert transform(image, spec(6, 4), orientation=3).tobytes() == image.rotate(180).tobytes()
    assert upright(image, 1) is image


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"nonsense", b"II*\0\xff\xff\xff\xff", b"MM\0*" + bytes(300_000)])
def test_broken_exif_does_not_cost_the_picture(exif: bytes) -> None:
    image = noise(4, 4)
    image.info["exif"] = exif

    assert transform(image, spec(4, 4)).tobytes() == image.tobytes()


@settings(deadline=None)
@given(st.data(), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from(["RGB", "L", "1", "RGBA", "I;16"]))
def test_the_tensor_has_the_shape_and_type_of_its_spec(data: st.DataObject, size: tuple[int, int], mode: str) -> None:
    choices: dict[str, list[Any]] = {
        "mode": ["stretch", "crop", "letterbox"],
        "filter": ["nearest", "bilinear", "bicubic"],
        "antialias": [True, False],
        "color": ["RGB", "BGR", "L"],
        "layout": ["NHWC", "NCHW"],
        "datatype": ["UINT8", "FP16", "FP32"],
    }
    fields = {name: data.draw(st.sampled_from(values), name) for name, values in choices.items()}
    wanted = spec(data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), **fields)

    tensor = transform(Image.new(mode, size), wanted)

    assert tensor.shape == wanted.shape
    assert tensor.dtype == numpy_dtype(wanted.datatype)
    assert tensor.flags.c_contiguous
