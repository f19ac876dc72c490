import numpy as np
import pytest
from PIL import Image, ImageEnhance

from services.trainer.data.cleaning import find_near_duplicates, find_problems
from services.trainer.data.collection import OPEN, PARTS
from services.trainer.data.samples import Samples
from tests.trainer.data.conftest import collection_of, encoded
from tests.trainer.data.test_pictures import read_picture

TRAIN, VALIDATION, TEST = range(len(PARTS))


def told(problems):
    return [(each.kind, each.position, each.other_position) for each in problems]


@pytest.fixture
def few(slice_samples: tuple[Samples, Samples]) -> Samples:
    """Six images of classes 0, 0, 1, 1, 2, 2."""
    public = slice_samples[0]
    return public[np.concatenate([np.flatnonzero(public.labels == label)[:2] for label in range(3)])]


def repeated(samples: Samples, positions: list[int], labels: list[int]) -> Samples:
    images = np.concatenate([samples.images, samples.images[positions]])
    return Samples(images, np.concatenate([samples.labels, labels]))


def test_real_images_have_no_problems(slice_samples: tuple[Samples, Samples]) -> None:
    assert find_problems(collection_of(slice_samples[0])) == []


def test_equal_pixels_under_one_label_are_duplicates_of_the_first(few: Samples) -> None:
    problems = find_problems(collection_of(repeated(few, [1, 1, 4], [0, 0, 2])))

    assert told(problems) == [("duplicate", 6, 1), ("duplicate", 7, 1), ("duplicate", 8, 4)]
    assert (problems[0].sample, problems[0].other, problems[0].detail) == ("6", "1", "has the pixels of 1")


def test_equal_pixels_under_two_labels_are_conflicts_on_both_sides(few: Samples) -> None:
    problems = find_problems(collection_of(repeated(few, [1, 1], [2, 0])))

    assert told(problems) == [("conflict", 1, 6), ("conflict", 6, 1), ("conflict", 7, 6)]
    assert problems[1].detail == "has the pixels of 1, which is class 0, not class 2"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (TRAIN, TEST, ("leak", 1, 6)),
        (TEST, TRAIN, ("leak", 6, 1)),
        (VALIDATION, TEST, ("leak", 1, 6)),
        (TRAIN, TRAIN, ("duplicate", 6, 1)),
        (OPEN, OPEN, ("duplicate", 6, 1)),
    ],
)
def test_what_is_measured_on_keeps_the_picture_that_training_has_too(
    few: Samples, first: int, second: int, expected: tuple[str, int, int]
) -> None:
    samples = repeated(few, [1], [0])
    parts = np.full(len(samples), first, np.int8)
    parts[6] = second

    problems = find_problems(collection_of(samples, parts=parts))

    assert told(problems) == [expected]


def test_a_leak_names_both_parts(few: Samples) -> None:
    parts = np.array([TRAIN] * 6 + [TEST], np.int8)

    problems = find_problems(collection_of(repeated(few, [1], [0]), parts=parts))

    assert problems[0].detail == "is in train and has the pixels of 6 in test"


def test_unreadable_samples_come_first_and_are_no_duplicates_of_each_other(few: Samples) -> None:
    samples = Samples(np.concatenate([few.images, np.zeros_like(few.images[:2])]), np.concatenate([few.labels, [0, 1]]))

    problems = find_problems(collection_of(samples, unreadable={7: "is broken", 6: "is gone"}))

    assert [(each.kind, each.position, each.detail) for each in problems] == [
        ("unreadable", 6, "is gone"),
        ("unreadable", 7, "is broken"),
    ]


@pytest.mark.parametrize("change", ["compressed", "smaller", "brighter", "noisy"])
def test_nearly_the_same_picture_is_found(slice_samples: tuple[Samples, Samples], change: str) -> None:
    """Of 300 real pictures and a changed copy of each, at least nine in ten copies are found, and little else."""
    samples = slice_samples[0][:300]
    generator = np.random.default_rng(0)

    def changed(pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels)
        match change:
            case "compressed":
                return np.asarray(read_picture(encoded(image, "JPEG", quality=60)).image)
            case "smaller":
                return np.asarray(image.resize((24, 24), 2).resize((32, 32), 2))
            case "brighter":
                return np.asarray(ImageEnhance.Brightness(image).enhance(1.15))
        return np.clip(pixels + generator.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)

    copies = np.stack([changed(image) for image in samples.images])
    both = Samples(np.concatenate([samples.images, copies]), np.tile(samples.labels, 2))
    problems = find_near_duplicates(collection_of(both))

    right = [each for each in problems if each.position == (each.other_position or 0) + 300]
    assert len(right) >= 270
    assert len(problems) - len(right) <= 3


def test_equal_pictures_are_not_near_duplicates_too(few: Samples) -> None:
    assert find_near_duplicates(collection_of(repeated(few, [1], [0]))) == []


def test_flat_pictures_are_not_taken_for_each_other() -> None:
    images = np.full((20, 32, 32, 3), np.arange(20, dtype=np.uint8)[:, None, None, None] * 12, np.uint8)
    images[:, 3, 3] += 1

    assert find_near_duplicates(collection_of(Samples(images, np.arange(20) % 2))) == []


def test_near_duplicates_tell_other_labels(few: Samples) -> None:
    images = np.concatenate([few.images, few.images[:1] ^ 1])

    problems = find_near_duplicates(collection_of(Samples(images, np.append(few.labels, 2))))

    assert [each.detail for each in problems] == ["shows nearly the same as 0, which is class 0, not class 2"]


def test_one_sample_has_no_near_duplicates(few: Samples) -> None:
    assert find_near_duplicates(collection_of(few[:1])) == []
