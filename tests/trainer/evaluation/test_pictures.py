import io
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure
from PIL import Image

from services.common.errors import InvalidInput
from services.trainer.data.cifar10 import LABELS
from services.trainer.data.samples import Samples
from services.trainer.evaluation.figures import Evaluation
from services.trainer.evaluation.pictures import (
    DARK,
    LIGHT,
    Theme,
    draw_confusion,
    draw_learning_curve,
    draw_reliability,
    draw_robustness,
    example,
    to_bytes,
)
from services.trainer.evaluation.robustness import Robustness

HISTORY = {
    epoch: {"train_loss": 2 / epoch, "validation_loss": 2.1 / epoch, "validation_accuracy": 0.2, "learning_rate": 0.1}
    for epoch in range(1, 5)
}
ROBUSTNESS = Robustness(
    samples=10,
    seed=0,
    clean_accuracy=0.9,
    accuracy={"jpeg": (0.8, 0.7, 0.6, 0.5, 0.4), "gaussian_noise": (0.8, 0.6, 0.5, 0.45, 0.4)},
    mean_accuracy=0.6,
)


def texts(figure: Figure) -> list[str]:
    """Return the words in the picture, as a reader of its SVG finds them."""
    root = ElementTree.fromstring(to_bytes(figure, "svg"))
    return ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]


def pixels(figure: Figure) -> np.ndarray:
    with Image.open(io.BytesIO(to_bytes(figure, "png", resolution=50))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_confusion_names_labels_and_counts(evaluation: Evaluation) -> None:
    found = texts(draw_confusion(evaluation.confusion, LABELS))

    assert {*LABELS, "True", "Predicted"} <= set(found)
    assert {str(count) for row in evaluation.confusion for count in row if count} <= set(found)


def test_confusion_of_many_classes_names_them_without_counts() -> None:
    names = [f"class {number}" for number in range(100)]

    found = texts(draw_confusion(np.eye(100, dtype=int) * 777, names))

    assert set(names) <= set(found)
    assert "777" not in found


@pytest.mark.parametrize("confusion", [((3, 0), (0, 2)), ((0, 3), (2, 0)), ((0, 0), (0, 0)), ((5,),)])
def test_confusion_of_extremes_is_drawn(confusion: tuple[tuple[int, ...], ...]) -> None:
    assert pixels(draw_confusion(confusion, LABELS[: len(confusion)])).std() > 0


@pytest.mark.parametrize("name", ["$x^$", "<script>", "フクロウ", "a & b", "", "\N{OWL}"])
def test_names_are_shown_as_they_are(name: str) -> None:
    assert (name or "cat") in texts(draw_confusion(((1, 0), (0, 1)), ("cat", name)))


def test_names_that_are_long_or_unprintable_are_mended() -> None:
    found = texts(draw_confusion(((1, 0), (0, 1)), ("x" * 500, "two\n\x00lines")))

    assert "x" * 23 + "…" in found
    assert "two\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}lines" in found


def test_reliability_is_drawn(evaluation: Evaluation) -> None:
    assert {"Confidence", "Accuracy", "Samples"} <= set(texts(draw_reliability(evaluation.reliability)))


def test_learning_curve_has_a_panel_for_each_kind_of_figure() -> None:
    found = texts(draw_learning_curve(HISTORY))

    assert {"Loss", "Accuracy", "Learning rate", "training", "validation"} <= set(found)


@pytest.mark.parametrize(
    ("history", "panels"),
    [({1: {"train_loss": 2.0}}, 1), ({1: {"train_loss": 2.0}, 2: {"validation_accuracy": 0.5}}, 2), ({}, 1)],
)
def test_learning_curve_draws_what_is_known(history: dict[int, dict[str, float]], panels: int) -> None:
    figure = draw_learning_curve(history)

    assert len(figure.axes) == panels
    assert pixels(figure).std() > 0


def test_robustness_names_each_corruption() -> None:
    assert {"jpeg", "gaussian noise", "clean", "Severity"} <= set(texts(draw_robustness(ROBUSTNESS)))


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    heights = sorted(text.get_position()[1] for text in draw_robustness(ROBUSTNESS).axes[0].texts)

    assert heights[1] - heights[0] > 0.05


def test_an_example_of_other_images_is_rejected(unseen: Samples) -> None:
    assert (example(unseen.images, 1) == unseen.images[1]).all()
    with pytest.raises(InvalidInput, match="position 2; there are 2 images: give those evaluated"):
        example(unseen.images[:2], 2)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_pictures_have_the_ground_of_their_theme(theme: Theme, evaluation: Evaluation) -> None:
    corner = pixels(draw_reliability(evaluation.reliability, theme))[0, 0]

    assert "#" + "".join(f"{part:02x}" for part in corner) == theme.panel


@pytest.mark.parametrize("format", ["png", "svg"])
def test_same_figures_give_the_same_bytes(format: str, evaluation: Evaluation) -> None:
    first, second = (to_bytes(draw_reliability(evaluation.reliability), format) for _ in range(2))  # type: ignore[arg-type]

    assert first == second


def test_drawing_leaves_matplotlib_settings_alone(evaluation: Evaluation) -> None:
    before = dict(rcParams)

    to_bytes(draw_confusion(evaluation.confusion, LABELS, DARK), "svg")

    assert dict(rcParams) == before
