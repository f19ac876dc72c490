"""The picture that the demonstration ends with: how right the suite's answers were, over time."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from aimass.demo.record import Happened, Record

_MARKS = {
    "cycle.started": ("a cycle begins", "#888888"),
    "candidate.published": ("candidate", "#1f77b4"),
    "gate.decided": ("gate", "#9467bd"),
    "canary.moved": ("canary", "#ff7f0e"),
    "promoted": ("promoted", "#2ca02c"),
    "rolled_back": ("rolled back", "#d62728"),
}


def draw(record: Record, accuracies: Mapping[int, float], *paths: Path) -> None:
    """Draw the accuracy of the version that served, on pictures nobody ever sent, with the events marked.

    Args:
        record: What has happened.
        accuracies: Of each version that has served, 0 to 1.
        paths: Files to write, in the form that their names say.
    """
    end = max([each.seconds for each in record.events], default=0.0) * 1.1 + 5
    times = [seconds for seconds, _ in record.serving] + [end]
    values = [accuracies[version] for _, version in record.serving]
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.step(times, [*values, values[-1]], where="post", linewidth=2.5, color="#2ca02c", label="with the loop")
    axes.hlines(values[0], 0, end, linestyles="dashed", color="#888888", label="never retrained")
    for seconds, version in record.serving:
        axes.annotate(f"version {version}", (seconds, accuracies[version]), xytext=(3, 6), textcoords="offset points")
    told: set[str] = set()
    for event in record.events:
        if event.kind in _MARKS:
            word, colour = ("refused", "#000000") if _is_refusal(event) else _MARKS[event.kind]
            axes.axvline(event.seconds, color=colour, alpha=0.45, linewidth=1, label=None if word in told else word)
            told.add(word)
    axes.set(xlabel="seconds", ylabel="accuracy on pictures that nobody sent", xlim=(0, end))
    axes.set_ylim(max(0, min(values) - 0.1), min(1, max(values) + 0.1))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(loc="lower right", ncols=2, fontsize="small")
    axes.grid(alpha=0.2)
    for path in paths:
        figure.savefig(path, dpi=120)


def _is_refusal(event: Happened) -> bool:
    return event.kind == "gate.decided" and event.payload["outcome"] != "PASSED"
