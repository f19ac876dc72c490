"""The analysis as a page: one file that needs nothing else, for screens light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from services.trainer.loop.analysis_document import Analysis, ClassShare, Detector
from services.trainer.pages import Filter, render_page

_TEMPLATE = Path(__file__).with_name("analysis.html.j2")
CLASSES = 30
"""Whose shares are shown, those first that have changed most."""
_WIDEST = 10.0
"""Weight at the right edge of the intervals, at most."""
_LEAST_HEIGHT = 1.25
"""What a curve shows of the nearness of alarms at least, so that there is room above the threshold."""
DETECTORS = {
    "label_shift": ("Labels", "Which labels the model answers with, and how often"),
    "softmax_shift": ("Probabilities", "How sure the model is of each class"),
    "embedding_shift": ("Pictures", "How the pictures look, by the model's own features"),
    "error_drift": ("Mistakes", "How often answers are wrong, by judged draws"),
}
"""Title and sentence of each detector."""


@dataclass(frozen=True)
class Curve:
    """How near to an alarm a detector was, as a drawing of 100 by 100 whose origin is at the top left."""

    kind: str
    title: str
    sentence: str
    points: str
    """Of a polyline."""
    threshold: float
    """Height of the line at which there is an alarm."""
    alarms: list[tuple[float, float]]
    last: tuple[float, float]
    first_time: str
    last_time: str
    level: float
    bound: float
    alarm: bool


def render_analysis(analysis: Analysis) -> str:
    """Return *analysis* as an HTML page.

    Everything that came from outside is escaped, and the page forbids itself scripts and every load.
    """
    shares = sorted(analysis.label_shift, key=_change, reverse=True)[:CLASSES]
    values = {
        "analysis": analysis,
        "champion": next((each for each in analysis.accuracy if each.serves), None),
        "curves": [draw_curve(each) for each in analysis.detectors],
        "shares": shares,
        "widest": _widest(shares),
        "titles": {kind: title for kind, (title, _) in DETECTORS.items()},
    }
    filters: dict[str, Filter] = {"percent": _percent, "count": _count, "figure": _figure, "day": _day, "words": _words}
    return render_page(_TEMPLATE, values, filters)


def draw_curve(detector: Detector) -> Curve:
    """Return the curve of a detector, with time to the right and nearness upwards."""
    looks = detector.looks
    times = [datetime.fromisoformat(look.time).timestamp() for look in looks]
    begin, spread = times[0], times[-1] - times[0]
    highest = max(_LEAST_HEIGHT, *(look.nearness for look in looks))
    points = [
        (100 * (time - begin) / spread if spread > 0 else 50.0, 100 - 100 * look.nearness / highest)
        for time, look in zip(times, looks, strict=True)
    ]
    title, sentence = DETECTORS[detector.kind]
    return Curve(
        kind=detector.kind,
        title=title,
        sentence=sentence,
        points=" ".join(f"{x:.2f},{y:.2f}" for x, y in points),
        threshold=100 - 100 / highest,
        alarms=[point for point, look in zip(points, looks, strict=True) if look.alarm],
        last=points[-1],
        first_time=looks[0].time,
        last_time=looks[-1].time,
        level=looks[-1].level,
        bound=looks[-1].threshold,
        alarm=looks[-1].alarm,
    )


def _change(share: ClassShare) -> float:
    return abs(share.weight - 1) if share.weight is not None else abs(share.recent - share.reference)


def _widest(shares: Sequence[ClassShare]) -> float:
    """Return what the right edge of the intervals of weights stands for."""
    return min(_WIDEST, max([2.0, *(share.high for share in shares if share.high is not None)]))


def _percent(share: float | None) -> str:
    return "\N{EN DASH}" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _figure(number: float) -> str:
    return f"{number:.3g}"


def _day(time: str) -> str:
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M")


def _words(name: str) -> str:
    return name.replace("_", " ").lower()
