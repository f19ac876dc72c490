"""How well a model does on spoilt images: noise, blur, other light, JPEG; numpy and Pillow only."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from services.common.errors import InvalidInput
from services.trainer.data.samples import Samples

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]
Predict = Callable[[Images], NDArray[np.floating[Any]]]
"""Images (n, height, width, 3) to probabilities (n, classes)."""

SEVERITIES = (1, 2, 3, 4, 5)

# After Hendrycks & Dietterich (2019), who made ImageNet-C and, with gentler strengths, CIFAR-10-C; pixels are 0 to 1.
# What leaves a picture of 224 pixels readable wipes out one of 32, so small images get the latter's.
_SMALL_BELOW = 96
_SMALL: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons that make white
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels
    "brightness": (0.05, 0.10, 0.15, 0.20, 0.30),  # added to the value of HSV
    "contrast": (0.75, 0.50, 0.40, 0.30, 0.15),  # what remains of the distance from the mean
    "jpeg": (80, 65, 58, 50, 40),  # quality
}
_LARGE: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "gaussian_blur": (1, 2, 3, 4, 6),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "jpeg": (25, 18, 15, 10, 7),
}
CORRUPTIONS = tuple(_SMALL)
_SPOILT_SAMPLES = 300
_SPOILT_CORRUPTIONS = ("gaussian_noise", "gaussian_blur", "jpeg")
_SPOILT_SEVERITIES = (3,)


class AttackResult(BaseModel):
    """Accuracy on images that were changed so that the model errs."""

    model_config = ConfigDict(frozen=True)

    attack: str
    epsilon: float
    """Largest change of a pixel, in units of 0 to 255."""
    steps: int
    samples: int
    accuracy: float
    accuracy_low: float
    """Lower end of the 95 % Wilson interval."""
    accuracy_high: float


class Robustness(BaseModel):
    """Accuracy on spoilt images."""

    model_config = ConfigDict(frozen=True)

    samples: int
    seed: int
    clean_accuracy: float
    """Of the same samples as they are."""
    accuracy: dict[str, tuple[float, ...]]
    """By corruption; one for each severity that was asked for."""
    mean_accuracy: float
    """Over all corruptions and severities."""
    attacks: tuple[AttackResult, ...] = ()


def measure_robustness(
    predict: Predict,
    samples: Samples,
    seed: int,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 500,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> Robustness:
    """Measure the accuracy on *samples* under each corruption at each severity.

    Args:
        predict: The model; is given *batch_size* images at most, an array of its own.
        samples: Clean ones.
        seed: Of the noise; the same seed spoils the same images in the same way, whatever the batch size.
        corruptions: Some of `CORRUPTIONS`.
        severities: Some of `SEVERITIES`.
        batch_size: Images that are spoilt and predicted together.
        on_progress: Called with the fraction done, 0 to 1.

    Raises:
        InvalidInput: There are no samples, or a corruption is unknown.
    """
    if not len(samples):
        raise InvalidInput("robustness needs at least one sample; give some")
    clean = _accuracy(predict, samples, batch_size, np.array)
    accuracy: dict[str, tuple[float, ...]] = {}
    for done, corruption in enumerate(corruptions):
        results = []
        for number, severity in enumerate(severities, 1):
            # A generator for each, so that leaving one out does not change the others.
            generator = np.random.default_rng([seed, _position(corruption), severity])
            spoil = _spoiler(corruption, severity, generator)
            results.append(_accuracy(predict, samples, batch_size, spoil))
            on_progress((done + number / len(severities)) / len(corruptions))
        accuracy[corruption] = tuple(results)
    return Robustness(
        samples=len(samples),
        seed=seed,
        clean_accuracy=clean,
        accuracy=accuracy,
        mean_accuracy=float(np.mean(list(accuracy.values()))) if accuracy else clean,
    )


def spoilt_accuracy(predict: Predict, samples: Samples, batch_size: int = 500) -> float:
    """Return the accuracy on some of *samples* with noise, blur and JPEG artefacts, by which models are compared.

    The same samples are chosen and spoilt in the same way for every model.

    Args:
        predict: The model; is given *batch_size* images at most, an array of its own.
        samples: Clean ones; 300 that lie evenly spread among them are taken, since some sets are ordered by class.
        batch_size: Images that are spoilt and predicted together.

    Raises:
        InvalidInput: There are no samples.
    """
    count = min(len(samples), _SPOILT_SAMPLES)
    chosen = samples[np.arange(count) * len(samples) // max(count, 1)]
    measured = measure_robustness(
        predict,
        chosen,
        seed=0,
        corruptions=_SPOILT_CORRUPTIONS,
        severities=_SPOILT_SEVERITIES,
        batch_size=batch_size,
    )
    return measured.mean_accuracy


def corrupt(images: Images, corruption: str, severity: int, generator: np.random.Generator) -> Images:
    """Return spoilt copies of *images*, uint8 (n, height, width, 3).

    Args:
        images: Those with a shorter side below 96 pixels are spoilt as in CIFAR-10-C, larger ones as in ImageNet-C.
        corruption: One of `CORRUPTIONS`.
        severity: 1 to 5.
        generator: Of the noise; used image by image, so that two halves get what the whole would.

    Raises:
        InvalidInput: The corruption is unknown or the severity is outside its range.
    """
    if severity not in SEVERITIES:
        raise InvalidInput(f"severity is {severity}; it must be 1 to {SEVERITIES[-1]}", field="severity")
    _position(corruption)
    strengths = _SMALL if min(images.shape[1:3]) < _SMALL_BELOW else _LARGE
    strength = strengths[corruption][severity - 1]
    if corruption == "jpeg":
        return _jpeg(images, int(strength))
    unit = images.astype(np.float32) / np.float32(255)
    if corruption == "gaussian_noise":
        spoilt = unit + strength * generator.standard_normal(unit.shape, np.float32)
    elif corruption == "shot_noise":
        spoilt = (generator.poisson(unit * strength) / strength).astype(np.float32)
    elif corruption == "gaussian_blur":
        spoilt = _blur(unit, strength)
    elif corruption == "brightness":
        spoilt = _brighten(unit, strength)
    else:
        mean = unit.mean(axis=(1, 2), keepdims=True)  # (n, 1, 1, 3)
        spoilt = mean + strength * (unit - mean)
    pixels: Images = np.rint(spoilt.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _blur(unit: Floats, deviation: float) -> Floats:
    """Convolve with a Gaussian, cut off at four standard deviations; the border goes on as it ends."""
    reach = max(1, int(4 * deviation + 0.5))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (1, 2):
        padded = np.pad(unit, [(reach, reach) if each == axis else (0, 0) for each in range(4)], mode="edge")
        length = unit.shape[axis]
        unit = np.zeros_like(unit)
        for at, tap in enumerate(taps):
            unit += tap * padded[:, at : at + length] if axis == 1 else tap * padded[:, :, at : at + length]
    return unit


def _brighten(unit: Floats, amount: float) -> Floats:
    """Add to the value of HSV, which is the largest channel; hue and saturation stay, so all channels scale alike."""
    value = unit.max(axis=3, keepdims=True)
    raised = np.minimum(value + np.float32(amount), 1)
    brighter: Floats = np.where(value > 0, unit * (raised / np.maximum(value, 1e-6)), raised)
    return brighter


def _jpeg(images: Images, quality: int) -> Images:
    spoilt = np.empty_like(images)
    for position, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as picture:
            spoilt[position] = np.asarray(picture)
    return spoilt


def _spoiler(corruption: str, severity: int, generator: np.random.Generator) -> Callable[[Images], Images]:
    return lambda images: corrupt(images, corruption, severity, generator)


def _accuracy(predict: Predict, samples: Samples, batch_size: int, spoil: Callable[[Images], Images]) -> float:
    correct = 0
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        correct += int((predict(spoil(batch.images)).argmax(axis=1) == batch.labels).sum())
    return correct / len(samples)


def _position(corruption: str) -> int:
    if corruption not in CORRUPTIONS:
        raise InvalidInput(
            f"corruption {corruption!r} is unknown; use one of {', '.join(CORRUPTIONS)}", field="corruption"
        )
    return CORRUPTIONS.index(corruption)
