import numpy as np
import pytest
from PIL import Image, ImageFilter

from services.common.errors import InvalidInput
from services.trainer.data.samples import Samples
from services.trainer.evaluation.figures import Evaluation
from services.trainer.evaluation.robustness import (
    CORRUPTIONS,
    SEVERITIES,
    Predict,
    Robustness,
    corrupt,
    measure_robustness,
    spoilt_accuracy,
)


def spoilt(images: np.ndarray, corruption: str, severity: int, seed: int = 0) -> np.ndarray:
    return corrupt(images, corruption, severity, np.random.default_rng(seed))


def grey(value: int, side: int = 32) -> np.ndarray:
    return np.full((4, side, side, 3), value, np.uint8)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_harder_severities_change_more(corruption: str, unseen: Samples) -> None:
    images = unseen.images[:50].astype(np.float64)

    changes = [np.abs(spoilt(unseen.images[:50], corruption, each) - images).mean() for each in SEVERITIES]

    assert changes == sorted(changes)
    assert changes[0] > 0.1


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_images_stay_images_and_the_clean_ones_stay_clean(corruption: str, unseen: Samples) -> None:
    images = unseen.images[:3].copy()

    found = spoilt(images, corruption, 5)

    assert (found.shape, found.dtype) == (images.shape, np.uint8)
    assert (images == unseen.images[:3]).all()


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_two_halves_are_spoilt_as_the_whole_is(corruption: str, unseen: Samples) -> None:
    generator = np.random.default_rng(7)

    halves = [corrupt(part, corruption, 3, generator) for part in (unseen.images[:5], unseen.images[5:10])]

    assert (np.concatenate(halves) == spoilt(unseen.images[:10], corruption, 3, seed=7)).all()


def test_gaussian_noise_has_the_deviation_of_cifar10_c() -> None:
    found = spoilt(grey(128), "gaussian_noise", 5).astype(np.float64)

    assert found.std() / 255 == pytest.approx(0.10, rel=0.03)
    assert found.mean() == pytest.approx(128, abs=1)


def test_shot_noise_grows_with_the_light() -> None:
    """Poisson: the variance is the mean over the photons that make white."""
    for value in (50, 120):
        assert (spoilt(grey(value), "shot_noise", 5) / 255).var() == pytest.approx(value / 255 / 50, rel=0.06)


def test_large_images_are_spoilt_as_in_imagenet_c() -> None:
    assert spoilt(grey(128, side=128), "gaussian_noise", 1).std() / 255 == pytest.approx(0.08, rel=0.02)


def test_blur_is_that_of_pillow_up_to_its_approximation(unseen: Samples) -> None:
    image = unseen.images[0]
    pillow = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0)), np.float64)

    found = spoilt(image[None], "gaussian_blur", 5)[0]

    assert np.abs(found - pillow).mean() < 2
    assert np.abs(image - pillow).mean() > 5


def test_blur_keeps_an_even_image() -> None:
    assert (spoilt(grey(77), "gaussian_blur", 5) == 77).all()


def test_brightness_raises_the_value_and_keeps_hue_and_saturation() -> None:
    pixel = np.array([[[[100, 50, 0]]]], np.uint8)

    found = spoilt(pixel, "brightness", 5)[0, 0, 0]

    assert found.tolist() == pytest.approx([100 + 0.3 * 255, (100 + 0.3 * 255) / 2, 0], abs=1)


def test_brightness_makes_black_grey() -> None:
    assert (spoilt(grey(0), "brightness", 3) == round(0.15 * 255)).all()


def test_contrast_draws_pixels_to_the_mean_of_their_image() -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0] = 200

    assert np.unique(spoilt(image, "contrast", 2)).tolist() == [50, 150]


@pytest.fixture(scope="module")
def measured(predict: Predict, unseen: Samples) -> Robustness:
    return measure_robustness(predict, unseen, seed=3, corruptions=("brightness", "gaussian_noise", "jpeg"))


def test_robustness_begins_with_the_clean_accuracy(measured: Robustness, evaluation: Evaluation) -> None:
    assert measured.clean_accuracy == evaluation.accuracy


def test_spoilt_images_are_harder(measured: Robustness) -> None:
    assert measured.mean_accuracy < measured.clean_accuracy
    assert measured.accuracy["gaussian_noise"][4] < measured.clean_accuracy - 0.1


def test_mean_accuracy_is_over_all_corruptions_and_severities(measured: Robustness) -> None:
    assert measured.mean_accuracy == pytest.approx(
        np.mean([each for row in measured.accuracy.values() for each in row])
    )
    assert {len(row) for row in measured.accuracy.values()} == {5}


def test_robustness_does_not_depend_on_batches_or_on_the_other_corruptions(
    measured: Robustness, predict: Predict, unseen: Samples
) -> None:
    alone = measure_robustness(predict, unseen, seed=3, corruptions=["gaussian_noise"], batch_size=77)

    assert alone.accuracy["gaussian_noise"] == measured.accuracy["gaussian_noise"]


def test_model_is_given_arrays_of_its_own_where_samples_are_read_only(predict: Predict, unseen: Samples) -> None:
    images = unseen.images[:5].copy()
    images.flags.writeable = False

    found = measure_robustness(predict, Samples(images, unseen.labels[:5]), 0, corruptions=["jpeg"])

    assert found.samples == 5


def test_progress_grows_to_one(predict: Predict, unseen: Samples) -> None:
    told: list[float] = []

    measure_robustness(predict, unseen[:2], 0, corruptions=["contrast", "jpeg"], on_progress=told.append)

    assert told == pytest.approx([each / 10 for each in range(1, 11)])


@pytest.mark.parametrize(
    ("corruption", "severity", "sentence"),
    [("fog", 1, "corruption 'fog' is unknown; use one of gaussian_noise"), ("jpeg", 6, "severity is 6; it must be 1")],
)
def test_unknown_corruptions_and_severities_are_rejected(corruption: str, severity: int, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        spoilt(grey(1), corruption, severity)


def test_no_samples_are_rejected(predict: Predict, unseen: Samples) -> None:
    with pytest.raises(InvalidInput, match="at least one sample"):
        measure_robustness(predict, unseen[:0], 0)


def test_models_are_compared_on_spoilt_pictures_of_all_classes() -> None:
    ordered = Samples(np.full((1000, 8, 8, 3), 128, np.uint8), np.arange(1000) // 100)
    seen = []

    def last_class(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return np.eye(10)[np.full(len(images), 9)]

    assert spoilt_accuracy(last_class, ordered) == pytest.approx(0.1)
    assert set(seen) == {300}
    assert spoilt_accuracy(last_class, ordered[990:]) == 1.0
