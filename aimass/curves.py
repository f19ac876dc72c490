"""Figures over time in one line of a terminal."""

from collections.abc import Sequence
from itertools import pairwise

_BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 48


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Return *values* as bars between the lowest and the highest, each the mean of its share of the values."""
    count = min(width, len(values))
    edges = [round(position * len(values) / count) for position in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int((value - low) / span * len(_BLOCKS)))] for value in means)
