"""Progress bars on a terminal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

Advance = Callable[[str, float, Mapping[str, float]], None]
"""Takes a stage, the done fraction of it and its newest figures."""


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

        def advance(stage: str, fraction: float, figures: Mapping[str, float]) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=1.0, figures="")
            text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            progress.update(bars[stage], completed=fraction, **({"figures": text} if text else {}))

        yield advance
