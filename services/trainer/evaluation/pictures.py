"""Pictures of what a model is like: matplotlib figures in one style, for light and for dark pages."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from services.common.errors import InvalidInput
from services.trainer.evaluation.figures import ReliabilityBin
from services.trainer.evaluation.robustness import Robustness

_NUMBERED_CLASSES = 25
"""Beyond, counts would be too small to read."""
_LONGEST_NAME = 24
_PERCENT = "\N{NO-BREAK SPACE}%"
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Theme:
    """Colours."""

    panel: str
    text: str
    muted: str
    line: str
    right: str
    """What is as it should be."""
    wrong: str
    series: tuple[str, ...]


LIGHT = Theme(
    panel="#ffffff",
    text="#12191b",
    muted="#586468",
    line="#e2e7e7",
    right="#0b7a75",
    wrong="#c2571a",
    series=("#0b7a75", "#c2571a", "#5457a6", "#b08900", "#a8397a", "#3b7d3a", "#6b7280", "#1f77b4"),
)
DARK = Theme(
    panel="#151a1d",
    text="#edf2f2",
    muted="#9aa7ab",
    line="#293236",
    right="#4ecdc2",
    wrong="#f0935a",
    series=("#4ecdc2", "#f0935a", "#9b9df0", "#e3c04f", "#ec86be", "#8bcf89", "#b3bcc4", "#7dbdf0"),
)


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Draw counts as a square of cells, row by row the share of the true label.

    Right answers have one colour; mistakes have another, scaled to the most frequent of them, so that they are seen
    beside large counts.
    """
    counts = np.array(confusion, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(names)
    numbered = classes <= _NUMBERED_CLASSES
    side = 2.2 + 0.56 * classes if numbered else max(9.0, 1.6 + 0.105 * classes)
    with _style(theme):
        figure = Figure(figsize=(side, side * 0.96), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(_cells(shares, theme), interpolation="nearest")
        size = 9.0 if numbered else max(2.0, min(9.0, 62 * (side - 1.6) / classes))
        shown = [_short(name) for name in names]
        axes.set_xticks(range(classes), shown, rotation=45 if numbered else 90, fontsize=size, color=theme.text)
        axes.set_yticks(range(classes), shown, fontsize=size, color=theme.text)
        for label in axes.get_xticklabels() if numbered else ():
            label.set(ha="right", rotation_mode="anchor")
        axes.set(xlabel="Predicted", ylabel="True")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if numbered:
            axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
            axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
            axes.grid(which="minor", color=theme.panel, linewidth=2)
            axes.grid(which="major", visible=False)
            axes.tick_params(which="minor", length=0)
            _number(axes, counts, shares, theme)
        else:
            axes.grid(visible=False)
    return figure


def draw_reliability(bins: Sequence[ReliabilityBin], theme: Theme = LIGHT) -> Figure:
    """Draw how often the model is right where it is how sure, above how often it is that sure."""
    used = [each for each in bins if each.samples]
    width = (bins[0].high - bins[0].low) * 0.92
    centres = [(each.low + each.high) / 2 for each in used]
    with _style(theme):
        figure = Figure(figsize=(5.6, 5.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
        above.bar(centres, [each.accuracy for each in used], width, color=theme.right, label="accuracy", zorder=2)
        gaps = [each.confidence - each.accuracy for each in used]
        above.bar(
            centres,
            gaps,
            width,
            bottom=[each.accuracy for each in used],
            facecolor="none",
            edgecolor=theme.wrong,
            hatch="////",
            linewidth=1,
            label="distance to confidence",
            zorder=2.5,
        )
        above.set(ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1))
        above.legend(loc="upper left")
        total = sum(each.samples for each in used)
        below.bar(centres, [each.samples / total for each in used], width, color=theme.muted, alpha=0.55, zorder=2)
        below.set(xlabel="Confidence", ylabel="Samples")
        below.yaxis.set_major_locator(MaxNLocator(4, prune="lower"))  # its zero would touch that of the other axis
        for axis in (above.xaxis, above.yaxis, below.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=_PERCENT))
    return figure


def draw_learning_curve(history: Mapping[int, Mapping[str, float]], theme: Theme = LIGHT) -> Figure:
    """Draw loss, accuracy and learning rate over the epochs.

    Args:
        history: Figures by epoch; of them `train_loss`, `validation_loss`, `train_accuracy`, `validation_accuracy` and
            `learning_rate` are drawn, where they are there.
        theme: Colours.
    """
    panels = [
        ("Loss", {"train_loss": "training", "validation_loss": "validation"}),
        ("Accuracy", {"train_accuracy": "training", "validation_accuracy": "validation"}),
        ("Learning rate", {"learning_rate": ""}),
    ]
    known = {name for figures in history.values() for name in figures}
    panels = [(title, series) for title, series in panels if known & set(series)] or panels[:1]
    colors = {"training": theme.muted, "validation": theme.right, "": theme.series[2]}
    with _style(theme):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        for axes, (title, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name, label in series.items():
                points = [(epoch, figures[name]) for epoch, figures in sorted(history.items()) if name in figures]
                if points:
                    mark = "o" if len(points) == 1 else None
                    axes.plot(*zip(*points, strict=True), color=colors[label], label=label or None, marker=mark)
            axes.set_title(title)
            axes.set_xlabel("Epoch")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
            axes.margins(x=0.02)
            if title == "Accuracy":
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=_PERCENT))
            else:
                axes.set_ylim(bottom=0)
            if any(series.values()) and axes.lines:
                axes.legend()
    return figure


def draw_robustness(robustness: Robustness, theme: Theme = LIGHT) -> Figure:
    """Draw the accuracy over the severity of each corruption; severity 0 is the clean images."""
    with _style(theme):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        ends = []
        for number, (corruption, results) in enumerate(robustness.accuracy.items()):
            accuracy = (robustness.clean_accuracy, *results)
            color = theme.series[number % len(theme.series)]
            axes.plot(range(len(accuracy)), accuracy, color=color, marker="o", markersize=4)
            ends.append((accuracy[-1], corruption.replace("_", " "), color))
        steps = max((len(results) for results in robustness.accuracy.values()), default=1)
        for height, text, color in _apart(ends, 0.052):
            axes.text(steps + 0.12, height, text, color=color, va="center", fontsize=9)
        axes.set(xlabel="Severity", ylabel="Accuracy", xlim=(-0.1, steps + 1.15), ylim=(0, 1.02))
        axes.set_xticks(range(steps + 1), ["clean", *map(str, range(1, steps + 1))])
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=_PERCENT))
    return figure


