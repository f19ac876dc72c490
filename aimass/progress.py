"""Progress bars on a terminal."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

SHOWN = ("train_loss", "validation_accuracy", "test_accuracy")
"""Figures that a line has room for; a run's record holds them all."""


class Advance(Protocol):
    """Moves the bar of a stage."""

    def __call__(self, stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        """Show the done *fraction* of *stage*, 0 to 1, and its newest figures."""


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Advance]:
    """Show one bar per stage, on standard error, so that standard output stays clean."""
    columns = (
        TextColumn("{task.description}", table_column=Column(min_width=8, no_wrap=True)),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True)),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not enabled, expand=True) as progress:
        bars: dict[str, TaskID] = {}
        figures: dict[str, dict[str, float]] = defaultdict(dict)

        def advance(stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=1.0, figures="")
            figures[stage].update({name: metrics[name] for name in SHOWN if name in metrics})
            text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures[stage].items())
            progress.update(bars[stage], completed=fraction, figures=text)

        yield advance
