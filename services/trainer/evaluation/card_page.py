"""The model card as a page: one file that needs nothing else, for screens light and dark and for paper."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from services.trainer.evaluation.card import Headline, ModelCard
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
from services.trainer.pages import Filter, render_page

_TEMPLATE = Path(__file__).with_name("card.html.j2")
_LARGEST_EXAMPLE = 96
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Picture:
    """One for light and one for dark pages, as data URIs."""

    light: str
    dark: str


@dataclass(frozen=True)
class Comparison:
    """A line of the table of differences."""

    name: str
    own: str
    parent: str
    difference: str


def render_card(card: ModelCard, images: NDArray[np.uint8] | None = None) -> str:
    """Return *card* as an HTML page.

    Everything that came from outside is escaped, and the page forbids itself scripts and every load.

    Args:
        card: From `make_card`.
        images: Those that were evaluated, (n, height, width, 3); without them the mistakes are only counted.

    Raises:
        InvalidInput: The card's mistakes have positions that *images* does not have.
    """
    evaluation = card.evaluation
    values = {
        "card": card,
        "evaluation": evaluation,
        "comparisons": compare(card.headline, card.parent) if card.parent else [],
        "confusion": _picture(lambda theme: draw_confusion(evaluation.confusion, evaluation.labels, theme)),
        "reliability": _picture(lambda theme: draw_reliability(evaluation.reliability, theme)),
        "curve": _picture(lambda theme: draw_learning_curve(card.history, theme)) if card.history else None,
        "robustness": _robustness_picture(card),
        "examples": _examples(card, images),
    }
    filters: dict[str, Filter] = {
        "percent": _percent,
        "quantity": _quantity,
        "size": _size,
        "duration": _duration,
        "value": _value,
    }
    return render_page(_TEMPLATE, values, filters)


def compare(own: Headline, parent: Headline) -> list[Comparison]:
    """Return the lines that set a model beside its parent; what one of them lacks is left out."""
    lines = [
        Comparison(
            "Accuracy",
            _with_interval(own),
            _with_interval(parent),
            _points(own.accuracy - parent.accuracy),
        ),
        Comparison(
            "Calibration error",
            _percent(own.calibration_error),
            _percent(parent.calibration_error),
            _points(own.calibration_error - parent.calibration_error),
        ),
    ]
    if own.size_bytes and parent.size_bytes:
        lines.append(_ratio("File", own.size_bytes, parent.size_bytes, _size))
    if own.network_size and parent.network_size:
        for name in ("parameters", "multiply_adds"):
            title = name.replace("_", "-").capitalize()
            lines.append(_ratio(title, getattr(own.network_size, name), getattr(parent.network_size, name), _quantity))
    if own.latency and parent.latency:
        before = {batch.batch_size: batch for batch in parent.latency.batches}
        for batch in own.latency.batches:
            if batch.batch_size in before:
                title = f"Latency, {_images(batch.batch_size)}"
                earlier = before[batch.batch_size].median_milliseconds
                lines.append(_ratio(title, batch.median_milliseconds, earlier, _milliseconds))
    return lines


def _ratio(name: str, own: float, parent: float, show: Callable[[float], str]) -> Comparison:
    factor = own / parent if parent else float("nan")
    if factor < 0.995:
        difference = f"{1 / factor:.3g} times less"
    else:
        difference = f"{factor:.3g} times as much" if factor > 1.005 else "the same"
    return Comparison(name, show(own), show(parent), difference)


def _robustness_picture(card: ModelCard) -> Picture | None:
    measured = card.robustness
    if measured is None or not measured.accuracy:
        return None
    return _picture(lambda theme: draw_robustness(measured, theme))


def _picture(draw: Callable[[Theme], Figure]) -> Picture:
    light, dark = (_data_uri("image/svg+xml", to_bytes(draw(theme), "svg")) for theme in (LIGHT, DARK))
    return Picture(light, dark)


def _examples(card: ModelCard, images: NDArray[np.uint8] | None) -> list[list[str]]:
    """Return data URIs for each of the card's mistakes."""
    if images is None:
        return [[] for _ in card.evaluation.confused]
    return [[_thumbnail(example(images, at)) for at in pair.examples] for pair in card.evaluation.confused]


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LARGEST_EXAMPLE, _LARGEST_EXAMPLE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return _data_uri("image/png", file.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _with_interval(headline: Headline) -> str:
    return f"{_percent(headline.accuracy)} ({_percent(headline.accuracy_low)} to {_percent(headline.accuracy_high)})"


def _points(difference: float) -> str:
    sign = "+" if difference > 0 else "\N{MINUS SIGN}" if difference < 0 else "±"
    return f"{sign}{abs(100 * difference):.2f} points"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _quantity(count: float) -> str:
    for unit, letter in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g}\N{NO-BREAK SPACE}{letter}"
    return f"{count:.3g}"


def _size(count: float) -> str:
    return f"{_quantity(count)}B" if count >= 1000 else f"{count:.0f}\N{NO-BREAK SPACE}B"


def _milliseconds(value: float) -> str:
    return f"{value:.3g}\N{NO-BREAK SPACE}ms"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _value(value: Any) -> str:
    """Return an option as it would be given on a command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
