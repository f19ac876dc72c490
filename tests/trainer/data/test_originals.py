"""Samples of two preprocess specs are aligned by the pictures that both come from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from services.common.errors import Conflict
from services.common.manifest import PreprocessSpec
from services.trainer.data.datasets import Dataset, load_dataset, load_with_originals
from services.trainer.data.originals import SET_CHANGED, Originals
from services.trainer.data.pictures import read_picture
from services.trainer.data.samples import Samples
from services.trainer.data.sources import DataSources
from services.trainer.options import TrainingOptions
from tests.trainer.data.conftest import encoded, write_classes

LARGE = PreprocessSpec(input="image", width=12, height=12)
FLOATS = PreprocessSpec(input="pixels", width=48, height=40, layout="NCHW", datatype="FP32", scale=1 / 255)


def test_the_parts_of_a_set_hold_the_same_pictures_whatever_pixels_are_made_of_them(
    root: Path, sources: DataSources, options: Callable[..., TrainingOptions]
) -> None:
    folder = write_classes(root / "pets", {"cat": 12, "dog": 12})
    pictures = {path: read_picture(path.read_bytes()) for path in folder.rglob("*.png")}

    dataset, originals = load_with_originals(options(str(folder)), sources)
    again = load_dataset(options(str(folder), pixels={"width": 12, "height": 12}), sources)

    def shown(samples: NDArray[np.uint8], spec: PreprocessSpec) -> list[Path]:
        by_pixels = {picture.pixels(spec).tobytes(): path for path, picture in pictures.items()}
        return [by_pixels[each.tobytes()] for each in samples]

    for part in ("train", "validation", "test"):
        samples: Samples = getattr(dataset, part)
        paths = shown(samples.images, dataset.spec)
        assert shown(originals[part].pixels(slice(None), LARGE), LARGE) == paths
        assert [dataset.labels[label] for label in samples.labels] == [path.parent.name for path in paths]
    # What is judged on is drawn by the pixels: a set that is loaded for another size judges on other pictures.
    assert set(shown(again.test.images, again.spec)) != set(shown(dataset.test.images, dataset.spec))


def test_pixels_that_are_all_there_is_are_made_into_others_as_a_picture_of_a_user_is(
    slice_samples: tuple[Samples, Samples],
) -> None:
    images = slice_samples[1].images[:5]
    originals = Originals(images, PreprocessSpec(input="image", width=32, height=32))

    made = originals.pixels(slice(3, 9), FLOATS)

    sent = [read_picture(encoded(Image.fromarray(each))).pixels(FLOATS) for each in images[3:]]
    assert (made.shape, made.dtype) == ((2, 3, 40, 48), np.float32)
    assert np.array_equal(made, np.stack(sent))


@pytest.mark.parametrize("change", [Path.unlink, lambda path: Image.new("RGB", (10, 12), "red").save(path)])
def test_a_picture_that_has_changed_since_stands_for_no_sample(
    change: Callable[[Path], None], root: Path, sources: DataSources, options: Callable[..., TrainingOptions]
) -> None:
    folder = write_classes(root / "pets", {"cat": 8, "dog": 8})
    loaded: tuple[Dataset, dict[str, Originals]] = load_with_originals(options(str(folder)), sources)
    test = loaded[1]["test"]
    file = test.file(1)
    assert file is not None
    change(file.path)

    assert test.pixels(slice(0, 1), LARGE).shape == (1, 12, 12, 3)
    assert np.array_equal(test.pixels(slice(0, 2), loaded[0].spec), loaded[0].test.images[:2])
    with pytest.raises(Conflict, match="is not as it was when its set was read") as caught:
        test.pixels(slice(0, 2), LARGE)
    assert caught.value.reason == SET_CHANGED