def example(images: NDArray[np.uint8], position: int) -> NDArray[np.uint8]:
    """Return the image at *position*.

    Raises:
        InvalidInput: There is none.
    """
    if not position < len(images):
        raise InvalidInput(f"an example has position {position}; there are {len(images)} images: give those evaluated")
    picture: NDArray[np.uint8] = images[position]
    return picture


def to_bytes(figure: Figure, format: Literal["png", "svg"] = "png", resolution: int = 144) -> bytes:
    """Return *figure* as a file; the same figure gives the same bytes.

    Text in an SVG stays text, so that names in any script are shown by whoever looks at it.

    Args:
        figure: From one of the functions here.
        format: `png` or `svg`.
        resolution: Of a PNG, in pixels per inch.
    """
    file = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "aimass"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        metadata: Mapping[str, Any] = {"Date": None, "Creator": None} if format == "svg" else {"Software": None}
        figure.savefig(file, format=format, dpi=resolution, metadata=metadata)
    data = file.getvalue()
    return data.replace(b"'DejaVu Sans'", _FONTS.encode()) if format == "svg" else data


@contextmanager
def _style(theme: Theme) -> Iterator[None]:
    style: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": theme.text,
        "text.parse_math": False,  # names of labels are not formulas
        "figure.facecolor": theme.panel,
        "savefig.facecolor": theme.panel,
        "axes.facecolor": theme.panel,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.text,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.formatter.use_mathtext": False,
        "grid.color": theme.line,
        "grid.linewidth": 0.8,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": 9,
        "legend.labelcolor": theme.muted,
        "hatch.linewidth": 0.8,
    }
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _cells(shares: NDArray[np.float64], theme: Theme) -> NDArray[np.float64]:
    """Return the colours of the cells, (classes, classes, 4)."""
    diagonal = np.eye(len(shares), dtype=bool)
    right = LinearSegmentedColormap.from_list("right", [theme.panel, theme.right])
    wrong = LinearSegmentedColormap.from_list("wrong", [theme.panel, theme.wrong])
    mistakes = np.where(diagonal, 0, shares)
    # The square root lets rare mistakes be seen; the largest stays below full colour, so that its number is readable.
    scaled = 0.8 * np.sqrt(mistakes / max(mistakes.max(), 1e-9)) if mistakes.max() else mistakes
    cells = np.where(diagonal[:, :, None], right(0.15 + 0.85 * shares**1.5), wrong(scaled))
    return np.where((shares > 0)[:, :, None], cells, _faint(theme))


def _faint(theme: Theme) -> tuple[float, ...]:
    faint = LinearSegmentedColormap.from_list("faint", [theme.panel, theme.line])(0.35)
    return tuple(float(part) for part in faint)


def _number(axes: Axes, counts: NDArray[np.float64], shares: NDArray[np.float64], theme: Theme) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            strong = row == column and shares[row, column] > 0.55
            axes.text(
                column,
                row,
                f"{count:.0f}",
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold" if row == column else "normal",
                color=theme.panel if strong else theme.text,
            )


def _apart(ends: list[tuple[float, str, str]], distance: float) -> list[tuple[float, str, str]]:
    """Move labels that would overlap up, the lowest first."""
    placed: list[tuple[float, str, str]] = []
    for height, text, color in sorted(ends):
        height = max(height, placed[-1][0] + distance) if placed else max(height, 0.02)
        placed.append((height, text, color))
    over = max(0.0, placed[-1][0] - 1.0) if placed else 0.0
    return [(height - over, text, color) for height, text, color in placed]


def _short(name: str) -> str:
    printable = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return printable if len(printable) <= _LONGEST_NAME else printable[: _LONGEST_NAME - 1] + "…"
