"""What all commands share: where they print, how they fail, and whom they ask."""

import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from typer.core import TyperGroup

_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters, changes of direction, and what has no width, but for ends of lines, tabs and joiners."""


class CleanConsole(Console):
    """Leaves out what would tell the terminal what to do: strangers have a say in much that is printed here."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """See `Console`."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else _COMMANDS.sub("", text), style, control)


out = CleanConsole()
err = CleanConsole(stderr=True)

Address = Annotated[str, typer.Option(help="The suite's gRPC address.", envvar="AIMASS_ADDRESS")]
Key = Annotated[
    str,
    typer.Option(
        help="Key from `aimass keys make`, where the suite wants to know who calls; others of this machine see it here "
        "and not in the variable.",
        envvar="AIMASS_KEY",
    ),
]
MOST_NUMBER = 2**63 - 1
"""As the contracts have numbers of pictures, versions and events."""
ModelName = Annotated[str, typer.Argument(help="Name of the model.")]
PictureNumber = Annotated[
    int, typer.Argument(min=1, max=MOST_NUMBER, help="Number of the picture, see `aimass review`.")
]
Contributor = Annotated[str, typer.Argument(help="Name of the contributor.")]
SHOW = "show"


class ShownIfNothingElse(TyperGroup):
    """Shows, where no other command is named: `aimass loop cifar10` is `aimass loop show cifar10`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `TyperGroup`."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [SHOW, *args]
        return super().parse_args(ctx, args)


def fail(sentence: str) -> NoReturn:
    """Print *sentence* as an error and end the command with 1."""
    err.print(f"[red]error:[/red] {escape(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def say(console: Console, line: str) -> None:
    """Print *line* as it is, however long it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
