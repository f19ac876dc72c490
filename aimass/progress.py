"""Progress bars on a terminal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """Moves the bar of a stage."""

    def __call__(self, stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
        """Show the done *fraction* of *stage*, 0 to 1, and its newest figures."""


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Advance]:
    """Show one bar per stage, on standard error, so that standard output stays clean."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as progress:
        bars: dict[str, TaskID] = {}

        def advance(stage: str, fraction: float, metrics: Mapping[str, float]) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=1.0, figures="")
            text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            progress.update(bars[stage], completed=fraction)
            if text:
                progress.update(bars[stage], figures=text)

        yield advance
